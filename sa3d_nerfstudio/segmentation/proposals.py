"""Proposals of several views: those that the objects found so far explain, and the one to segment next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.mask_depth import bounding_slices
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.segmenters.proposals import POINTS_PER_SIDE

EXPLAINED_IOU = 0.8
"""Least IoU with a rendered mask of an object at which that object explains a proposal."""
MATCHED_IOU = 0.5
"""The same for the proposal of a view that fits the object best."""
NEW_SHARE = 0.5
"""Least share of uncovered pixels at which a proposal is new, rather than a part or a whole of known objects."""
CONTRAST = 4.0
"""Exponent of the support in a proposal's rank, so that contradicted proposals come after all confirmed ones; and of
the scores in an object's confidence."""
UNLIKE_IOU = 0.25
"""IoU with an object below which a view's best proposal does not resemble it."""
UNSEEN_SUPPORT = 0.5
"""Support of a proposal that no other view sees."""


@dataclass
class Proposal:
    """One mask that a segmenter proposes in a view, stored as a crop of the image."""

    view: int
    index: int
    """Index among the proposals of the view."""
    window: tuple[slice, slice]
    """Rows and columns of the crop."""
    part: Bool[Tensor, "rows columns"]
    """The mask within the crop."""
    size: tuple[int, int]
    """Height and width of the image."""
    area: int
    """Number of pixels of the mask."""
    new: int
    """Number of pixels of the mask that no object covers yet."""
    score: float = 1.0
    """The segmenter's score, in [0, 1]; for networks, their predicted IoU."""
    explained: bool = False
    """Whether an object explains it."""
    support: float | None = None
    """Support by other views, in [0, 1]; None until it is computed."""
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
        """View and index, unique among all proposals."""
        return self.view, self.index

    @property
    def is_new(self) -> bool:
        """Whether objects leave at least :data:`NEW_SHARE` of it uncovered."""
        return self.new >= NEW_SHARE * self.area

    @property
    def rank(self) -> float:
        """Priority among proposals: the pixels that it would explain, weighted by a power of its support."""
        gain = self.new if self.is_new else self.area
        return gain * (1.0 if self.support is None else self.support) ** CONTRAST


Rendered = Mapping[int, tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]]
"""For each view, the rendered probability of an object, and the pixels with evidence."""


