"""Exchange of evidence between processes, each of which lifts its own views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.lifting import Lifting
from sa3d_nerfstudio.segmentation.report import ViewRecord


class EvidenceExchange:
    """Exchanges of evidence between the ranks during a pass.

    Args:
        ranks: The ranks that take part.
        lifting: Receives the evidence of all ranks; a single process lifts into it directly.
        new_lifting: Makes a lifting into a field, for this rank.
    """

    def __init__(self, ranks: Ranks, lifting: Lifting, new_lifting: Callable[[MaskField], Lifting]) -> None:
        self.ranks = ranks
        self.lifting = lifting
        self.unsent = lifting if ranks.size == 1 else new_lifting(lifting.field.fresh())
        """Lifting of this rank's views since the last exchange began."""
        self.guide = lifting if ranks.size == 1 else new_lifting(lifting.field.fresh())
        """Evidence that guides this rank: the sum over all ranks, and its share of the exchange that has begun."""
        self.stopped = False
        """Whether any rank has been asked to stop."""
        self._records: list[ViewRecord] = []
        """Outcomes to send in the next exchange."""
        self._end: Callable[[], Any] | None = None
        """Ends the exchange that has begun; None if none has."""

    def note(self, record: ViewRecord) -> ViewRecord:
        """Note the outcome of a view, for the other ranks."""
        self._records.append(record)
        return record

    def begin_next(self) -> Iterator[ViewRecord]:
        """Begin to sum the evidence lifted since the last exchange began, and :meth:`settle` that exchange."""
        if self.ranks.size == 1:
            return
        field = self.unsent.field
        end = self.ranks.begin((self._records, self.ranks.is_stopping), field.hit, field.seen)
        self._records = []
        sent = field.hit, field.seen
        field.set(torch.zeros_like(field.hit), torch.zeros_like(field.seen))
        yield from self.settle()
        self._end = end
        shared = self.lifting.field
        self.guide.field.set(shared.hit + sent[0], shared.seen + sent[1])

    def settle(self) -> Iterator[ViewRecord]:
        """End the exchange that has begun, and yield the outcomes of the other ranks' views."""
        if self._end is None:
            return
        (messages, sums), self._end = self._end(), None
        self.stopped = self.stopped or any(stopping for _, stopping in messages)
        shared = self.lifting.field
        shared.add(*sums)
        self.guide.field.set(shared.hit.clone(), shared.seen.clone())
        for rank, (records, _) in enumerate(messages):
            if rank != self.ranks.rank:
                yield from records
