"""Joining the processes that nerfstudio's launcher or ``torchrun`` has started."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import torch
import torch.distributed as dist
from nerfstudio.configs.base_config import MachineConfig
from nerfstudio.utils.rich_utils import CONSOLE
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[reportPrivateImportUsage]

from sa3d_nerfstudio.distributed.ranks import ProcessRanks, Ranks
from sa3d_nerfstudio.distributed.watch import RankEnded, Watch, this_member
from sa3d_nerfstudio.errors import SA3DError

TIMEOUT = timedelta(minutes=30)
"""Timeout of collectives, which begin when all ranks have reached them."""
STORE_SECONDS = 60
"""Seconds without an answer after which the machine with the store counts as gone."""
_JOINED = itertools.count()
_SERVERS: list[TCPStore] = []
"""Stores that this process serves until it ends."""


def rank_in_environment() -> tuple[int, int] | None:
    """Rank and number of the processes that ``torchrun`` has started; None without ``torchrun`` or for one process."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), size) if size > 1 and "RANK" in os.environ else None


def check_launch(machine: MachineConfig) -> int:
    """Number of processes that segment together, those included that nerfstudio's launcher is still to start.

    Raises:
        SA3DError: The launcher cannot start them, or each of several processes of ``torchrun`` would start more.
    """
    requested, started = machine.num_devices * machine.num_machines, rank_in_environment()
    if started is not None:
        if requested > 1:
            raise SA3DError(
                f"torchrun has started {started[1]} processes already: leave out --machine.num-devices and "
                "--machine.num-machines."
            )
        return started[1]
    if requested <= 1:
        return 1
    if machine.device_type != "cuda":
        raise SA3DError(
            f"nerfstudio starts several processes on CUDA devices only: start them with torchrun --nproc-per-node "
            f"{machine.num_devices} -m nerfstudio.scripts.train sa3d, and leave out --machine.num-devices."
        )
    if machine.num_machines > 1 and machine.dist_url == "auto":
        raise SA3DError(
            "several machines need an address at which they meet: give --machine.dist-url tcp://HOST:PORT, with a free "
            "port of the first machine."
        )
    if 0 < torch.cuda.device_count() < machine.num_devices:
        raise SA3DError(
            f"--machine.num-devices {machine.num_devices} is more than this machine has: give "
            f"{torch.cuda.device_count()} or fewer."
        )
    return requested


def join(device_type: str, url: str = "auto", local_rank: int = 0) -> Ranks:
    """Join the ranks of this job; a single rank where no other processes were started.

    Args:
        device_type: "cuda" or "cpu".
        url: Address at which nerfstudio's launcher has joined the processes, as in ``--machine.dist-url``.
        local_rank: Rank on this machine, from that launcher; ``torchrun`` sets it in the environment.

    Raises:
        SA3DError: There are more processes on this machine than CUDA devices.
    """
    environment = rank_in_environment()
    launched = dist.is_available() and dist.is_initialized()
    if not launched and environment is None:
        return Ranks()
    device = torch.device("cpu")
    if device_type == "cuda":
        local = local_rank if launched else int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise SA3DError(
                "there are more processes on this machine than CUDA devices, of which it has "
                f"{torch.cuda.device_count()}: start one for each of them."
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not launched:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    rank, size = dist.get_rank(), dist.get_world_size()
    for_values, for_watch = _stores(rank, url, device, agent=not launched)
    members: list[Any] = [None] * size
    dist.all_gather_object(members, this_member())
    mates = [mate for mate, member in enumerate(members) if member.is_beside(members[rank])]
    watch = Watch(for_watch, rank, members, speaks=not launched)
    watch.begin()
    _end_when_terminated(watch)
    local = mates.index(rank), len(mates)
    return ProcessRanks(for_values, watch, rank, size, *local, device, destroys_group=not launched)


@contextmanager
def joined(device_type: str | None) -> Iterator[Ranks]:
    """:func:`join` for a whole command: only the first rank prints, and all ranks leave at the end.

    Args:
        device_type: "cuda" or "cpu"; by default CUDA where it is available.
    """
    ranks = join(device_type or ("cuda" if torch.cuda.is_available() else "cpu"))
    CONSOLE.quiet = CONSOLE.quiet or not ranks.is_first
    with ranks.guarded():
        yield ranks
        ranks.close()


def _stores(rank: int, url: str, device: torch.device, agent: bool) -> tuple[Store, Store]:
    """Two connections to the key-value store of all ranks: one for values, one for the watch.

    Args:
        rank: Rank of this process.
        url: Address at which nerfstudio's launcher has joined the processes.
        device: Device of the collective that broadcasts the store's port.
        agent: Whether ``torchrun``'s agent process may hold the store, which then outlasts the ranks.
    """
    timeout = timedelta(seconds=STORE_SECONDS)
    prefix = f"sa3d-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}-{next(_JOINED)}"
    host = urlsplit(url).hostname or os.environ.get("MASTER_ADDR", "127.0.0.1")
    if agent and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        port = [int(os.environ["MASTER_PORT"])]
    else:
        port = [0]
        if rank == 0:
            server = TCPStore(host, 0, None, True, timeout, wait_for_workers=False)
            _SERVERS.append(server)
            port = [server.port]
        dist.broadcast_object_list(port, src=0, device=device if device.type == "cuda" else None)
    clients = [TCPStore(host, port[0], None, False, timeout) for _ in range(2)]
    return PrefixStore(prefix, clients[0]), PrefixStore(prefix, clients[1])


def _end_when_terminated(watch: Watch) -> None:
    """Handle SIGTERM, which launchers send when another rank has ended: end with the sentence about that rank.

    After Ctrl-C, which asks all ranks to stop, SIGTERM is ignored: the launcher then waits for the run to be saved.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, frame: FrameType | None) -> None:
        if watch.is_stopping:
            return
        fault = None if watch.is_closed else watch.look()
        raise SystemExit(128 + number) if fault is None else RankEnded(fault)

    signal.signal(signal.SIGTERM, end)
