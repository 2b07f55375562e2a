"""What a job shows in the terminal: a progress bar, then a table."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sa3d_nerfstudio.errors import SA3DError

if TYPE_CHECKING:
    from sa3d_nerfstudio.segmentation.session import SegmentationSession


def say(line: object) -> None:
    """Print a line as it is, for people to read and copy."""
    from nerfstudio.utils.rich_utils import CONSOLE  # slow, and not needed for --help

    CONSOLE.print(str(line), highlight=False, soft_wrap=True, markup=False)


def confirm(question: str, console: Console, answers: TextIO) -> bool:
    """Ask on an interactive terminal; False without one, or for any answer but yes.

    Args:
        question: What to ask.
        console: Where to ask it.
        answers: Where the answer is typed.
    """
    if not (console.is_terminal and answers.isatty()):
        return False
    return console.input(Text(f"{question} [y/N] "), stream=answers).strip().lower() in ("y", "yes")


def run_with_progress(session: SegmentationSession, console: Console) -> bool:
    """Run all steps of a session under a progress bar, one per pass.

    Ctrl-C ends it after the view at hand and keeps what has been found; pressed again, it interrupts as always.

    Returns:
        Whether it has come to its end, and was not stopped.

    Raises:
        SA3DError: Nothing came of it.
    """
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("views"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=console) as progress, _interruptible() as interrupted:
        task, number, counts = None, 0, Counter[str]()
        for record in session.steps():
            if task is None or record.number_of_pass != number:
                number, counts = record.number_of_pass, Counter()
                task = progress.add_task(f"pass {number}", total=session.num_visits, note="")
            counts[record.state] += 1
            progress.update(task, advance=1, note=f"{counts['used']} used, {counts['rejected']} rejected")
            if interrupted.is_set():
                console.print(f"stopped by Ctrl-C in pass {number}: what the views so far have shown is kept.")
                break
    if not session.grid.holds_object(session.settings.threshold):
        raise SA3DError(
            "the segmented object is empty: no surface lies behind the prompted pixels; prompt another view."
        )
    return not interrupted.is_set()


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets instead of raising; only the main thread can have it so."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        event.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)


def print_report(session: SegmentationSession, console: Console) -> None:
    """Print views used and rejected, with why, the change of each pass, the object's size, and where the time went."""
    from sa3d_nerfstudio.fields.mask_grid import robust_bounds

    report = session.report
    last = report.last().values()
    states = Counter(record.state for record in last)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("views used", f"{states['used'] + states['prompt']} of {session.num_visits}")
    reasons = Counter(record.reason for record in last if record.state == "skipped")
    for reason, number in reasons.items():
        table.add_row("views skipped", f"{number}: {reason}")
    for record in last:
        if record.state == "rejected":
            table.add_row("view rejected", f"{record.name}: {record.reason}")
    changes = ", ".join(f"{change:.3f}" for change in report.changes) or "one pass only"
    verdict = "converged" if report.converged else f"not below {session.settings.tolerance:g}"
    table.add_row("L1 change per pass", f"{changes} ({verdict})" if report.changes else changes)
    points, weights = session.grid.object_points(session.settings.threshold)
    if len(points):
        low, high = robust_bounds(points, weights)
        size = (high - low).tolist()
        extent = " x ".join(f"{length:.3f}" for length in size)
        table.add_row("object", f"{len(points)} cells, {extent} (nerfstudio units)")
    total = sum(report.seconds.values())
    split = ", ".join(f"{name} {report.seconds[name]:.1f} s" for name in ("render", "segment", "lift"))
    table.add_row("time", f"{total:.1f} s: {split}")
    console.print(table)
    if report.advice is not None:
        console.print(f"warning: {report.advice}", highlight=False, soft_wrap=True)
