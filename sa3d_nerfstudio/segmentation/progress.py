"""A session in the terminal: a progress bar while it runs, then a table."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sa3d_nerfstudio.errors import EmptyObjectError
from sa3d_nerfstudio.fields.mask_grid import robust_bounds
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.terminal import interruptible, say

INTERRUPT_SECONDS = 3.0
"""Seconds within which several Ctrl-C count as one: that of the terminal, and copies from the processes' launcher."""


def run_with_progress(session: SegmentationSession, console: Console) -> bool:
    """Run all steps of a session under a progress bar, one per pass.

    Ctrl-C ends it after the current view and keeps the evidence so far; pressed again, it interrupts as always.

    Returns:
        True if all passes ended, False if Ctrl-C stopped it.

    Raises:
        EmptyObjectError: The segmented object is empty.
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
    ranks = session.ranks
    with (
        Progress(*columns, console=console) as progress,
        interruptible(ranks.stop, INTERRUPT_SECONDS if ranks.size > 1 else 0.0) as interrupted,
    ):
        task, number, counts = None, 0, Counter[str]()
        for record in session.steps():
            if task is None or record.number_of_pass != number:
                number, counts = record.number_of_pass, Counter()
                task = progress.add_task(f"pass {number}", total=session.num_visits, note="")
            counts[record.state] += 1
            progress.update(task, advance=1, note=f"{counts['used']} used, {counts['rejected']} rejected")
            # Several ranks stop together, at their next exchange.
            if interrupted.is_set() and ranks.size == 1:
                break
        stopped = interrupted.is_set() or session.stopped
        if stopped:
            console.print(f"stopped by Ctrl-C in pass {number}: what the views so far have shown is kept.")
    if not session.grid.holds_object(session.settings.threshold):
        raise EmptyObjectError(
            "the segmented object is empty: no surface lies behind the prompted pixels; prompt another view."
        )
    return not stopped


def print_report(session: SegmentationSession, console: Console) -> None:
    """Print views used and rejected, with reasons, the change of each pass, the object's size, and times."""
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
            table.add_row("view rejected", Text(f"{record.name}: {record.reason}"))
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
        say(f"warning: {report.advice}", console)
