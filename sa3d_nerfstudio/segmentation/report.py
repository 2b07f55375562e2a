"""Report of a session, view by view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

from sa3d_nerfstudio.segmentation.likelihood import LikelihoodReport

ViewState = Literal["prompt", "used", "rejected", "skipped"]


def advice(used: int, rejected: int) -> str | None:
    """A sentence of advice if most views were rejected; None otherwise."""
    if rejected <= used:
        return None
    return (
        "most views were rejected, as the masks found in them do not fit the one that was prompted: prompt another "
        "view as well, or, where the renders are blurred, train the base model for longer."
    )


@dataclass
class ViewRecord:
    """Outcome of one view in one pass."""

    view: int | str
    """Index of the training view, or name of the free view."""
    name: str
    number_of_pass: int
    state: ViewState
    reason: str = ""
    agreement: float | None = None
    """IoU of the 2D mask with the rendered one, over the pixels with evidence."""


@dataclass
class SessionReport:
    """Report of a session."""

    records: list[ViewRecord] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    """Relative L1 change of the masks or the field in each pass after the first."""
    converged: bool = False
    likelihood: LikelihoodReport | None = None
    """Report of the field's fit to the masks at the end."""
    _seconds: dict[str, float] = field(default_factory=lambda: {"render": 0.0, "segment": 0.0, "lift": 0.0})
    _events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Starts and ends of timed blocks on CUDA, which runs behind the host."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in "render", "segment" and "lift"; waits until CUDA has finished the timed blocks."""
        for what, start, end in self._events:
            end.synchronize()
            self._seconds[what] += start.elapsed_time(end) / 1e3
        self._events.clear()
        return self._seconds

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time of a block to ``seconds``. On CUDA the device takes the time, without a wait of the host."""
        if torch.cuda.is_initialized():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((what, start, end))
            return
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[what] += time.perf_counter() - begun

    @property
    def advice(self) -> str | None:
        """A sentence of advice about the result, if there is reason for it."""
        states = [record.state for record in self.last().values()]
        return advice(states.count("used") + states.count("prompt"), states.count("rejected"))

    def last(self) -> dict[int | str, ViewRecord]:
        """The newest record of each view."""
        return {record.view: record for record in self.records}
