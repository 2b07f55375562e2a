"""Where several processes bring together what each has lifted of its own views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.lifting import Lifting
from sa3d_nerfstudio.segmentation.report import ViewRecord


class Meeting:
    """Where the ranks bring together what they have lifted in a pass.

    Args:
        ranks: Those that meet.
        lifting: Takes up what all have lifted; of a single process it is lifted into at once.
        new_lifting: Makes the lifting of this rank's own views.
    """

    def __init__(self, ranks: Ranks, lifting: Lifting, new_lifting: Callable[[MaskField], Lifting]) -> None:
        self.ranks = ranks
        self.lifting = lifting
        self.own = lifting if ranks.size == 1 else new_lifting(lifting.field.fresh())
        """Takes up what this rank lifts."""
        self.known = lifting if ranks.size == 1 else new_lifting(lifting.field.fresh())
        """What this rank knows in the pass: what all have lifted, and what it has not told yet."""
        self.stopped = False
        """Whether any rank has been asked to stop."""
        self._records: list[ViewRecord] = []
        self._end: Callable[[], Any] | None = None
        """Ends the exchange that has begun."""

    def note(self, record: ViewRecord) -> ViewRecord:
        """Note what became of a view, to tell the others."""
        self._records.append(record)
        return record

    def hold(self) -> Iterator[ViewRecord]:
        """Begin to sum what has been lifted since the last time, and settle what has begun then."""
        if self.ranks.size == 1:
            return
        field = self.own.field
        end = self.ranks.begin((self._records, self.ranks.is_stopping), field.hit, field.seen)
        self._records = []
        telling = field.hit, field.seen
        field.set(torch.zeros_like(field.hit), torch.zeros_like(field.seen))
        yield from self.settle()
        self._end = end
        shared = self.lifting.field
        self.known.field.set(shared.hit + telling[0], shared.seen + telling[1])

    def settle(self) -> Iterator[ViewRecord]:
        """End the exchange that has begun, and yield what became of the other ranks' views."""
        if self._end is None:
            return
        (told, sums), self._end = self._end(), None
        self.stopped = self.stopped or any(stopping for _, stopping in told)
        shared = self.lifting.field
        shared.add(*sums)
        self.known.field.set(shared.hit.clone(), shared.seen.clone())
        for rank, (records, _) in enumerate(told):
            if rank != self.ranks.rank:
                yield from records
