"""Extremes over the square neighbourhoods of pixels, taken along columns and then along rows."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def highest_nearby(values: Float[Tensor, "height width"], reach: int) -> Float[Tensor, "height width"]:
    """Highest value within ``reach`` rows and columns of each pixel."""
    size = 2 * reach + 1
    along_columns = F.max_pool2d(values[None], (size, 1), stride=1, padding=(reach, 0))
    return F.max_pool2d(along_columns, (1, size), stride=1, padding=(0, reach))[0]


def lowest_nearby(values: Float[Tensor, "height width"], reach: int) -> Float[Tensor, "height width"]:
    """Lowest value within ``reach`` rows and columns of each pixel."""
    return -highest_nearby(-values, reach)


def dilated(mask: Bool[Tensor, "height width"], reach: int) -> Bool[Tensor, "height width"]:
    """Pixels with any pixel of a mask within ``reach`` rows and columns."""
    return highest_nearby(mask.float(), reach) > 0
