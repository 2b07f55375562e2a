"""The surface that the pixels of a mask see."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.traces.base import ViewTrace


def pixel_spacing(trace: ViewTrace, mask: Bool[Tensor, "height width"]) -> float:
    """Distance in space between what neighbouring pixels of a mask see; the median over its pixels.

    Of a pixel's right and lower neighbours the nearer one counts, so that slanted surfaces do not look coarse.
    """
    window = window_of(mask, margin=1)
    points, mask = trace.surface_points().reshape(trace.height, trace.width, 3)[window], mask[window]
    right = (points[:-1, 1:] - points[:-1, :-1]).norm(dim=-1)
    down = (points[1:, :-1] - points[:-1, :-1]).norm(dim=-1)
    spacing = torch.minimum(right, down)[mask[:-1, :-1].to(points.device)]
    return float(spacing.median()) if len(spacing) else 0.0


def window_of(mask: Bool[Tensor, "height width"], margin: int) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box, and some more on each side; none if the mask is empty."""
    sides = []
    for axis in (1, 0):
        places = mask.any(dim=axis).nonzero()[:, 0]
        low, high = (int(places[0]), int(places[-1]) + 1 + margin) if len(places) else (0, 0)
        sides.append(slice(max(low - margin, 0), high))
    return sides[0], sides[1]


def surface_of(
    trace: ViewTrace, mask: Bool[Tensor, "height width"], camera_position: Float[Tensor, "3"]
) -> Float[Tensor, "num_points 3"]:
    """Points of the surface that a mask covers, seen from one side.

    Pixels at the mask's border may see what lies behind the object; they are brought back along their rays into the
    range of depth of those inside.
    """
    mask = mask.to(trace.depth.device)
    inner = mask & ~F.max_pool2d((~mask)[None].float(), 3, stride=1, padding=1)[0].bool()
    depth = trace.depth[..., 0]
    near, far = depth[inner if inner.any() else mask].quantile(depth.new_tensor([0.02, 0.98]))
    factor = depth.clamp(near, far) / depth.clamp(min=1e-9)
    camera = camera_position.to(depth)
    return (camera + (trace.surface_points() - camera) * factor.reshape(-1, 1))[mask.reshape(-1)]
