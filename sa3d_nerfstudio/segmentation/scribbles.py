"""Brush strokes as points, which is what segmenters take."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.morphology import skeletonize

POSITIVE_SHARE = 0.02
NEGATIVE_SHARE = 0.005
"""Shares of a stroke's skeleton that are kept as points: those of SA3D's code for NVOS (Ren et al., CVPR 2022)."""
SEED = 777
"""As there."""


def draw_polyline(points: object, height: int, width: int) -> NDArray[np.bool_]:
    """Pixels of a polyline one pixel wide.

    Args:
        points: (x, y) pixel indices from the top left, array-like of shape [num, 2].
        height: Of the image.
        width: Of the image.
    """
    canvas = np.zeros((height, width), np.uint8)
    vertices = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2).round().astype(np.int32)
    return cv2.polylines(canvas, [vertices], isClosed=False, color=(1,)) > 0


def points_of_stroke(stroke: NDArray[np.bool_], positive: bool, seed: int = SEED) -> NDArray[np.float32]:
    """Draw points from the skeleton of a stroke: a fixed share of its pixels, at least one, the same each time.

    Args:
        stroke: Painted pixels, [height, width].
        positive: Whether the stroke lies on the object; strokes beside it are drawn from more sparsely.
        seed: Of the generator that draws.

    Returns:
        (x, y) of each point, [num, 2]; none for an empty stroke.
    """
    y, x = np.nonzero(skeletonize(stroke)) if stroke.any() else (np.zeros(0), np.zeros(0))
    if len(x) == 0:
        # The skeleton of a single dot is empty in some versions of scikit-image.
        y, x = np.nonzero(stroke)
    share = POSITIVE_SHARE if positive else NEGATIVE_SHARE
    generator = np.random.default_rng(seed)
    keep = generator.random(len(x)) < share
    if len(x) and not keep.any():
        keep[len(x) // 2] = True
    return np.stack([x[keep], y[keep]], axis=-1).astype(np.float32)
