"""Where several processes bring together what each has lifted of its own views."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
        self.stopped = False
        """Whether any rank has been asked to stop."""
        self._records: list[ViewRecord] = []

    def note(self, record: ViewRecord) -> ViewRecord:
        """Note what became of a view, to tell the others."""
        self._records.append(record)
        return record

    def hold(self) -> Iterator[ViewRecord]:
        """Sum what has been lifted since the last time, and yield what became of the other ranks' views."""
        if self.ranks.size == 1:
            return
        told = self.ranks.gather((self._records, self.ranks.is_stopping))
        self.stopped = any(stopping for _, stopping in told)
        self._records = []
        field = self.own.field
        self.lifting.field.add(*self.ranks.sum(field.hit, field.seen))
        field.set(torch.zeros_like(field.hit), torch.zeros_like(field.seen))
        for rank, (records, _) in enumerate(told):
            if rank != self.ranks.rank:
                yield from records
