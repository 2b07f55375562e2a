"""Start several processes that segment together, as torchrun does, but without the time for imports in each."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.distributed.launch import joined
from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.errors import SA3DError, end_in_a_sentence

Job = Callable[..., Any]
"""Function of the ranks, and of further arguments from the test."""
# Ranks are forks of a server process with all imports; threads of the test's process would not survive a fork.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.distributed.jobs"])
_ROOT = Path(__file__).resolve().parents[1]
HANG = 1800.0
"""Seconds after which a process counts as hung; a busy machine is slow."""


@dataclass
class Ended:
    """Exit codes, output and results of the processes, by rank."""

    codes: list[int]
    printed: list[str]
    """Stderr of each process."""
    results: list[Any]
    """Return value of each job; None for jobs that did not return."""


def run_ranks(job: Job, size: int, folder: Path, *arguments: Any) -> Ended:
    """Run a job in several processes.

    Args:
        job: A function of a module that the processes can import.
        size: Number of processes.
        folder: Folder for their output and results.
        arguments: Arguments of the job after the ranks.
    """
    _start_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_rank, args=(job, rank, size, port, folder, arguments)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(HANG)
        assert process.exitcode is not None, (folder / "0.txt").read_text()
    codes = [process.exitcode or 0 for process in processes]
    printed = [(folder / f"{rank}.txt").read_text() for rank in range(size)]
    files = [folder / f"{rank}.pt" for rank in range(size)]
    results = [torch.load(file, weights_only=True) if file.exists() else None for file in files]
    return Ended(codes, printed, results)


def _start_server() -> None:
    """Start the server process with all imports; only the environment gives it the tests' module search path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (_ROOT, _ROOT / "tests"))))
        forkserver.ensure_running()


def _rank(job: Job, rank: int, size: int, port: int, folder: Path, arguments: tuple[Any, ...]) -> None:
    log = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    sys.stderr = os.fdopen(log, "w", buffering=1)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    end_in_a_sentence()
    try:
        with joined("cpu") as ranks:
            assert isinstance(ranks, Ranks)
            torch.save(job(ranks, *arguments), folder / f"{rank}.pt")
    except SA3DError:
        # multiprocessing prints errors itself; errors of programs go through this hook.
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        sys.exit(1)
