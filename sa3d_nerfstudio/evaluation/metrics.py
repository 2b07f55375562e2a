"""Metrics of masks in images, and of points in space."""

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
    """Share of all pixels, background included, on which both masks agree."""
    return float((predicted == truth).mean())


def boundary_iou(predicted: Mask, truth: Mask, share: float = 0.02) -> float:
    """IoU of the rims of both masks, inside their outlines (Boundary IoU, arXiv 2103.16562).

    IoU hardly depends on the outline of a large object; this metric depends on nothing else.

    Args:
        predicted: The predicted mask.
        truth: The true mask, of the same size.
        share: Width of the rim as a share of the image's diagonal; one pixel at least.
    """
    height, columns = truth.shape
    width = max(round(share * float(np.hypot(height, columns))), 1)
    return iou(_rim(predicted, width), _rim(truth, width))


def _rim(mask: Mask, width: int) -> Mask:
    """Pixels of a mask at most ``width`` pixels inside its outline. Pixels beyond the image count as outside."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=[0.0])
    inner = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return mask & (inner == 0)


@dataclass
class PointScores:
    """Precision and recall of points in space against a surface."""

    precision: float
    """Share of the points that lie near the surface."""
    recall: float
    """Share of the surface that has a point near it."""


def point_scores(
    points: Float[np.ndarray, "num_points 3"], surface: Float[np.ndarray, "num_samples 3"], tolerance: float
) -> PointScores:
    """Precision and recall of points against samples of the true surface.

    Args:
        points: Points in the frame and the unit of the surface.
        surface: Samples spread evenly over the surface, closer than the tolerance, or precision comes out too low.
        tolerance: Distance that counts as near.
    """
    if not len(points) or not len(surface):
        return PointScores(0.0, 0.0)
    near = KDTree(surface).query(points)[0] <= tolerance
    covered = KDTree(points).query(surface)[0] <= tolerance
    return PointScores(float(near.mean()), float(covered.mean()))


IdMap = Int[np.ndarray, "height width"]

MATCH_IOU = 0.5
"""IoU above which two segments match; no segment has more than one match above it."""


@dataclass
class PanopticScores:
    """Agreement of id maps, whatever the ids' values (Panoptic Segmentation, arXiv 1801.00868)."""

    matched: int
    """Number of true segments with a match."""
    missed: int
    """Number of true segments without a match."""
    wrong: int
    """Number of predicted segments without a match."""
    total_iou: float
    """Sum of the IoU of all matches."""

    @property
    def quality(self) -> float:
        """Panoptic quality: Σ IoU / (matched + missed / 2 + wrong / 2); 1 without any segments."""
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

    Pixels that are 0 in the truth are unlabelled: a predicted segment mostly on them is neither right nor wrong, as
    they may show an object. In a match, they lower the IoU like any others.

    Args:
        pairs: Predicted and true id map of each image, 0 for none.
        min_share: Least share of an image's pixels for a true segment to count, and for a predicted one to be wrong.
    """
    scores = PanopticScores(0, 0, 0, 0.0)
    for predicted, truth in pairs:
        min_pixels = max(min_share * truth.size, 1)
        matched_ids = set()
        for number in np.unique(truth[truth > 0]):
            mask = truth == number
            if mask.sum() < min_pixels:
                continue
            ious = {int(label): iou(predicted == label, mask) for label in np.unique(predicted[mask]) if label > 0}
            best = max(ious, key=ious.__getitem__, default=0)
            if ious.get(best, 0.0) > MATCH_IOU:
                matched_ids.add(best)
                scores.matched += 1
                scores.total_iou += ious[best]
            else:
                scores.missed += 1
        for number in np.unique(predicted[predicted > 0]):
            mask = predicted == number
            if number not in matched_ids and mask.sum() >= min_pixels and (truth[mask] > 0).mean() > 0.5:
                scores.wrong += 1
    return scores
