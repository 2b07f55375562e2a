"""Progress of a session, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sa3d_nerfstudio.segmentation.session import SegmentationSession


@dataclass
class Progress:
    """Counts of views visited, used and rejected in the current pass."""

    number_of_pass: int
    done: int
    """Views visited in this pass."""
    total: int
    """Views to visit in this pass."""
    used: int
    rejected: int
    name: str
    """Name of the view just visited."""


def followed(session: SegmentationSession) -> Iterator[Progress]:
    """Run a session step by step, and yield its progress after each one."""
    progress = Progress(0, 0, 0, 0, 0, "")
    for record in session.steps():
        if record.number_of_pass != progress.number_of_pass:
            progress = Progress(record.number_of_pass, 0, session.num_visits, 0, 0, "")
        progress.done += 1
        progress.used += record.state in ("used", "prompt")
        progress.rejected += record.state == "rejected"
        progress.name = record.name
        yield progress
