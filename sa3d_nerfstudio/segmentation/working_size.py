"""How large the images must be in which an object is segmented."""

from __future__ import annotations

import math
from collections.abc import Iterable

from jaxtyping import Bool
from torch import Tensor

SHARE = 0.1
"""Of the image's longer side, what the longer side of a small object's bounds is brought to."""
MOST = 2.0
"""Images are made larger by this factor at most: they cost its square."""


def magnification(masks: Iterable[Bool[Tensor, "height width"]]) -> float:
    """How much larger than the usual ones images should be for an object that the prompted views show.

    Args:
        masks: Of the object, in images of any size.

    Returns:
        1 where it is large enough in one of them, else √2 or 2: steps, so that objects of about one size share their
        renders.
    """
    share = 0.0
    for mask in masks:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        if len(rows):
            extent = max(int(part.max() - part.min()) + 1 for part in (rows, columns))
            share = max(share, extent / max(mask.shape))
    if share == 0:
        return 1.0
    steps = math.ceil(2 * math.log2(max(SHARE / share, 1)) - 1e-6)
    return min(2 ** (steps / 2), MOST)
