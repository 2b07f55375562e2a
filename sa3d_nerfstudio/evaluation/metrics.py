"""Figures for masks in images, and for points in space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

Mask = Bool[np.ndarray, "height width"]


def iou(predicted: Mask, truth: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def pixel_accuracy(predicted: Mask, truth: Mask) -> float:
    """Share of the pixels, background included, that both call the same."""
    return float((predicted == truth).mean())


def boundary_iou(predicted: Mask, truth: Mask, share: float = 0.02) -> float:
    """IoU of the parts of both masks that lie near their own outlines (Boundary IoU, arXiv 2103.16562).

    IoU hardly sees the outline of a large object; this sees nothing else.

    Args:
        predicted: The mask to judge.
        truth: The true one, of the same size.
        share: How far inside counts as near, as a share of the image's diagonal; one pixel at least.
    """
    height, columns = truth.shape
    width = max(round(share * float(np.hypot(height, columns))), 1)
    return iou(_rim(predicted, width), _rim(truth, width))


def _rim(mask: Mask, width: int) -> Mask:
    """The pixels of a mask no deeper than ``width`` inside it. What lies beyond the image is outside."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0.0])
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


@dataclass
class PointScores:
    """How well points in space cover a surface."""

    precision: float
    """Share of the points that lie near the surface."""
    recall: float
    """Share of the surface that has a point near it."""


def point_scores(
    points: Float[np.ndarray, "num_points 3"], surface: Float[np.ndarray, "num_samples 3"], tolerance: float
) -> PointScores:
    """Precision and recall of points against samples of the true surface.

    Args:
        points: In the frame and the unit of the surface.
        surface: Points spread evenly over it; closer to each other than the tolerance, or precision comes out too low.
        tolerance: Distance that counts as near.
    """
    if not len(points) or not len(surface):
        return PointScores(0.0, 0.0)
    near = KDTree(surface).query(points)[0] <= tolerance
    covered = KDTree(points).query(surface)[0] <= tolerance
    return PointScores(float(near.mean()), float(covered.mean()))


IdMap = Int[np.ndarray, "height width"]

MATCH_IOU = 0.5
"""IoU above which two segments are the same: none has more than one such match."""


@dataclass
class PanopticScores:
    """How well id maps agree, whatever the ids are called (Panoptic Segmentation, arXiv 1801.00868)."""

    matched: int
    """True segments that a predicted one matches."""
    missed: int
    """True segments that none does."""
    wrong: int
    """Predicted segments that match none."""
    total_iou: float
    """Of all matches."""

    @property
    def quality(self) -> float:
        """Panoptic quality: Σ IoU / (matched + missed / 2 + wrong / 2); 1 where there is nothing at all."""
        count = self.matched + (self.missed + self.wrong) / 2
        return self.total_iou / count if count else 1.0

    @property
    def segmentation(self) -> float:
        """Segmentation quality: the mean IoU of the matches."""
        return self.total_iou / self.matched if self.matched else 0.0

    @property
    def recognition(self) -> float:
        """Recognition quality: the F1 score of the matches."""
        count = self.matched + (self.missed + self.wrong) / 2
        return self.matched / count if count else 1.0


def panoptic_scores(pairs: Sequence[tuple[IdMap, IdMap]], min_share: float = 0.001) -> PanopticScores:
    """Compare id maps, image by image.

    What is 0 in the truth is unlabelled: a predicted segment that lies there for the most part is neither right nor
    wrong, as an object may well be there. In a match, such pixels count against it like any others.

    Args:
        pairs: The predicted and the true id map of each image, 0 for none.
        min_share: Of an image's pixels, what a segment must cover to be looked for, or to be wrong.
    """
    scores = PanopticScores(0, 0, 0, 0.0)
    for predicted, truth in pairs:
        least = max(min_share * truth.size, 1)
        found = set()
        for number in np.unique(truth[truth > 0]):
            mask = truth == number
            if mask.sum() < least:
                continue
            rivals = {int(other): iou(predicted == other, mask) for other in np.unique(predicted[mask]) if other > 0}
            best = max(rivals, key=rivals.__getitem__, default=0)
            if rivals.get(best, 0.0) > MATCH_IOU:
                found.add(best)
                scores.matched += 1
                scores.total_iou += rivals[best]
            else:
                scores.missed += 1
        for number in np.unique(predicted[predicted > 0]):
            mask = predicted == number
            if number not in found and mask.sum() >= least and (truth[mask] > 0).mean() > 0.5:
                scores.wrong += 1
    return scores
