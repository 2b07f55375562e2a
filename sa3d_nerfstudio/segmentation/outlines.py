"""Outlines that are too wide or too narrow in all views: how far they lie from edges in depth, and masks without that.

The fit of the field to the masks explains what all views agree on, and so cannot tell whether a segmenter draws all its
outlines a little too wide. The depth of the views can, where an object ends in front of something farther away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import quantiles

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.mask_depth import STEEP, bounding_slices
from sa3d_nerfstudio.segmentation.neighborhoods import dilated, lowest_nearby
from sa3d_nerfstudio.traces.base import ViewTrace

REFERENCE = 160
"""Longer side in pixels of the images in which the distances below are given."""
REACH = 1.5
"""Distance from an outline up to which an edge in depth is looked for."""
FEWEST_PIXELS = 10.0
"""Length of outline near edges from which on a view counts."""
FEWEST_VIEWS = 8
"""Number of such views from which on masks are changed."""
TOLERATED = 0.2
"""Offset that three quarters of the views must exceed before masks are changed. Fields that a CPU has trained have
objects a little wider or narrower than the true ones: of exact masks, three quarters exceed 0.1 at most, though their
medians reach 0.35."""


def scale_of(mask: Bool[Tensor, "height width"], long_side: int | None) -> float:
    """Size of an image relative to :data:`REFERENCE`; ``long_side`` is the whole image's, where it is a window."""
    return (long_side or max(mask.shape)) / REFERENCE


def outline_measures(
    trace: ViewTrace, mask: Bool[Tensor, "height width"], spacing: float | Tensor, scale: float
) -> Float[Tensor, "2"]:
    """Area between a mask's outline and edges in depth, negative inside of the edges, and length of that outline.

    An edge separates the inside of the mask from a surface outside that lies behind it by more than one surface could
    within that distance; it is taken half-way between the two depths. On a GPU, the host does not wait.

    Args:
        trace: Trace of the view.
        mask: Mask of the object in the view.
        spacing: Distance in space between the surface points of neighbouring pixels of the mask.
        scale: :func:`scale_of` the image. The results are in pixels of an image of :data:`REFERENCE`.
    """
    depth, mask = trace.depth[..., 0], mask.to(trace.depth.device)
    reach = max(round(REACH * scale), 1)
    # Most objects are small: only pixels around the mask are worked on.
    window = bounding_slices(mask, margin=3 * reach)
    depth, mask = depth[window], mask[window]
    if not len(mask):
        return depth.new_zeros(2)
    outer, beside = mask & dilated(~mask, reach), ~mask & dilated(mask, reach)
    inside = lowest_nearby(torch.where(mask & ~outer, depth, torch.inf), 2 * reach)
    outside = lowest_nearby(torch.where(mask | beside, torch.inf, depth), 2 * reach)
    at_edge = outside.isfinite() & (outside - inside > STEEP * 2 * reach * spacing)
    behind = depth - inside > (outside - inside) / 2
    surplus, lacking = outer & at_edge & behind, beside & at_edge & ~behind
    outline = mask & dilated(~mask, 1) & at_edge
    return torch.stack([(surplus.sum() - lacking.sum()) / scale**2, outline.sum() / scale])


def common_offset(measures: Iterable[Sequence[float]]) -> float:
    """Distance by which the outlines of all views lie outside of edges in depth, in pixels of :data:`REFERENCE`.

    Args:
        measures: :func:`outline_measures` of each view, on the host.

    Returns:
        The median over the views; 0 if it is tolerated, or if too few views have edges.
    """
    offsets = [area / length for area, length in measures if length >= FEWEST_PIXELS]
    if len(offsets) < FEWEST_VIEWS:
        return 0.0
    low, median, high = quantiles(offsets, n=4)
    return median if low > TOLERATED or high < -TOLERATED else 0.0


def without_offset(mask: Bool[Tensor, "height width"], offset: float, scale: float) -> Bool[Tensor, "height width"]:
    """A mask with its whole outline moved by an offset, to the next pixel: a segmenter errs alike where no edge is.

    Args:
        mask: The mask.
        offset: :func:`common_offset` of the views.
        scale: :func:`scale_of` the image.
    """
    pixels = round(abs(offset) * scale)
    if pixels == 0:
        return mask
    return ~dilated(~mask, pixels) if offset > 0 else dilated(mask, pixels)
