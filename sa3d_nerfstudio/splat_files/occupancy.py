"""Space that a set of Gaussians fills, and visibility in it."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.ndimage import distance_transform_edt, label
from scipy.spatial import KDTree

from sa3d_nerfstudio.splat_files.gaussians import Gaussians

OPAQUE = 0.1
"""Opacity above which a Gaussian is considered."""
MAX_GAUSSIANS = 100_000
"""Largest number of Gaussians considered, drawn at random."""
CELLS = 96
"""Largest number of cells along the longest side."""
FEWEST_CELLS = 20
"""Smallest number of cells along the longest side, however far apart the Gaussians are."""
SPACINGS = 3.0
"""Width of a cell in spacings of Gaussians (their 90th percentile), so that surfaces have no holes."""
FULL = 0.2
"""A cell is solid if its weight is at least this share of the median over all cells that are not empty."""
NEAR = 1.5
"""Distance from a target, in cells, within which solid cells of the grid do not hide it."""
NEIGHBORS = 256
"""Largest number of points around a target that may hide it from close by."""
NEIGHBORS_OF_NORMALS = 10
"""Number of points around a point that determine its surface normal."""
DIRECTIONS = 64
"""Number of directions in which a target may be hidden from close by."""
MARGIN = 2
"""Free cells around the dense part, on each side."""


def dense_part(gaussians: Gaussians) -> Int[ndarray, " num"]:
    """Indices of opaque Gaussians of the scene's dense part, at most ``MAX_GAUSSIANS``, drawn at random.

    The dense part is a ball around the median of the positions. Its radius R maximises the share of the Gaussians in
    it over the fourth root of R, which leaves out stray Gaussians and a distant background, but not a floor that is
    wider than the objects on it.
    """
    rows = np.flatnonzero(gaussians.alphas > OPAQUE)
    if not len(rows):
        rows = np.arange(len(gaussians))
    if len(rows) > MAX_GAUSSIANS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MAX_GAUSSIANS, replace=False))
    positions = gaussians.means[rows].astype(np.float64)
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    shares = np.concatenate([np.arange(0.5, 0.99, 0.01), [0.99, 0.995, 0.998, 0.999, 0.9995, 1.0]])
    radii = np.maximum(np.quantile(distance, shares), 1e-9)
    radius = radii[np.argmax(shares / radii**0.25)]
    return rows[distance <= 1.1 * radius]


class OccupancyGrid:
    """Grid of the cells that Gaussians fill, and of the free space between them.

    Args:
        gaussians: The dense part of a scene.
    """

    def __init__(self, gaussians: Gaussians) -> None:
        positions = gaussians.means.astype(np.float64)
        low, high = positions.min(axis=0), positions.max(axis=0)
        extent = max(float((high - low).max()), 1e-6)
        rng = np.random.default_rng(0)
        sample = positions if len(positions) <= 20_000 else rng.choice(positions, 20_000, replace=False)
        spacing = KDTree(positions).query(sample, k=min(2, len(positions)))[0].reshape(len(sample), -1)[:, -1]
        cell = float(np.clip(SPACINGS * np.quantile(spacing, 0.9), extent / CELLS, extent / FEWEST_CELLS))
        self.bounds = np.stack([low, high])
        """Lowest and highest coordinates of the Gaussians."""
        self.cell = cell
        """Edge length of a cell."""
        # The half cell puts the outermost Gaussians, often those of a flat wall, in the middle of their cells.
        self.low = low - (MARGIN + 0.5) * cell
        """Lowest corner of the grid."""
        shape = np.ceil((high - low) / cell).astype(int) + 2 * MARGIN + 2
        weights = np.zeros(shape)
        for points, weight in _samples(gaussians, cell, rng):
            np.add.at(weights, tuple(self._cells(points, shape).T), weight)
        self.solid: Bool[ndarray, "x y z"] = weights >= FULL * np.median(weights[weights > 0])
        """Cells that block the view."""
        self.distance: Float[ndarray, "x y z"] = np.asarray(distance_transform_edt(~self.solid), np.float32)
        """Distance from the middle of each cell to that of the nearest solid one, in cells."""
        spaces: Any = label(self.distance >= 2)
        self.spaces: Int[ndarray, "x y z"] = spaces[0]
        """Number of the connected free space that each cell is in, 0 for none; narrow gaps do not connect spaces."""

    def _cells(self, points: ndarray, shape: ndarray | tuple[int, ...] | None = None) -> Int[ndarray, "num 3"]:
        cells = np.floor((points - self.low) / self.cell).astype(np.int64)
        return np.clip(cells, 0, np.asarray(self.solid.shape if shape is None else shape) - 1)

    def clearance(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, " num"]:
        """Distance of positions from the nearest solid cell, to a cell's precision; they may be outside of the grid."""
        high = self.low + self.cell * np.array(self.solid.shape)
        outside = np.linalg.norm(points - np.clip(points, self.low, high), axis=1)
        return self.cell * self.distance[tuple(self._cells(points).T)] + outside

    def free_positions(self, clearance: float) -> Float[ndarray, "num 3"]:
        """Middles of the cells within the bounds that are at least so far from solid cells."""
        cells = np.argwhere(self.distance * self.cell >= clearance)
        points = self.low + (cells + 0.5) * self.cell
        return points[((points >= self.bounds[0]) & (points <= self.bounds[1])).all(axis=1)]

    def space(self, points: Float[ndarray, "num 3"]) -> Int[ndarray, " num"]:
        """Numbers of the connected free spaces that positions are in."""
        return self.spaces[tuple(self._cells(points).T)]

    def visible(
        self, position: Float[ndarray, "3"], targets: Float[ndarray, "num 3"], near: float = NEAR
    ) -> Bool[ndarray, " num"]:
        """Which targets are visible from a position, in any direction.

        Args:
            position: Position in or outside of the grid.
            targets: Positions in or outside of the grid.
            near: Distance before a target, in cells, within which no cell hides it.
        """
        origin = (position - self.low) / self.cell
        rays = (targets - self.low) / self.cell - origin
        length = np.linalg.norm(rays, axis=1)
        rays /= np.maximum(length, 1e-9)[:, None]
        # Rays are followed from their entry into the grid.
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = -origin / rays, (np.array(self.solid.shape) - origin) / rays
        enter, leave = np.fmax.reduce(np.fmin(first, second), axis=1), np.fmin.reduce(np.fmax(first, second), axis=1)
        depth, end = np.maximum(enter, 0.0) + 1e-4, np.minimum(length - near, leave)
        seen = np.ones(len(targets), bool)
        active = np.flatnonzero(depth < end)
        while len(active):
            cells = np.floor(origin + depth[active, None] * rays[active]).astype(np.int64)
            cells = np.clip(cells, 0, np.array(self.solid.shape) - 1)
            free = self.distance[tuple(cells.T)]
            seen[active[free == 0]] = False
            # Both the position and the solid surface may lie half a cell's diagonal off the middles of their cells.
            depth[active] += np.maximum(free - 1.8, 0.6)
            active = active[(free > 0) & (depth[active] < end[active])]
        return seen

    def enclosure(self, position: Float[ndarray, "3"], directions: Float[ndarray, "num 3"]) -> float:
        """Share of the directions with a solid cell before the edge of the grid."""
        far = float(np.linalg.norm(self.solid.shape)) * self.cell
        return float(1 - self.visible(position, position + far * directions, 0.0).mean())