class ProposalPool:
    """Proposals of all views, and the share of them that objects explain.

    Args:
        min_share: Least area of a proposal, as a share of the image's pixels.
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
        """Number of masks added for each view, specks included."""
        self._proposed: dict[int, Bool[Tensor, "height width"]] = {}
        self._covered: dict[int, Bool[Tensor, "height width"]] = {}

    @property
    def views(self) -> list[int]:
        """The views added so far."""
        return list(self._of_view)

    def add(self, view: int, candidates: Candidates, as_witness: bool = False) -> None:
        """Add the proposals of a view, without specks.

        Args:
            view: Index of the view.
            candidates: Masks and scores of the proposals.
            as_witness: Whether they only confirm proposals of other views, and are not segmented themselves.
        """
        # Proposals are many, are compared one by one, and are kept on the host as parts of their images.
        masks = candidates.masks.cpu()
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
            window = bounding_slices(mask, margin=0)
            score = min(max(float(candidates.scores[number]), 0.0), 1.0)
            new = int((mask & ~self._covered[view]).sum())
            part, key = mask[window].clone(), (view, first + number)
            proposal = Proposal(*key, window, part, (height, width), area, new, score, tried=as_witness)
            self._of_view[view].append(proposal)
            self.proposals.append(proposal)

    def overlooked(self, proposal: Proposal, rendered: Rendered) -> list[int]:
        """Views without a proposal like this one, in which it is so small that a grid of points may miss it.

        These views are no evidence against it: the segmenter was not prompted there.

        Args:
            proposal: The proposal.
            rendered: Its rendered masks in all views.
        """
        views = []
        if not _is_small(proposal.area, proposal.size):
            return views
        for view, (probability, known) in rendered.items():
            mask = known & (probability > self.threshold)
            area = int(mask.sum())
            if view == proposal.view or area < self._least(mask) or not _is_small(area, proposal.size):
                continue
            if self._best({view: (probability, known)})[0][0] < UNLIKE_IOU:
                views.append(view)
        return views

    def explain(self, rendered: Rendered) -> int:
        """Mark the proposals that an object explains, and the pixels that it covers.

        Args:
            rendered: Rendered masks of the object in all views.

        Returns:
            Number of pixels that it covers in all views together.
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
        """Support of an object, or of a part of one: mean IoU with the best proposal of each view.

        Only pixels with evidence count, and only views in which the object is no speck.

        Args:
            rendered: Rendered masks of the object in all views.
            but: View that is left out.

        Returns:
            The mean, or None where no view counts.
        """
        best = self._best(rendered, but)
        return mean(agreement for agreement, _ in best) if best else None

    def confidence_of(self, rendered: Rendered) -> float:
        """Support of an object, weighted by the segmenter's scores for the proposals.

        Where objects touch in every view, each of them and their union agree equally well with proposals, and the union
        slightly better, because it has less outline for its area. The segmenter's scores distinguish them: agreement is
        multiplied by the fourth power (``CONTRAST``) of the proposal's score.

        Args:
            rendered: Rendered masks of the object in all views.

        Returns:
            The mean over the views that count, in [0, 1]; 0 where none does.
        """
        best = self._best(rendered)
        return mean(agreement * score**CONTRAST for agreement, score in best) if best else 0.0

    def _best(self, rendered: Rendered, but: int | None = None) -> list[tuple[float, float]]:
        """For each view that counts, the highest agreement of a proposal with the object, and that proposal's score."""
        best = []
        for view, (probability, known) in rendered.items():
            mask = known & (probability > self.threshold)
            if view == but or int(mask.sum()) < self._least(mask):
                continue
            mask, known = mask.to(self._covered[view].device), known.to(self._covered[view].device)
            agreements = ((_agreement(item, mask, known), item.score) for item in self._of_view[view])
            best.append(max(agreements, default=(0.0, 0.0)))
        return best

    def next(self, support: Callable[[Proposal], float | None]) -> Proposal | None:
        """Choose the proposal to segment next, the one of the highest rank; None where none is left.

        New proposals come first, then parts and wholes of known objects, as far as other views confirm them.

        Args:
            support: Computes the support of a proposal, at the cost of a render in each view; called only for the
                proposals with the highest rank.
        """
        for new in (True, False):
            while True:
                remaining = [item for item in self.proposals if self._is_open(item) and item.is_new == new]
                if not remaining:
                    break
                first = max(remaining, key=lambda item: (item.rank, -item.view, -item.index))
                if first.support is None:
                    mean_iou = support(first)
                    first.support = UNSEEN_SUPPORT if mean_iou is None else mean_iou
                elif first.support < self.min_support:
                    first.tried = True
                else:
                    return first
        return None

    def _least(self, mask: Tensor) -> float:
        """Least area of an object in a view, in pixels, for the view to count."""
        return max(self.min_share * mask.numel(), 1)

    def _is_open(self, proposal: Proposal) -> bool:
        return not proposal.tried and not proposal.explained

    def strike(self, keys: Iterable[tuple[int, int]]) -> None:
        """Mark proposals as tried, by their keys."""
        struck = set(keys)
        for proposal in self.proposals:
            proposal.tried |= proposal.key in struck

    @property
    def explained(self) -> float:
        """Share of the proposals' pixels that objects cover."""
        total = sum(int(mask.sum()) for mask in self._proposed.values())
        covered = sum(int((self._proposed[view] & mask).sum()) for view, mask in self._covered.items())
        return covered / total if total else 1.0


def _is_small(area: int, size: tuple[int, int]) -> bool:
    """Whether a mask of this area may lie between the grid points at which proposals are made."""
    return area < size[0] * size[1] / POINTS_PER_SIDE**2


def _agreement(proposal: Proposal, shown: Bool[Tensor, "height width"], known: Bool[Tensor, "height width"]) -> float:
    """IoU of a proposal and a rendered mask, over the pixels with evidence."""
    shared = int((shown[proposal.window] & proposal.part).sum())
    if shared == 0:
        return 0.0
    return shared / (int((known[proposal.window] & proposal.part).sum()) + int(shown.sum()) - shared)
