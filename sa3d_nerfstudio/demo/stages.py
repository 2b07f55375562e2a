"""Run the stages of a long job in turn, each under a progress bar, with its output in a log file."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from sa3d_nerfstudio.errors import SA3DError

Advance = Callable[[float], None]
"""Callback with the finished share of a stage, from 0 to 1."""
ReadShare = Callable[[str], "float | None"]
"""Function from a line of output to the finished share, or None for a line without one."""


def training_share(line: str) -> float | None:
    """Finished share in a line of nerfstudio's training table, such as ``120 (40.00%)  81.2 ms ...``."""
    match = re.match(r"\d+ \((\d+\.\d+)%\)", line)
    return float(match[1]) / 100 if match else None


def counted_share(line: str) -> float | None:
    """Finished share in a line such as ``3/16 frame_0002.png``."""
    match = re.match(r"(\d+)/(\d+) ", line)
    return int(match[1]) / int(match[2]) if match else None


def _silent(line: str) -> float | None:
    return None


class Stages:
    """Progress bars of stages; without a terminal, one line at the beginning of each stage and one at its end.

    Args:
        console: Console to print to.
        logs: Folder for the log files.
        number: Number of stages.
    """

    def __init__(self, console: Console, logs: Path, number: int) -> None:
        self.console = console
        self.logs = logs
        self.number = number
        self._begun = 0

    @contextmanager
    def stage(self, title: str, measured: bool = True) -> Iterator[Advance]:
        """Show a stage that runs in this process.

        Args:
            title: Title of the stage.
            measured: Whether progress is reported; otherwise the bar shows only that time passes.
        """
        self._begun += 1
        title = f"{self._begun}/{self.number} {title}"
        if not self.console.is_terminal:
            self.console.print(title)
        columns = (SpinnerColumn(), TextColumn("{task.description:<34}"), BarColumn(), TaskProgressColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self.console) as progress:
            task = progress.add_task(title, total=1.0 if measured else None)
            yield lambda share: progress.update(task, completed=share)
            progress.update(task, total=1.0, completed=1.0)

    def run(self, title: str, command: Sequence[str | Path], share: ReadShare | None = None) -> None:
        """Run a command as a stage. Its output goes to a log file named after the stage.

        Args:
            title: Title of the stage.
            command: Program and arguments.
            share: Reads the finished share from a line of output; without it, progress is not measured.

        Raises:
            SA3DError: The command failed; the message holds the end of its log.
        """
        arguments = [str(argument) for argument in command]
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{self._begun + 1}-{title.replace(' ', '-')}.log"
        read = share or _silent
        with self.stage(title, measured=share is not None) as advance, log.open("w", encoding="utf8") as file:
            print("$", *arguments, file=file, flush=True)
            with subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=_environment(),
                encoding="utf8",
                errors="replace",
            ) as process:
                try:
                    assert process.stdout is not None
                    for line in process.stdout:
                        file.write(line)
                        file.flush()
                        done = read(line)
                        if done is not None:
                            advance(done)
                except BaseException:
                    process.terminate()
                    raise
            if process.returncode == 0:
                return
        lines = log.read_text(encoding="utf8").rstrip().splitlines()[-12:]
        raise SA3DError(
            f"the stage '{title}' failed (exit code {process.returncode}); see {log}, which ends with:\n  "
            + "\n  ".join(lines)
        )


def _environment() -> dict[str, str]:
    """Environment of a command: output unbuffered, so that progress arrives; few threads, unless the user sets them."""
    # Batches as small as the demo's gain nothing from more than four threads.
    threads = str(min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4))
    return {"OMP_NUM_THREADS": threads, **os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "160"}
