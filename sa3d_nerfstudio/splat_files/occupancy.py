"""Where a set of Gaussians fills space, and what can be seen from where."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.ndimage import distance_transform_edt, label
from scipy.spatial import KDTree

from sa3d_nerfstudio.splat_files.gaussians import Gaussians

OPAQUE = 0.1
"""Opacity above which a Gaussian is looked at."""
MANY = 100_000
"""No more Gaussians than so many, drawn at random, tell what is where."""
CELLS = 96
"""Cells along the longest side, at most."""
FEWEST_CELLS = 20
"""Cells along the longest side, at least, however far apart the Gaussians are."""
SPACINGS = 3.0
"""A cell is so many times as wide as most Gaussians are apart, for a surface to have no holes."""
FULL = 0.2
"""A cell is solid if it holds this share of what the median of all cells that hold anything does."""
NEAR = 1.5
"""What lies within so many cells of a point does not hide it as far as the grid can tell."""
NEIGHBORS = 256
"""How many points around one may hide it from close by."""
NEIGHBORS_OF_NORMALS = 10
"""How many points around one tell which way its surface looks."""
WAYS = 64
"""Directions that are told apart in what hides a point from close by."""
MARGIN = 2
"""Free cells around all that is dense."""


def dense_part(gaussians: Gaussians) -> Int[ndarray, " num"]:
    """Indices of opaque Gaussians of the scene's dense part, at most ``MANY``, drawn at random.

    The dense part is a ball around the median of the positions; its radius R is the one for which the share of the
    Gaussians in it, over the fourth root of R, is largest: stray Gaussians and a distant background are left out, and a
    floor that is wider than what stands on it is not.
    """
    rows = np.flatnonzero(gaussians.alphas > OPAQUE)
    if not len(rows):
        rows = np.arange(len(gaussians))
    if len(rows) > MANY:
        rows = np.sort(np.random.default_rng(0).choice(rows, MANY, replace=False))
    positions = gaussians.means[rows].astype(np.float64)
    distance = np.linalg.norm(positions - np.median(positions, axis=0), axis=1)
    shares = np.concatenate([np.arange(0.5, 0.99, 0.01), [0.99, 0.995, 0.998, 0.999, 0.9995, 1.0]])
    radii = np.maximum(np.quantile(distance, shares), 1e-9)
    radius = radii[np.argmax(shares / radii**0.25)]
    return rows[distance <= 1.1 * radius]


class OccupancyGrid:
    """Cells that Gaussians fill, and the free space between them.

    Args:
        gaussians: The dense part of a scene.
    """

    def __init__(self, gaussians: Gaussians) -> None:
        positions = gaussians.means.astype(np.float64)
        low, high = positions.min(axis=0), positions.max(axis=0)
        extent = max(float((high - low).max()), 1e-6)
        rng = np.random.default_rng(0)
        asked = positions if len(positions) <= 20_000 else rng.choice(positions, 20_000, replace=False)
        apart = KDTree(positions).query(asked, k=min(2, len(positions)))[0].reshape(len(asked), -1)[:, -1]
        cell = float(np.clip(SPACINGS * np.quantile(apart, 0.9), extent / CELLS, extent / FEWEST_CELLS))
        self.bounds = np.stack([low, high])
        """Lowest and highest position."""
        self.cell = cell
        """Length of a cell's edges."""
        # The outermost Gaussians, often those of a flat wall, are in the middle of their cells, not at a face of them.
        self.low = low - (MARGIN + 0.5) * cell
        """The grid's lowest corner."""
        shape = np.ceil((high - low) / cell).astype(int) + 2 * MARGIN + 2
        weights = np.zeros(shape)
        for points, weight in _samples(gaussians, cell, rng):
            np.add.at(weights, tuple(self._cells(points, shape).T), weight)
        self.solid: Bool[ndarray, "x y z"] = weights >= FULL * np.median(weights[weights > 0])
        """Which cells cannot be seen through."""
        self.distance: Float[ndarray, "x y z"] = np.asarray(distance_transform_edt(~self.solid), np.float32)
        """From the middle of each cell to that of the nearest solid one, in cells."""
        spaces: Any = label(self.distance >= 2)
        self.spaces: Int[ndarray, "x y z"] = spaces[0]
        """Number of the connected free space that each cell is in; narrow gaps do not connect any. 0 is none."""

    def _cells(self, points: ndarray, shape: ndarray | tuple[int, ...] | None = None) -> Int[ndarray, "num 3"]:
        cells = np.floor((points - self.low) / self.cell).astype(np.int64)
        return np.clip(cells, 0, np.asarray(self.solid.shape if shape is None else shape) - 1)

    def clearance(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, " num"]:
        """How far positions anywhere are from what is solid, to a cell's precision."""
        high = self.low + self.cell * np.array(self.solid.shape)
        outside = np.linalg.norm(points - np.clip(points, self.low, high), axis=1)
        return self.cell * self.distance[tuple(self._cells(points).T)] + outside

    def free_positions(self, clearance: float) -> Float[ndarray, "num 3"]:
        """Middles of the cells within the bounds that are at least so far from what is solid."""
        cells = np.argwhere(self.distance * self.cell >= clearance)
        points = self.low + (cells + 0.5) * self.cell
        return points[((points >= self.bounds[0]) & (points <= self.bounds[1])).all(axis=1)]

    def space(self, points: Float[ndarray, "num 3"]) -> Int[ndarray, " num"]:
        """Numbers of the connected free spaces that positions are in."""
        return self.spaces[tuple(self._cells(points).T)]

    def visible(
        self, position: Float[ndarray, "3"], targets: Float[ndarray, "num 3"], near: float = NEAR
    ) -> Bool[ndarray, " num"]:
        """Which targets can be seen from a position, whatever the direction.

        Args:
            position: Anywhere.
            targets: Anywhere.
            near: How many cells before a target nothing hides it any more.
        """
        origin = (position - self.low) / self.cell
        rays = (targets - self.low) / self.cell - origin
        length = np.linalg.norm(rays, axis=1)
        rays /= np.maximum(length, 1e-9)[:, None]
        # Rays are followed from where they enter the grid.
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = -origin / rays, (np.array(self.solid.shape) - origin) / rays
        enter, leave = np.fmax.reduce(np.fmin(first, second), axis=1), np.fmin.reduce(np.fmax(first, second), axis=1)
        at, end = np.maximum(enter, 0.0) + 1e-4, np.minimum(length - near, leave)
        seen = np.ones(len(targets), bool)
        active = np.flatnonzero(at < end)
        while len(active):
            cells = np.floor(origin + at[active, None] * rays[active]).astype(np.int64)
            cells = np.clip(cells, 0, np.array(self.solid.shape) - 1)
            free = self.distance[tuple(cells.T)]
            seen[active[free == 0]] = False
            # Both the position and what is solid may lie half a cell's diagonal off the middles of their cells.
            at[active] += np.maximum(free - 1.8, 0.6)
            active = active[(free > 0) & (at[active] < end[active])]
        return seen

    def enclosure(self, position: Float[ndarray, "3"], directions: Float[ndarray, "num 3"]) -> float:
        """Share of the directions in which something solid lies before the edge of the grid."""
        far = float(np.linalg.norm(self.solid.shape)) * self.cell
        return float(1 - self.visible(position, position + far * directions, 0.0).mean())


