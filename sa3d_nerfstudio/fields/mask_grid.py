"""The mask grid: evidence per voxel, dense around the object, contracted beyond it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.connected_parts import large_parts
from sa3d_nerfstudio.fields.trilinear import Fractions

RIM_WIDTH = 0.25
"""Share of the box's half width that all of space outside is contracted into (see ``MaskGrid.contract``)."""
REACH = 1.5
"""Largest distance from the box's centre that the object may reach, in half widths; cells beyond are too coarse."""
MAX_OUTSIDE = 0.05
"""Share of a prompted surface that may lie outside of the box before it is widened."""
MIN_RESOLUTION = 16
"""Smallest number of vertices along each axis, however coarse the images are."""
MARGIN = 0.15
"""Margin of the box around an object's known bounds, as a share of their half width."""

FIRST_MARGIN = 0.5
"""Margin of the first box, around the prompted surface."""


FAINT = 0.2
"""``hit`` below which a cell does not widen an object's box, as a share of the median over its cells."""
SPECK = 0.05
"""Parts of an object smaller than this share of the largest are specks."""


class MaskGrid(MaskField):
    """Voxels that store evidence at their vertices and are read trilinearly.

    The grid is placed in a box of world space. The box takes 1 / (1 + ``RIM_WIDTH``) of the cells along each axis, and
    the remaining rim covers all space outside of it, so that no evidence is lost. Memory layout is [z, y, x].
    """

    half_extent: Float[Tensor, "3"]

    def __init__(self, resolution: int = 128) -> None:
        super().__init__(resolution**3)
        self.max_resolution = resolution
        self._placement: tuple[list[tuple[Tensor, int]], tuple[float, ...]] | None = None
        self._corner_offsets: tuple[int, Tensor] | None = None
        self.register_buffer("center", torch.zeros(3))
        self.register_buffer("half_extent", torch.ones(3))

    @property
    def resolution(self) -> int:
        """Vertices along each axis."""
        return round(self.num_cells ** (1 / 3))

    def corner_offsets(self) -> Int[Tensor, "8 1"]:
        """:func:`trilinear.corner_offsets`, made on the evidence's device, so that the host does not wait for it."""
        cached, r = self._corner_offsets, self.resolution
        if cached is None or cached[0] != r or cached[1].device != self.hit.device:
            corner = torch.arange(8, device=self.hit.device)[:, None]
            cached = self._corner_offsets = r, (corner >> 2) * r**2 + (corner >> 1 & 1) * r + (corner & 1)
        return cached[1]

    @property
    def cell_size(self) -> Float[Tensor, ""]:
        """Side of a cell within the box, along the box's longest side."""
        return 2 * self.half_extent.max() * (1 + RIM_WIDTH) / (self.resolution - 1)

    def place(self, center: Float[Tensor, "3"], half_extent: Float[Tensor, "3"]) -> None:
        """Place the box, and drop the evidence."""
        self.center = center.to(self.hit).clone()
        self.half_extent = half_extent.to(self.hit).clone()
        self.set(torch.zeros_like(self.hit), torch.zeros_like(self.seen))

    def place_around(
        self,
        points: Float[Tensor, "num_points 3"],
        weights: Float[Tensor, " num_points"] | None = None,
        spacing: float = 0.0,
        margin: float = MARGIN,
    ) -> None:
        """Place the box as a cube around points of the object without the few that stray, and drop the evidence.

        Args:
            points: Points on the object, in world space.
            weights: Weight of each point; equal by default.
            spacing: Distance between the rays of neighbouring pixels at the object. Cells are made no finer: finer
                cells would lie between the rays of all views, and stay unknown.
            margin: Margin of the box around the points' bounds, as a share of their half width.
        """
        low, high = robust_bounds(points, weights)
        half = ((high - low).max() / 2 * (1 + margin)).clamp(min=1e-6)
        cells = 2 * float(half) * (1 + RIM_WIDTH) / spacing if spacing > 0 else torch.inf
        resolution = int(min(max(cells + 1, MIN_RESOLUTION), self.max_resolution))
        self.hit = self.seen = self.hit.new_zeros(resolution**3)
        self.place((low + high) / 2, half.expand(3))

    def prepare(self, surface: Float[Tensor, "num_points 3"], spacing: float) -> None:
        """Place the grid around points of the object, with room for its unseen sides."""
        self.place_around(surface, spacing=spacing, margin=FIRST_MARGIN)

    def placed_again(self, spacing: float) -> MaskGrid:
        """An empty grid around the object as segmented so far; in the same place if that still fits."""
        points, weights = self.object_points()
        if len(points) == 0:
            return self.fresh()
        placed = self.fresh()
        placed.place_around(points, weights, spacing)
        size = float(placed.half_extent.max() / self.half_extent.max())
        shift = float((placed.center - self.center).abs().max() / self.half_extent.max())
        finer = placed.resolution / self.resolution
        fits = 0.75 < size < 1.1 and shift < 0.15 and 0.75 < finer < 1.33
        return self.fresh() if fits else placed

    def same_cells(self, other: MaskGrid) -> bool:
        """Whether the other grid has the same box and resolution."""
        same_place = torch.equal(self.center, other.center) and torch.equal(self.half_extent, other.half_extent)
        return same_place and self.num_cells == other.num_cells

    def fresh(self) -> MaskGrid:
        """A grid in the same place with no evidence."""
        grid = MaskGrid(self.resolution).to(self.hit.device)
        grid.max_resolution = self.max_resolution
        grid.place(self.center, self.half_extent)
        return grid

    def copy_from(self, other: MaskGrid) -> None:
        """Take over another grid's place, evidence and logits."""
        self.place(other.center, other.half_extent)
        self.set(other.hit.clone(), other.seen.clone())
        if other.logits is not None:
            self.set_logits(other.logits.clone())

    def resampled(self, place: MaskGrid) -> MaskGrid:
        """This grid's evidence and logits read at the vertices of another."""
        grid = place.fresh()
        logits = self.hit if self.logits is None else self.logits
        values = self.gather(torch.stack([self.hit, self.seen, logits], dim=-1), grid.cell_positions()).T.contiguous()
        grid.set(values[0], values[1])
        if self.logits is not None:
            grid.set_logits(grid.bounded(values[2]))
        return grid

    def placement(self) -> tuple[float, ...]:
        """Center, half extent and resolution as numbers, which determine the positions of all vertices.

        Cached, so that they are read only once from their device.
        """
        tensors = self.center, self.half_extent
        cached = self._placement
        if cached is None or any(a is not b or a._version != v for a, (b, v) in zip(tensors, cached[0], strict=True)):
            numbers = torch.cat(tensors).tolist()
            cached = self._placement = [(tensor, tensor._version) for tensor in tensors], (*numbers, self.resolution)
        return cached[1]

    def contract(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Map world positions to grid coordinates in (-1, 1).

        The contraction of mip-NeRF 360 (arXiv 2111.12077, eq. 10) in the maximum norm, with a rim of width
        ``RIM_WIDTH`` instead of 1: x stays x inside the unit box, and becomes
        (1 + o (1 - 1 / (1 + (|x| - 1) / o))) x / |x| outside it. The slope is 1 on both sides of the border, so a cell
        there is as large as one inside.
        """
        x = (positions - self.center) / self.half_extent
        norm = x.abs().amax(dim=-1, keepdim=True)
        beyond = (norm - 1).clamp(min=0) / RIM_WIDTH
        radius = norm.clamp(max=1) + RIM_WIDTH * (1 - 1 / (1 + beyond))
        return x * (radius / norm.clamp(min=1e-9)) / (1 + RIM_WIDTH)

    def cell_positions(self) -> Float[Tensor, "num_cells 3"]:
        """World position of each vertex; those on the border, which represent infinity, are placed far out."""
        line = torch.linspace(-1, 1, self.resolution, device=self.hit.device)
        z, y, x = torch.meshgrid(line, line, line, indexing="ij")
        u = torch.stack([x, y, z], dim=-1).reshape(-1, 3) * (1 + RIM_WIDTH)
        norm = u.abs().amax(dim=-1, keepdim=True)
        beyond = ((norm - 1).clamp(min=0) / RIM_WIDTH).clamp(max=1 - 1e-3)
        radius = norm.clamp(max=1) + RIM_WIDTH * (1 / (1 - beyond) - 1)
        return self.center + u * (radius / norm.clamp(min=1e-9)) * self.half_extent

    def located(
        self, x: Float[Tensor, "*batch"], y: Float[Tensor, "*batch"], z: Float[Tensor, "*batch"]
    ) -> tuple[Int[Tensor, " num"], Fractions]:
        """The first vertex of the block of eight that each position lies in, and its fractions within the block.

        Args:
            x: World positions less ``center`` over ``half_extent``; overwritten, as are y and z.
            y: Likewise.
            z: Likewise.
        """
        r = self.resolution
        # The contraction, see contract(). The border of the grid is (r - 1) / 2 cells from its middle, and rounding
        # must take no position beyond it.
        half = 0.5 * (r - 1) * (1 - 1e-6)
        norm = torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs()).clamp_(min=1)
        scale = (
            (norm + (RIM_WIDTH - 1)).reciprocal_().mul_(-(RIM_WIDTH**2) * half / (1 + RIM_WIDTH)).add_(half).div_(norm)
        )
        u = [axis.mul_(scale).add_(0.5 * (r - 1)) for axis in (x, y, z)]
        first = [axis.floor() for axis in u]
        fx, fy, fz = (axis.sub_(low).reshape(-1) for axis, low in zip(u, first, strict=True))
        # Indices up to 256^3 = 2^24 are exact in single precision; larger grids take doubles.
        i, j, k = first if r <= 256 else [low.double() for low in first]
        index = k.mul_(r).add_(j).mul_(r).add_(i).long()
        return index.reshape(-1), (fx, fy, fz)

    def gather(
        self, values: Float[Tensor, "num_cells channels"], positions: Float[Tensor, "num_samples 3"]
    ) -> Float[Tensor, "num_samples channels"]:
        """Read values stored at the vertices, trilinearly, at world positions."""
        r = self.resolution
        volume = values.T.reshape(1, -1, r, r, r)
        grid = self.contract(positions).reshape(1, 1, 1, -1, 3)
        return F.grid_sample(volume, grid, align_corners=True).reshape(values.shape[1], -1).T

    def scatter(
        self, values: Float[Tensor, "num_samples channels"], positions: Float[Tensor, "num_samples 3"]
    ) -> Float[Tensor, "num_cells channels"]:
        """The adjoint of :meth:`gather`: add values at world positions to the vertices around them."""
        index, fractions = self.located(*((positions - self.center) / self.half_extent).unbind(-1))
        out = values.new_zeros(values.shape[1], self.num_cells)
        for channel, value in zip(out, values.unbind(-1), strict=True):
            trilinear.add(channel, value, index, fractions, self.resolution)
        return out.T

    def _near(self) -> Bool[Tensor, " num_cells"]:
        """Vertices no farther out than ``REACH``; an object that outgrows its box moves the box in the next pass.

        Farther out a cell is as large as the object, and rays that graze it leave blobs on the background.
        """
        reach = (1 + RIM_WIDTH * (1 - 1 / (1 + (REACH - 1) / RIM_WIDTH))) / (1 + RIM_WIDTH)
        near = torch.linspace(-1, 1, self.resolution, device=self.hit.device).abs() <= reach
        return (near[:, None, None] & near[:, None] & near).reshape(-1)

    def with_room_for(self, surface: Float[Tensor, "num_points 3"], spacing: float, num_views: int) -> MaskGrid:
        """The same evidence; in a wider box if the prompted surface lies beyond the fine cells of this one."""
        beyond = self._outside(surface)
        if not bool(self.object_cells().any()) or beyond.float().mean() < MAX_OUTSIDE:
            return self
        wider = self.fresh()
        points = self.object_points()[0]
        # Both sets weigh the same: the prompted surface may have few pixels, which are no outliers.
        weights = torch.cat([torch.full_like(group[:, 0], 1 / len(group)) for group in (points, surface[beyond])])
        wider.place_around(torch.cat([points, surface[beyond]]), weights, spacing)
        result = self.resampled(wider)
        # A coarse cell holds the rays of many fine cells: evidence from coarse cells counts as that of one view.
        share = torch.where(self._outside(result.cell_positions()), 1 / num_views, 1.0)
        result.set(result.hit * share, result.seen * share)
        return result

    def _outside(self, positions: Float[Tensor, "num 3"]) -> Bool[Tensor, " num"]:
        return self.contract(positions).abs().amax(dim=-1) * (1 + RIM_WIDTH) > 1

    def object_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], Float[Tensor, " num"]]:
        """World positions of the vertices on the object, with the weight of the rays on the object."""
        on = self.object_cells(threshold)
        return self.cell_positions()[on], self.hit[on]

    def object_bounds(self, threshold: float = 0.5) -> Float[Tensor, "2 3"]:
        """Lowest and highest corner of the box around the object's vertices, which must exist."""

        def bounds() -> Tensor:
            points, _ = self.object_points(threshold)
            return torch.stack([points.amin(0), points.amax(0)])

        return self.derived(("bounds", threshold), bounds)

    def filled_probability(self, threshold: float = 0.5) -> Float[Tensor, " num_cells"]:
        """Probability of all cells: those that no ray reached, such as an object's inside, take it from cells around.

        Averages over ever coarser blocks of known cells fill the gaps ("pull-push") within the object's bounds; beyond
        them, the probability is 0. Needed where the mask gates density: rays reach an object's surface but not
        its inside, which must be gated with it.
        """
        return self.derived(("filled", threshold), lambda: self._fill(threshold))

    def _fill(self, threshold: float) -> Float[Tensor, " num_cells"]:
        r = self.resolution
        firm = (self.seen > self.firm_evidence()).float().reshape(1, 1, r, r, r)
        filled = _pull_push(self.probability().reshape(1, 1, r, r, r) * firm, firm)[0, 0]
        within = torch.zeros_like(filled)
        cells = self.object_cells(threshold).reshape(r, r, r).nonzero()
        if len(cells):
            low, high = (cells.amin(0) - 1).clamp(min=0).tolist(), (cells.amax(0) + 2).tolist()
            within[low[0] : high[0], low[1] : high[1], low[2] : high[2]] = 1
        return (filled * within).reshape(-1)

    def probability_at(self, positions: Float[Tensor, "*batch 3"], threshold: float = 0.5) -> Float[Tensor, "*batch 1"]:
        """The filled probability, read trilinearly at world positions."""
        flat = self.gather(self.filled_probability(threshold)[:, None], positions.reshape(-1, 3))
        return flat.reshape(*positions.shape[:-1], 1)

    def contains(self, positions: Float[Tensor, "num 3"], threshold: float = 0.5) -> Bool[Tensor, " num"]:
        """Which world positions lie on the object."""
        return self.probability_at(positions, threshold)[:, 0] > threshold

    def main_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], float]:
        """World positions of the object's cells without specks that float beside it, and half the size of a cell."""
        on = self.object_cells(threshold)
        volume = on.reshape((self.resolution,) * 3).cpu().numpy()
        main = torch.from_numpy(large_parts(volume, SPECK).reshape(-1)).to(on)
        main &= self.hit > FAINT * self.hit[main].median()
        # The object ends between the last vertex on it and the next one.
        return self.cell_positions()[main], float(self.half_extent.max()) * (1 + RIM_WIDTH) / (self.resolution - 1)

    def hits(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays pass through or near the object, occluders ignored; see :func:`passing`."""
        return passing(self, origins, directions, threshold)

    def may_show(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays would show the object without occluders; see :func:`may_show`."""
        return may_show(self, origins, directions, threshold)


def robust_bounds(
    points: Float[Tensor, "num_points 3"], weights: Float[Tensor, " num_points"] | None = None, share: float = 0.02
) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
    """Per-axis bounds without ``share`` of the weight at either end, then widened as for a uniform distribution."""
    weights = torch.ones_like(points[:, 0]) if weights is None else weights
    low, high = [], []
    for axis in range(3):
        order = points[:, axis].argsort()
        mass = weights[order].cumsum(0) / weights.sum()
        index = torch.searchsorted(mass, mass.new_tensor([share, 1 - share])).clamp(max=len(points) - 1)
        first, last = points[order[index], axis].unbind()
        slack = (last - first) * share / (1 - 2 * share)
        low.append(first - slack)
        high.append(last + slack)
    return torch.stack(low), torch.stack(high)


def _pull_push(mass: Tensor, known: Tensor) -> Tensor:
    """Fill a [1, 1, r, r, r] volume given as value x known; values are kept where ``known`` is 1."""
    if mass.shape[-1] <= 1:
        return mass / known.clamp(min=1e-9)
    size = mass.shape[-3:]
    coarse = _pull_push(
        F.avg_pool3d(mass, 2, ceil_mode=True, count_include_pad=False),
        F.avg_pool3d(known, 2, ceil_mode=True, count_include_pad=False),
    )
    filling = F.interpolate(coarse, size=size, mode="trilinear", align_corners=False)
    return torch.where(known > 0, mass / known.clamp(min=1e-9), filling)


STEPS = 96
"""Positions along a ray at which widened cells are tested."""
SAMPLES_AT_A_TIME = 1 << 20
FEW_RAYS = 1 << 14
"""Largest number of rays that are all tested on a GPU; of more, only those that pass the object's box are."""


def passing(
    grid: MaskGrid,
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    threshold: float = 0.5,
) -> Bool[Tensor, " num_rays"]:
    """Which rays pass through a block of cells that holds a part of the object, occluders ignored.

    Errs on the side of True: cells are widened by one before they are tested.
    """
    r = grid.resolution

    def widen() -> Tensor:
        on = grid.object_cells(threshold).float().reshape(1, 1, r, r, r)
        return F.max_pool3d(on, 3, stride=1, padding=1).reshape(-1, 1)

    widened = grid.derived(("widened", threshold), widen)
    return _any_along(grid, origins, directions, threshold, 2, STEPS, widened, lambda values: values[..., 0] > 0)


def may_show(
    grid: MaskGrid,
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    threshold: float = 0.5,
) -> Bool[Tensor, " num_rays"]:
    """Which rays would show the object without occluders.

    A ray's mask follows from the mean of the cells along it, weighted by their evidence, and exceeds the threshold only
    if a cell on the ray does. Rays are tested about once per cell, near the object.
    """
    steps, level = 1, grid.level(threshold)

    def values() -> Tensor:
        return torch.cat([grid.cells(), grid.object_cells(threshold)[:, None].float()], dim=-1)

    if bool(grid.object_cells(threshold).any()):
        low, high = grid.object_bounds(threshold)
        steps = math.ceil(float(((high - low) / grid.cell_size + 2).norm()))
    channels = grid.derived(("probability, known, object", threshold), values)
    return _any_along(
        grid, origins, directions, threshold, 1, steps, channels,
        lambda values: (values[..., 0] > level * values[..., 1]) & (values[..., 2] > threshold / 2),
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
    """Which rays pass a test on values read along them, within the object's bounds and a margin in cells."""
    passed = torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
    # On a GPU, testing all of few rays is faster than a wait for those that pass the box, if it exists.
    unread = origins.is_cuda and len(origins) <= FEW_RAYS
    if not unread and not bool(grid.object_cells(threshold).any()):
        return passed
    low, high = _box_of_object(grid, threshold) if unread else grid.object_bounds(threshold)
    low, high = low - margin * grid.cell_size, high + margin * grid.cell_size
    safe = torch.where(directions.abs() < 1e-9, torch.full_like(directions, 1e-9), directions)
    t0, t1 = (low - origins) / safe, (high - origins) / safe
    near = torch.minimum(t0, t1).amax(-1).clamp(min=0)
    far = torch.maximum(t0, t1).amin(-1)
    candidates = torch.arange(len(origins), device=origins.device) if unread else torch.nonzero(near < far)[:, 0]
    steps = (torch.arange(num_steps, device=origins.device) + 0.5) / num_steps
    for chunk in candidates.split(max(1, SAMPLES_AT_A_TIME // num_steps)):
        t = near[chunk, None] + (far - near)[chunk, None] * steps
        x = origins[chunk, None] + directions[chunk, None] * t[..., None]
        read = grid.gather(values, x.reshape(-1, 3)).reshape(len(chunk), num_steps, values.shape[1])
        passed[chunk] = test(read).any(-1)
    return passed & (near < far) if unread else passed


def _box_of_object(grid: MaskGrid, threshold: float) -> Float[Tensor, "2 3"]:
    """:meth:`MaskGrid.object_bounds` without a wait for the device; NaN, which no ray passes, without an object."""

    def box() -> Tensor:
        on, positions = grid.object_cells(threshold)[:, None], grid.cell_positions()
        low, high = torch.where(on, positions, torch.inf).amin(0), torch.where(on, positions, -torch.inf).amax(0)
        return torch.where(low <= high, torch.stack([low, high]), torch.nan)

    return grid.derived(("box", threshold), box)