class NearSurfaces:
    """Occlusion of points by surfaces near them, for which a grid is too coarse: the other side of a board, a crease.

    Points near a target stand for discs of their surface, as wide as their spacing.

    Args:
        positions: All points.
        targets: Points that may be hidden.
        reach: Distance from a target within which discs hide it.
    """

    def __init__(self, positions: Float[ndarray, "all 3"], targets: Float[ndarray, "num 3"], reach: float) -> None:
        self.ways = sphere(DIRECTIONS).astype(np.float32)
        self.hidden = np.zeros((len(targets), DIRECTIONS), bool)
        # One point in each cell of a raster, to limit the number within reach.
        _, first = np.unique(np.floor(positions / (reach / 6)), axis=0, return_index=True)
        positions = positions[first]
        num_neighbors = min(NEIGHBORS_OF_NORMALS, len(positions))
        if num_neighbors < 4:
            return
        tree: Any = KDTree(positions)
        spacing, neighbors = tree.query(positions, k=num_neighbors)
        offsets = positions[neighbors] - positions[neighbors].mean(axis=1, keepdims=True)
        normals = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1][:, :, 0].astype(np.float32)
        radii = spacing[:, 3].astype(np.float32)
        distance, index = tree.query(targets, k=min(NEIGHBORS, len(positions)), distance_upper_bound=reach)
        for start in range(0, len(targets), 500):
            target, column = np.nonzero(np.isfinite(distance[start : start + 500]))
            target += start
            disc = index[target, column]
            to_disc = (positions[disc] - targets[target]).astype(np.float32)
            height = (to_disc * normals[disc]).sum(axis=1)
            # Discs of the same flat surface as the target do not hide it.
            hiding = np.abs(height) > 0.25 * radii[disc]
            target, disc, to_disc, height = target[hiding], disc[hiding], to_disc[hiding], height[hiding]
            with np.errstate(divide="ignore", invalid="ignore"):
                length = height[:, None] / (normals[disc] @ self.ways.T)
                # Squared distance from the disc's middle to where the ray meets its plane.
                square = (to_disc**2).sum(axis=1)[:, None] - 2 * length * (to_disc @ self.ways.T) + length**2
                radius = radii[disc][:, None]
                pair, way = np.nonzero((length > radius) & (square < radius**2))
            self.hidden[target[pair], way] = True

    def visible(self, position: Float[ndarray, "3"], targets: Float[ndarray, "num 3"]) -> Bool[ndarray, " num"]:
        """Which targets no surface near them hides from a position."""
        way = np.argmax((position - targets).astype(np.float32) @ self.ways.T, axis=1)
        return ~self.hidden[np.arange(len(targets)), way]


def sphere(count: int) -> Float[ndarray, "num 3"]:
    """Evenly spread directions (a Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    z, azimuth = 1 - 2 * index / count, np.pi * (1 + 5**0.5) * index
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


def _samples(gaussians: Gaussians, cell: float, rng: np.random.Generator) -> list[tuple[ndarray, ndarray]]:
    """Sample points of the Gaussians, and the area that each covers, in faces of a cell."""
    sizes = np.exp(np.minimum(gaussians.scales, 80.0)).astype(np.float64) / cell
    order = np.sort(sizes, axis=1)
    area = np.minimum(np.pi * order[:, 1] * order[:, 2], 400.0) * gaussians.alphas
    samples = []
    for low, high, count in ((0.0, 0.5, 1), (0.5, 2.0, 12), (2.0, np.inf, 96)):
        rows = np.flatnonzero((order[:, 2] >= low) & (order[:, 2] < high))
        if not len(rows):
            continue
        points = np.repeat(gaussians.means[rows].astype(np.float64), count, axis=0)
        if count > 1:
            offsets = rng.normal(size=(len(rows), count, 3)).clip(-1.5, 1.5) * np.minimum(sizes[rows], 12.0)[:, None]
            points += cell * np.einsum("nij,ncj->nci", gaussians[rows].axes, offsets).reshape(-1, 3)
        samples.append((points, np.repeat(area[rows] / count, count)))
    return samples
