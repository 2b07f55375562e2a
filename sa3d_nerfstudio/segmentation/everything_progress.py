"""Progress of segmenting a whole scene, in the terminal: a bar of the explained share, then a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sa3d_nerfstudio.segmentation.everything import SceneObject, SceneSegmentation
from sa3d_nerfstudio.terminal import interruptible


def run_scene_with_progress(scene: SceneSegmentation, console: Console, keep: Callable[[SceneObject], None]) -> bool:
    """Segment a scene under a progress bar of the share that objects explain.

    Ctrl-C ends it after the current view; the current object is left out, and all others stay.

    Args:
        scene: The scene.
        console: Console for the bar.
        keep: Called with each finished object.

    Returns:
        Whether the segmentation came to its end, and was not stopped by Ctrl-C.
    """
    columns = [
        TextColumn("explained"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[objects]} objects"),
        TextColumn("{task.fields[note]}", markup=False),
    ]
    with Progress(*columns, console=console) as progress, interruptible() as interrupted:
        task = progress.add_task("explained", total=1.0, objects=0, note="")
        for step in scene.steps():
            if step.found is not None:
                keep(step.found)
            progress.update(task, completed=step.explained, objects=step.objects, note=step.note)
            if interrupted.is_set():
                console.print(f"stopped by Ctrl-C: the {step.objects} objects that are finished are kept.")
                break
    return not interrupted.is_set()


def print_scene_report(scene: SceneSegmentation, console: Console) -> None:
    """Print the number of objects, the dropped ones with reasons, and the time spent on each activity."""
    report, tree, cut = scene.report, scene.tree, scene.cut
    levels = Counter(tree.level(name, cut) for name in tree)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("explained", f"{100 * scene.pool.explained:.0f} % of all that was proposed")
    table.add_row("objects", f"{levels['object']}, and {levels['part']} parts and {levels['whole']} wholes of them")
    for reason, count in report.dropped.items():
        table.add_row("not kept", f"{count}: {reason}")
    if report.ending is not None:
        table.add_row("ended", report.ending)
    stored = sum(item.field.num_bytes for item in scene.objects.values())
    table.add_row("masks", f"{stored / 1e6:.1f} MB")
    split = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.seconds.items())
    table.add_row("time", f"{sum(report.seconds.values()):.1f} s: {split}")
    console.print(table)
