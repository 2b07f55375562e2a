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
"""Of collectives, which begin when all ranks have come to them."""
STORE_SECONDS = 60
"""After so long without an answer the machine with the store is taken to be gone."""
_JOINED = itertools.count()
_SERVERS: list[TCPStore] = []
"""Stores that this process holds: as long as it lives."""


def rank_in_environment() -> tuple[int, int] | None:
    """Rank and number of the processes that ``torchrun`` has started; None where it has not, or one process only."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), size) if size > 1 and "RANK" in os.environ else None


def check_launch(machine: MachineConfig) -> int:
    """Number of processes that segment together, once nerfstudio's launcher has done what it is told.

    Raises:
        SA3DError: It cannot, or there are several processes already, and each would start more.
    """
    asked, started = machine.num_devices * machine.num_machines, rank_in_environment()
    if started is not None:
        if asked > 1:
            raise SA3DError(
                f"torchrun has started {started[1]} processes already: leave out --machine.num-devices and "
                "--machine.num-machines."
            )
        return started[1]
    if asked <= 1:
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
    return asked


def join(device_type: str, url: str = "auto", local_rank: int = 0) -> Ranks:
    """The ranks that this process is one of; one by itself where no others were started.

    Args:
        device_type: "cuda" or "cpu".
        url: Where nerfstudio's launcher has brought them together, as ``--machine.dist-url`` has it.
        local_rank: Among the processes of this machine, by that launcher; ``torchrun`` says it in the environment.

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
    mates = [other for other, member in enumerate(members) if member.is_beside(members[rank])]
    watch = Watch(for_watch, rank, members, speaks=not launched)
    watch.begin()
    _end_when_terminated(watch)
    local = mates.index(rank), len(mates)
    return ProcessRanks(for_values, watch, rank, size, *local, device, destroys_group=not launched)


@contextmanager
def joined(device_type: str | None) -> Iterator[Ranks]:
    """:func:`join`, for a command as a whole: the first rank alone prints, and all part at the end.

    Args:
        device_type: "cuda" or "cpu"; by default CUDA where there is such a device.
    """
    ranks = join(device_type or ("cuda" if torch.cuda.is_available() else "cpu"))
    CONSOLE.quiet = CONSOLE.quiet or not ranks.is_first
    with ranks.guarded():
        yield ranks
        ranks.close()


def _stores(rank: int, url: str, device: torch.device, agent: bool) -> tuple[Store, Store]:
    """Two connections to the key-value store of all ranks: one for values, one for the thread that looks after them.

    Args:
        rank: Of this process.
        url: Where nerfstudio's launcher has brought the processes together.
        device: For the collective that tells the store's port.
        agent: Whether ``torchrun``'s own process may hold the store, which then outlasts the ranks.
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
    """SIGTERM, by which launchers end the others when one rank has ended, ends this one with a sentence about that.

    Where Ctrl-C has asked all to stop, the launcher that sends SIGTERM then waits for what is being saved.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, frame: FrameType | None) -> None:
        if watch.is_stopping:
            return
        fault = None if watch.is_closed else watch.look()
        raise SystemExit(128 + number) if fault is None else RankEnded(fault)

    signal.signal(signal.SIGTERM, end)
