"""Which rays meet the object in a mask grid; nothing is rendered for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

if TYPE_CHECKING:
    from sa3d_nerfstudio.fields.mask_grid import MaskGrid

STEPS = 96
"""Places along a ray at which widened cells are tested."""
SAMPLES_AT_A_TIME = 1 << 20


def passing(
    grid: MaskGrid,
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    threshold: float = 0.5,
) -> Bool[Tensor, " num_rays"]:
    """Which rays pass through a block of cells that holds a part of the object, whatever stands in front.

    Errs on the side of True: cells are widened by one before they are tested.
    """
    r = grid.resolution

    def widen() -> Tensor:
        on = grid.object_cells(threshold).float().reshape(1, 1, r, r, r)
        return F.max_pool3d(on, 3, stride=1, padding=1).reshape(-1, 1)

    widened = grid.derived(("widened", threshold), widen)
    return _any_along(grid, origins, directions, threshold, 2, STEPS, widened, lambda found: found[..., 0] > 0)


def may_show(
    grid: MaskGrid,
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    threshold: float = 0.5,
) -> Bool[Tensor, " num_rays"]:
    """Which rays show the object, as far as that can be told without what stands in front of it.

    The mask of a ray is a mean of the probabilities along it, weighted by what is known there. So it exceeds the
    threshold only where a probability does, somewhere on the ray: that is tested once a cell, in cells near the object.
    """
    steps = 1

    def values() -> Tensor:
        return torch.cat([grid.cells(), grid.object_cells(threshold)[:, None].float()], dim=-1)

    if bool(grid.object_cells(threshold).any()):
        low, high = grid.object_bounds(threshold)
        steps = math.ceil(float(((high - low) / grid.cell_size + 2).norm()))
    along = grid.derived(("probability, known, object", threshold), values)
    return _any_along(
        grid, origins, directions, threshold, 1, steps, along,
        lambda found: (found[..., 0] > threshold * found[..., 1]) & (found[..., 2] > threshold / 2),
    )  # fmt: skip


def _any_along(
    grid: MaskGrid,
    origins: Tensor,
    directions: Tensor,
    threshold: float,
    margin: int,
    num_steps: int,
    values: Float[Tensor, "num_cells channels"],
    test: Callable[[Tensor], Tensor],
) -> Bool[Tensor, " num_rays"]:
    """Whether values read anywhere along a ray, within the object's bounds and some cells around, pass a test."""
    passed = torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
    if not bool(grid.object_cells(threshold).any()):
        return passed
    low, high = grid.object_bounds(threshold)
    low, high = low - margin * grid.cell_size, high + margin * grid.cell_size
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    t0, t1 = (low - origins) / safe, (high - origins) / safe
    near = torch.minimum(t0, t1).amax(-1).clamp(min=0)
    far = torch.maximum(t0, t1).amin(-1)
    candidates = torch.nonzero(near < far)[:, 0]
    steps = (torch.arange(num_steps, device=origins.device) + 0.5) / num_steps
    for chunk in candidates.split(max(1, SAMPLES_AT_A_TIME // num_steps)):
        t = near[chunk, None] + (far - near)[chunk, None] * steps
        x = origins[chunk, None] + directions[chunk, None] * t[..., None]
        found = grid.gather(values, x.reshape(-1, 3)).reshape(len(chunk), num_steps, values.shape[1])
        passed[chunk] = test(found).any(-1)
    return passed
