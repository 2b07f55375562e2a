"""Connected parts of a region of pixels or cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage


def label_parts(region: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a region of any dimension; cells that touch at a corner are connected.

    Returns:
        The number of the part that each cell belongs to, from 1 (0 outside the region); and how many parts there are.
    """
    labels: Any = ndimage.label(region, structure=np.ones((3,) * region.ndim))
    return labels


def large_parts(region: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The parts of a region that have at least this share of the largest part's cells."""
    labels, _ = label_parts(region)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    return (sizes >= share * sizes.max())[labels] & region