class NearSurfaces:
    """What hides points from close by, which a grid is too coarse for: the other side of a board, a crease.

    Points around one stand for discs of their surface, as wide as they are apart.

    Args:
        positions: All points.
        targets: Those that may be hidden.
        reach: How far from a target the discs count.
    """

    def __init__(self, positions: Float[ndarray, "all 3"], targets: Float[ndarray, "num 3"], reach: float) -> None:
        self.ways = sphere(WAYS).astype(np.float32)
        self.hidden = np.zeros((len(targets), WAYS), bool)
        # One point in each place, or there would be too many within reach.
        _, first = np.unique(np.floor(positions / (reach / 6)), axis=0, return_index=True)
        positions = positions[first]
        few = min(NEIGHBORS_OF_NORMALS, len(positions))
        if few < 4:
            return
        tree: Any = KDTree(positions)
        apart, around = tree.query(positions, k=few)
        offsets = positions[around] - positions[around].mean(axis=1, keepdims=True)
        normals = np.linalg.eigh(np.einsum("nki,nkj->nij", offsets, offsets))[1][:, :, 0].astype(np.float32)
        radii = apart[:, 3].astype(np.float32)
        distance, index = tree.query(targets, k=min(NEIGHBORS, len(positions)), distance_upper_bound=reach)
        for start in range(0, len(targets), 500):
            target, column = np.nonzero(np.isfinite(distance[start : start + 500]))
            target += start
            disc = index[target, column]
            to = (positions[disc] - targets[target]).astype(np.float32)
            height = (to * normals[disc]).sum(axis=1)
            # Discs of the same flat surface hide nothing of it.
            kept = np.abs(height) > 0.25 * radii[disc]
            target, disc, to, height = target[kept], disc[kept], to[kept], height[kept]
            with np.errstate(divide="ignore", invalid="ignore"):
                length = height[:, None] / (normals[disc] @ self.ways.T)
                # Squared distance from the disc's middle to where the ray meets its plane.
                square = (to**2).sum(axis=1)[:, None] - 2 * length * (to @ self.ways.T) + length**2
                radius = radii[disc][:, None]
                pair, way = np.nonzero((length > radius) & (square < radius**2))
            self.hidden[target[pair], way] = True

    def visible(self, position: Float[ndarray, "3"], targets: Float[ndarray, "num 3"]) -> Bool[ndarray, " num"]:
        """Which targets can be seen from a position, as far as what is close to them goes."""
        way = np.argmax((position - targets).astype(np.float32) @ self.ways.T, axis=1)
        return ~self.hidden[np.arange(len(targets)), way]


def sphere(count: int) -> Float[ndarray, "num 3"]:
    """Directions spread evenly (a Fibonacci lattice)."""
    index = np.arange(count) + 0.5
    z, azimuth = 1 - 2 * index / count, np.pi * (1 + 5**0.5) * index
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), z], axis=1)


def _samples(gaussians: Gaussians, cell: float, rng: np.random.Generator) -> list[tuple[ndarray, ndarray]]:
    """Points that stand for the Gaussians, and the area that each covers, in faces of a cell."""
    sizes = np.exp(np.minimum(gaussians.scales, 80.0)).astype(np.float64) / cell
    order = np.sort(sizes, axis=1)
    area = np.minimum(np.pi * order[:, 1] * order[:, 2], 400.0) * gaussians.alphas
    parts = []
    for low, high, count in ((0.0, 0.5, 1), (0.5, 2.0, 12), (2.0, np.inf, 96)):
        rows = np.flatnonzero((order[:, 2] >= low) & (order[:, 2] < high))
        if not len(rows):
            continue
        points = np.repeat(gaussians.means[rows].astype(np.float64), count, axis=0)
        if count > 1:
            offsets = rng.normal(size=(len(rows), count, 3)).clip(-1.5, 1.5) * np.minimum(sizes[rows], 12.0)[:, None]
            points += cell * np.einsum("nij,ncj->nci", gaussians[rows].axes, offsets).reshape(-1, 3)
        parts.append((points, np.repeat(area[rows] / count, count)))
    return parts
