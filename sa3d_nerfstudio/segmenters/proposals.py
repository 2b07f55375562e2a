"""Proposals: all masks that a segmenter finds in an image without being pointed at anything."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter

POINTS_PER_SIDE = 16
"""Points along each side of the grid that a segmenter is asked at which makes no proposals by itself."""
DUPLICATE_IOU = 0.7
"""IoU from which on two masks of an image are the same; of boxes, it is what Segment Anything's generator takes."""


@runtime_checkable
class ProposalSegmenter(Protocol):
    """A segmenter that finds all masks of an image by itself."""

    def propose(self, embedding: Any) -> Candidates:
        """All masks of an embedded image, of any size, nested ones included; there may be none."""
        ...


def propose(segmenter: Segmenter, embedding: Any, height: int, width: int) -> Candidates:
    """All masks of an image: the segmenter's own proposals, or else its answers to a grid of points.

    Args:
        segmenter: Any segmenter.
        embedding: What it has embedded of the image.
        height: Rows of that image.
        width: Columns of that image.
    """
    if isinstance(segmenter, ProposalSegmenter):
        return segmenter.propose(embedding)
    return grid_proposals(segmenter, embedding, height, width)


def grid_proposals(
    segmenter: Segmenter, embedding: Any, height: int, width: int, points_per_side: int = POINTS_PER_SIDE
) -> Candidates:
    """The answers to one positive point at each place of a grid, without duplicates.

    A point that lies on a segmenter's favourite answer to an earlier one is left out, as it would give the same again.
    """
    masks: list[Bool[Tensor, "height width"]] = []
    scores: list[float] = []
    covered = torch.zeros(height, width, dtype=torch.bool)
    for row in range(points_per_side):
        for column in range(points_per_side):
            x, y = int((column + 0.5) * width / points_per_side), int((row + 0.5) * height / points_per_side)
            if covered[y, x]:
                continue
            answer = segmenter.predict(embedding, Prompt.from_points(height, width, [(x, y)]))
            covered |= answer.best().cpu()
            masks += list(answer.masks.cpu())
            scores += answer.scores.tolist()
    if not masks:
        return no_proposals(height, width)
    stacked, sure = torch.stack(masks), torch.tensor(scores)
    kept = distinct(stacked, sure)
    return Candidates(stacked[kept], sure[kept])


def no_proposals(height: int, width: int) -> Candidates:
    """The answer where there is nothing to propose."""
    return Candidates(torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0))


def distinct(
    masks: Bool[Tensor, "num height width"], scores: Float[Tensor, " num"], iou: float = DUPLICATE_IOU
) -> list[int]:
    """Non-maximum suppression of masks: indices of those that are not like one with a higher score. None is empty."""
    flat = masks.flatten(1).float()
    areas = flat.sum(1)
    shared = flat @ flat.T
    alike = shared / (areas[:, None] + areas - shared).clamp(min=1)
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if areas[index] > 0 and not any(alike[index, other] >= iou for other in kept):
            kept.append(index)
    return kept
