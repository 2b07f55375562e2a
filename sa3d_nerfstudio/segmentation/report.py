"""What a session did, view by view."""

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
    """What the user may do about many rejected views, as a sentence; None where most were used."""
    if rejected <= used:
        return None
    return (
        "most views were rejected, as the masks found in them do not fit the one that was prompted: prompt another "
        "view as well, or, where the renders are blurred, train the base model for longer."
    )


@dataclass
class ViewRecord:
    """What became of one view in one pass."""

    view: int | str
    """Index of the training view, or name of the free view."""
    name: str
    number_of_pass: int
    state: ViewState
    reason: str = ""
    agreement: float | None = None
    """IoU of the 2D mask with the rendered one, where both are known."""


@dataclass
class SessionReport:
    """What a session did."""

    records: list[ViewRecord] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    """Relative L1 change of the field in each pass after the first."""
    converged: bool = False
    likelihood: LikelihoodReport | None = None
    """How the field was fitted to the masks at the end."""
    _seconds: dict[str, float] = field(default_factory=lambda: {"render": 0.0, "segment": 0.0, "lift": 0.0})
    _events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    """Beginnings and ends on CUDA, which does later what it is told now."""

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent in "render", "segment" and "lift"; waits for what CUDA still has to do."""
        for what, start, end in self._events:
            end.synchronize()
            self._seconds[what] += start.elapsed_time(end) / 1e3
        self._events.clear()
        return self._seconds

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that something takes to ``seconds``. On CUDA the time is taken there, without a wait for it."""
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
        """What the user may do about the result, if there is reason to."""
        states = [record.state for record in self.last().values()]
        return advice(states.count("used") + states.count("prompt"), states.count("rejected"))

    def last(self) -> dict[int | str, ViewRecord]:
        """The newest record of each view."""
        return {record.view: record for record in self.records}
