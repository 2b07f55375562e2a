"""Figures for masks in images, and for points in space."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
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
