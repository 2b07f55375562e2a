"""What a session did, view by view."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch

ViewState = Literal["prompt", "used", "rejected", "skipped"]


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
    seconds: dict[str, float] = field(default_factory=lambda: {"render": 0.0, "segment": 0.0, "lift": 0.0})
    """Time spent in "render", "segment" and "lift"."""
    converged: bool = False

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that something takes to ``seconds``."""
        start = time.perf_counter()
        try:
            yield
            if torch.cuda.is_initialized():
                # CUDA does later what it is told now: the time is to be counted here, and not where it is waited for.
                torch.cuda.synchronize()
        finally:
            self.seconds[what] += time.perf_counter() - start

    def last(self) -> dict[int | str, ViewRecord]:
        """The newest record of each view."""
        return {record.view: record for record in self.records}
