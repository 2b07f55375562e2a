"""Proposals: all masks that a segmenter finds in an image without a prompt."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter

POINTS_PER_SIDE = 16
"""Points along each side of the grid of prompts, for segmenters that make no proposals themselves."""
DUPLICATE_IOU = 0.7
"""IoU from which on two masks of an image are duplicates; Segment Anything's generator uses this value for boxes."""


@runtime_checkable
class ProposalSegmenter(Protocol):
    """A segmenter that proposes all masks of an image itself."""

    def propose(self, embedding: Any) -> Candidates:
        """Propose all masks of an embedded image, of any size, nested ones included; there may be none."""
        ...


def propose(segmenter: Segmenter, embedding: Any, height: int, width: int) -> Candidates:
    """Propose all masks of an image: the segmenter's own proposals, or else its masks for a grid of points.

    Args:
        segmenter: Any segmenter.
        embedding: Its embedding of the image.
        height: Rows of the image.
        width: Columns of the image.
    """
    if isinstance(segmenter, ProposalSegmenter):
        return segmenter.propose(embedding)
    return grid_proposals(segmenter, embedding, height, width)


def grid_proposals(
    segmenter: Segmenter, embedding: Any, height: int, width: int, points_per_side: int = POINTS_PER_SIDE
) -> Candidates:
    """Masks for one positive point at each node of a grid, without duplicates.

    A point on the segmenter's favourite mask for an earlier point is skipped, as it would give the same masks again.
    """
    masks: list[Bool[Tensor, "height width"]] = []
    scores: list[float] = []
    covered = torch.zeros(height, width, dtype=torch.bool)
    for row in range(points_per_side):
        for column in range(points_per_side):
            x, y = int((column + 0.5) * width / points_per_side), int((row + 0.5) * height / points_per_side)
            if covered[y, x]:
                continue
            candidates = segmenter.predict(embedding, Prompt.from_points(height, width, [(x, y)]))
            covered |= candidates.best().cpu()
            masks += list(candidates.masks.cpu())
            scores += candidates.scores.tolist()
    if not masks:
        return no_proposals(height, width)
    stacked, confidences = torch.stack(masks), torch.tensor(scores)
    indices = without_duplicates(stacked, confidences)
    return Candidates(stacked[indices], confidences[indices])


def no_proposals(height: int, width: int) -> Candidates:
    """Proposals for an image without any masks."""
    return Candidates(torch.zeros(0, height, width, dtype=torch.bool), torch.zeros(0))


def without_duplicates(
    masks: Bool[Tensor, "num height width"], scores: Float[Tensor, " num"], iou: float = DUPLICATE_IOU
) -> list[int]:
    """Non-maximum suppression: indices of the masks that are not empty and duplicate none with a higher score."""
    flat = masks.flatten(1).float()
    areas = flat.sum(1)
    intersections = flat @ flat.T
    alike = intersections / (areas[:, None] + areas - intersections).clamp(min=1)
    chosen: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if areas[index] > 0 and not any(alike[index, other] >= iou for other in chosen):
            chosen.append(index)
    return chosen
