"""Proposals of several views: which of them the objects found so far explain, and which is to be segmented next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.mask_depth import window_of
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.segmenters.proposals import POINTS_PER_SIDE

EXPLAINED_IOU = 0.8
"""IoU of a proposal with the render of an object from which on it needs no object of its own."""
MATCHED_IOU = 0.5
"""The same for the one proposal of a view that fits the object best."""
NEW_SHARE = 0.5
"""Share of a proposal's pixels that no object covers from which on it is new, and not a part or a whole of objects."""
CONTRAST = 4.0
"""Power of the support in a proposal's rank, one that other views contradict coming after all that they confirm; and of
scores in an object's confidence."""
UNLIKE_IOU = 0.25
"""IoU below which no proposal of a view is anything like an object."""
UNSEEN_SUPPORT = 0.5
"""Support of what no other view sees."""


@dataclass
class Proposal:
    """One mask that a segmenter has found in a view, held as the part of the image around it."""

    view: int
    index: int
    """Its number among the proposals of its view."""
    window: tuple[slice, slice]
    """Rows and columns that it lies in."""
    part: Bool[Tensor, "rows columns"]
    """The mask within them."""
    size: tuple[int, int]
    """Height and width of the image."""
    area: int
    """Pixels of the mask."""
    new: int
    """Those of them that no object covers as yet."""
    score: float = 1.0
    """How good the segmenter thinks it is, in [0, 1]: for networks, the IoU that they predict of themselves."""
    explained: bool = False
    """Whether an object is what it shows."""
    support: float | None = None
    """How well other views confirm it, in [0, 1]; None until that has been asked."""
    tried: bool = False
    """Whether it has been segmented or given up."""

    @property
    def mask(self) -> Bool[Tensor, "height width"]:
        """The mask, at the size of the image."""
        mask = torch.zeros(self.size, dtype=torch.bool, device=self.part.device)
        mask[self.window] = self.part
        return mask

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all others."""
        return self.view, self.index

    @property
    def is_new(self) -> bool:
        """Whether most of it is covered by no object as yet."""
        return self.new >= NEW_SHARE * self.area

    @property
    def rank(self) -> float:
        """Which of several proposals comes first: what it would explain, as far as other views confirm it."""
        gain = self.new if self.is_new else self.area
        return gain * (1.0 if self.support is None else self.support) ** CONTRAST


Rendered = Mapping[int, tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]]
"""For each view, the probability of an object, and where anything is known of it."""


class ProposalPool:
    """The proposals of all views, and what of them objects explain.

    Args:
        min_share: Of an image's pixels, what a proposal must cover.
        threshold: Probability above which a pixel is on an object.
        min_support: Support below which a proposal is given up.
    """

    def __init__(self, min_share: float, threshold: float = 0.5, min_support: float = 0.5) -> None:
        self.min_share = min_share
        self.threshold = threshold
        self.min_support = min_support
        self.proposals: list[Proposal] = []
        self._of_view: dict[int, list[Proposal]] = {}
        self._count: dict[int, int] = {}
        """Masks of each view, specks included."""
        self._proposed: dict[int, Bool[Tensor, "height width"]] = {}
        self._covered: dict[int, Bool[Tensor, "height width"]] = {}

    @property
    def views(self) -> list[int]:
        """The views that have been added."""
        return list(self._of_view)

    def add(self, view: int, candidates: Candidates, as_witness: bool = False) -> None:
        """Add what a segmenter proposes in a view; specks are left out.

        Args:
            view: The view.
            candidates: What is proposed.
            as_witness: Whether it is only to confirm proposals of other views, and not to be segmented.
        """
        masks = candidates.masks
        height, width = masks.shape[1:]
        first = self._count.get(view, 0)
        self._count[view] = first + len(masks)
        self._of_view.setdefault(view, [])
        self._covered.setdefault(view, masks.new_zeros(height, width))
        if not as_witness:
            self._proposed[view] = masks.any(0)
        for number, mask in enumerate(masks):
            area = int(mask.sum())
            if area < max(self.min_share * height * width, 1):
                continue
            window = window_of(mask, margin=0)
            score = min(max(float(candidates.scores[number]), 0.0), 1.0)
            new = int((mask & ~self._covered[view]).sum())
            part, key = mask[window].clone(), (view, first + number)
            found = Proposal(*key, window, part, (height, width), area, new, score, tried=as_witness)
            self._of_view[view].append(found)
            self.proposals.append(found)

    def overlooked(self, proposal: Proposal, rendered: Rendered) -> list[int]:
        """Views where nothing like a proposal is proposed which is as small as a grid of points may miss.

        They say nothing against it: the segmenter has not been asked there.

        Args:
            proposal: The proposal.
            rendered: What is known of it in all views.
        """
        views = []
        if not _is_small(proposal.area, proposal.size):
            return views
        for view, (probability, known) in rendered.items():
            shown = known & (probability > self.threshold)
            area = int(shown.sum())
            if view == proposal.view or area < self._least(shown) or not _is_small(area, proposal.size):
                continue
            if self._best({view: (probability, known)})[0][0] < UNLIKE_IOU:
                views.append(view)
        return views

    def explain(self, rendered: Rendered) -> int:
        """Strike off what an object explains.

        Args:
            rendered: The object in all views.

        Returns:
            Pixels that it covers in all views together.
        """
        total = 0
        for view, (probability, known) in rendered.items():
            mask = (known & (probability > self.threshold)).to(self._covered[view].device)
            area = int(mask.sum())
            if area == 0:
                continue
            total += area
            self._covered[view] |= mask
            ious = {}
            for proposal in self._of_view[view]:
                shared = int((mask[proposal.window] & proposal.part).sum())
                if shared:
                    ious[proposal.index] = iou = shared / (area + proposal.area - shared)
                    proposal.explained |= iou >= EXPLAINED_IOU
                    proposal.new = int((proposal.part & ~self._covered[view][proposal.window]).sum())
            matched = max([MATCHED_IOU, *ious.values()])
            for proposal in self._of_view[view]:
                proposal.explained |= ious.get(proposal.index, 0.0) >= matched
        return total

    def support_of(self, rendered: Rendered, but: int | None = None) -> float | None:
        """How well the proposals of the views confirm an object, or a part of one: mean IoU with the best of each view.

        Only pixels count where anything is known, and only views in which the object is no speck.

        Args:
            rendered: The object in all views.
            but: A view that is not asked.

        Returns:
            The mean, or None where no view can tell.
        """
        best = self._best(rendered, but)
        return mean(agreement for agreement, _ in best) if best else None

    def confidence_of(self, rendered: Rendered) -> float:
        """How well the proposals of the views confirm an object that the segmenter itself is sure of.

        Where things touch in every view, they and their sum agree with proposals alike, and the sum a little better,
        having less outline for its size. What tells them apart is which the segmenter takes for a good mask: agreement
        counts times the fourth power (``CONTRAST``) of the proposal's score.

        Args:
            rendered: The object in all views.

        Returns:
            The mean over the views that can tell, in [0, 1]; 0 where none can.
        """
        best = self._best(rendered)
        return mean(agreement * score**CONTRAST for agreement, score in best) if best else 0.0

    def _best(self, rendered: Rendered, but: int | None = None) -> list[tuple[float, float]]:
        """In each view that can tell, the best agreement of a proposal with an object, and the proposal's score."""
        best = []
        for view, (probability, known) in rendered.items():
            shown = known & (probability > self.threshold)
            if view == but or int(shown.sum()) < self._least(shown):
                continue
            shown, known = shown.to(self._covered[view].device), known.to(self._covered[view].device)
            answers = ((_agreement(item, shown, known), item.score) for item in self._of_view[view])
            best.append(max(answers, default=(0.0, 0.0)))
        return best

    def next(self, support: Callable[[Proposal], float | None]) -> Proposal | None:
        """The proposal that explains most of what no object explains as yet; None where nothing is left.

        After all that is new, parts and wholes of known objects follow, if other views confirm them.

        Args:
            support: Asks other views about a proposal, which costs a render in each; only those that come up are asked.
        """
        for new in (True, False):
            while True:
                left = [item for item in self.proposals if self._is_open(item) and item.is_new == new]
                if not left:
                    break
                first = max(left, key=lambda item: (item.rank, -item.view, -item.index))
                if first.support is None:
                    answer = support(first)
                    first.support = UNSEEN_SUPPORT if answer is None else answer
                elif first.support < self.min_support:
                    first.tried = True
                else:
                    return first
        return None

    def _least(self, mask: Tensor) -> float:
        """Pixels that an object must have in a view so that this can tell of it."""
        return max(self.min_share * mask.numel(), 1)

    def _is_open(self, proposal: Proposal) -> bool:
        return not proposal.tried and not proposal.explained

    def strike(self, keys: Iterable[tuple[int, int]]) -> None:
        """Strike off proposals by their keys."""
        struck = set(keys)
        for proposal in self.proposals:
            proposal.tried |= proposal.key in struck

    @property
    def explained(self) -> float:
        """Share of the pixels of all proposals that objects cover."""
        total = sum(int(mask.sum()) for mask in self._proposed.values())
        covered = sum(int((self._proposed[view] & mask).sum()) for view, mask in self._covered.items())
        return covered / total if total else 1.0


def _is_small(area: int, size: tuple[int, int]) -> bool:
    """Whether so many pixels may lie between the points of a grid that proposals are made at."""
    return area < size[0] * size[1] / POINTS_PER_SIDE**2


def _agreement(proposal: Proposal, shown: Bool[Tensor, "height width"], known: Bool[Tensor, "height width"]) -> float:
    """IoU of a proposal and a rendered mask, over the pixels where anything is known."""
    shared = int((shown[proposal.window] & proposal.part).sum())
    if shared == 0:
        return 0.0
    return shared / (int((known[proposal.window] & proposal.part).sum()) + int(shown.sum()) - shared)
