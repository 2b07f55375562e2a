"""Real commands, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]


def run(*words: object, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a command of the environment that runs the tests, with one thread, in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}
    program = words[0] if str(words[0]) == sys.executable else BIN / str(words[0])
    return subprocess.run(
        [str(program), *map(str, words[1:])],
        cwd=cwd,
        env=environment,
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def succeed(*words: object, cwd: Path | None = None, timeout: float = 300) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = run(*words, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
