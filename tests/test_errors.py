"""Error messages of a launcher when one of its processes ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.subprocesses import run

PROGRAM = """
import os, signal, sys
import torch.multiprocessing as mp
from sa3d_nerfstudio.errors import SA3DError, end_in_a_sentence

def work(index, how):
    if index == 1:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"error": SA3DError, "bug": ValueError}[how]("rank 1 of 2, on a machine, has ended; start again.")
    signal.pause()

if __name__ == "__main__":
    end_in_a_sentence()
    mp.spawn(work, (sys.argv[1],), 2)
"""


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("error", "error: rank 1 of 2, on a machine, has ended; start again."),
        ("kill", f"was ended by {signal.SIGKILL.name}: look for a lack of memory there; what was saved stays"),
    ],
)
def test_a_launcher_ends_in_the_sentence_of_its_process(how: str, sentence: str, tmp_path: Path):
    done = launch(tmp_path, how)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path):
    assert "ValueError: rank 1" in launch(tmp_path, "bug").stderr


def launch(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Start two processes as nerfstudio does; the second ends."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    return run(sys.executable, "-W", "ignore", program, how)
