"""Run real commands in subprocesses, as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HANG = 3600.0
"""Seconds after which a command counts as hung; a busy machine trains for many minutes."""
BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[1]
STAND_INS = Path(__file__).with_name("stand_ins.py")
QUIET = ["--vis", "tensorboard", "--logging.local-writer.max-log-size", "0", "--machine.device-type", "cpu"]
NO_EVALUATION = [f"--steps-per-eval-{what}=9999" for what in ("batch", "image", "all-images")]


def run(*words: object, cwd: Path | None = None, timeout: float = HANG) -> subprocess.CompletedProcess[str]:
    """Run a command of the tests' environment, with one thread, in a folder."""
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


def succeed(*words: object, cwd: Path | None = None, timeout: float = HANG) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = run(*words, cwd=cwd, timeout=timeout)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def run_nerfstudio(*words: object) -> subprocess.CompletedProcess[str]:
    """Run commands of nerfstudio, joined by "--then", with stand-ins for the CUDA libraries."""
    return run(sys.executable, STAND_INS, *words)


def nerfstudio(*words: object) -> str:
    """Run commands as :func:`run_nerfstudio` does; they must succeed. Return their output."""
    return succeed(sys.executable, STAND_INS, *words)


def training(method: str, scene: Path | None, output: Path, *options: object, steps: int = 60) -> list[object]:
    """A command that trains a method for some steps, into the folder ``output / scene.name / method / "T"``."""
    data = [] if scene is None else ["--data", scene]
    return [
        "ns-train", method, *data, "--output-dir", output, "--timestamp", "T", *QUIET, *NO_EVALUATION,
        "--max-num-iterations", steps, "--steps-per-save", 9999, *options,
    ]  # fmt: skip


def segmenting(base: Path, scene: Path, output: Path, prompt: dict[str, Any], *options: object) -> list[object]:
    """A command that segments by one click with the oracle, into the folder ``output / scene.name / "sa3d" / "S"``."""
    return [
        "ns-train", "sa3d", "--load-dir", base, "--output-dir", output, "--timestamp", "S", *QUIET[:2],
        "--pipeline.prompt.view", Path(prompt["frame"]).name, "--pipeline.prompt.points", *prompt["points"][0],
        "--pipeline.segmenter", "oracle", "--pipeline.oracle-instances", scene / "instances", *options,
    ]  # fmt: skip
