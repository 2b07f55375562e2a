"""Cameras for a scene that has none, placed by what its Gaussians fill and hide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.occupancy import NEAR, NearSurfaces, OccupancyGrid, dense_part, sphere

Placement = Literal["auto", "around", "inside"]
"""Where cameras may be: anywhere free, outside what is dense, or within a room."""

WIDTH, HEIGHT = 1008, 756
"""Size of the images: segmenters work at 1008 pixels."""
ANGLE_AROUND, ANGLE_INSIDE = 60.0, 80.0
"""Horizontal angle of view in degrees, of cameras around a scene and of those in a room."""
TARGETS = 6000
"""How many Gaussians stand for all."""
SEVERAL = 3
"""How many views of each Gaussian are wanted."""
FEWEST = 24
"""Cameras at least, for views to prompt each other."""
MOST = 160
"""Cameras at most."""
ENOUGH = 0.999
"""Share of the Gaussians that can be seen, from which on no more cameras are added for the sake of a first view."""
ENOUGH_SEVERAL = 0.98
"""The same, for several views of each."""
LITTLE = 0.001
"""Share of the Gaussians of which a camera must give a view that is still wanted."""
ENCLOSED = 0.6
"""Share of directions that end on something, from which on a position is within a room."""
HIDDEN = 0.02
"""Share of what can be seen at all that can be seen from walled-in positions alone, if something is in them."""
OPEN = 0.9
"""In a room without a ceiling, less than this share is seen from outside, looking in level."""
LEVEL = 35.0
"""How far up and down level views from outside may look, in degrees."""


@dataclass
class PlacedCameras:
    """Cameras, and what is known of how they see the scene."""

    cameras: list[SplatCamera]
    inside: bool
    """Whether the scene is a room, and all cameras are in it."""
    seen: float
    """Share of the scene's dense part that at least one camera sees."""
    seen_by_several: float
    """Share that ``SEVERAL`` cameras see."""


def place_cameras(gaussians: Gaussians, up: Float[ndarray, "3"], placement: Placement = "auto") -> PlacedCameras:
    """Place cameras so that every Gaussian that can be seen is seen by several.

    Positions are tried on spheres around the scene's dense part and in the free space within it, none nearer to
    anything solid than a few cells of an occupancy grid. The scene is a room if, from positions that are walled in,
    nearly all can be seen that can be seen at all, and some of it cannot be seen from outside, or much of it not by
    looking in level: then only those positions are used. An empty, closed room is no different from a hollow object,
    and taken for one. Of all positions and directions those are chosen, one after another, that show most of what has
    been seen by fewest.

    Args:
        gaussians: The scene.
        up: Upwards in it, for cameras to stand upright.
        placement: Overrides the decision whether the scene is a room.

    Returns:
        The cameras, named by number, each near the one before it.
    """
    dense = gaussians[dense_part(gaussians)]
    grid = OccupancyGrid(dense)
    targets = _targets(dense.means.astype(np.float64), grid)
    frame = _upright(np.asarray(up, np.float64))
    around, elevation = _positions_around(grid, frame)
    within = _positions_within(grid)
    near = NearSurfaces(dense.means.astype(np.float64), targets, (NEAR + 0.5) * grid.cell)
    from_around = _visible(grid, near, around, targets)
    from_within = _visible(grid, near, within, targets)
    enclosed = np.array([grid.enclosure(point, sphere(64)) for point in within] or [0.0])[: len(within)] >= ENCLOSED

    if enclosed.any():
        # One room, not what is hollow in it.
        spaces = grid.space(within)
        room = max(
            set(spaces[enclosed]), key=lambda number: int(from_within[enclosed & (spaces == number)].any(0).sum())
        )
        in_hollows = enclosed & (spaces != room)
        within, from_within, enclosed = within[~in_hollows], from_within[~in_hollows], enclosed[~in_hollows]
    inside = placement == "inside"
    if placement == "auto" and enclosed.any():
        outside = from_around.any(0)
        walled_in = from_within[enclosed].any(0)
        seeable = max(int((outside | from_within.any(0)).sum()), 1)
        hidden = (walled_in & ~outside).sum() / seeable
        level = from_around[np.abs(elevation) <= LEVEL].any(0).sum() / seeable
        inside = bool(walled_in.sum() / seeable >= 0.95 and (hidden >= HIDDEN or level < OPEN))
        if not inside and hidden < HIDDEN:
            # Nothing is in there: these positions are within a hollow object.
            within, from_within = within[~enclosed], from_within[~enclosed]
            enclosed = enclosed[~enclosed]
    if inside and len(within):
        chosen = enclosed if enclosed.any() else np.ones(len(within), bool)
        positions, sees, weights = within[chosen], from_within[chosen], np.ones(int(chosen.sum()))
    elif placement == "around" or not len(within):
        positions, sees, weights = around, from_around, np.where(elevation < -10, 0.5, 1.0)
    else:
        positions, sees = np.concatenate([around, within]), np.concatenate([from_around, from_within])
        weights = np.concatenate([np.where(elevation < -10, 0.5, 1.0), np.full(len(within), 0.8)])
    inside = inside and len(within) > 0

    focal = 0.5 * WIDTH / np.tan(np.radians(ANGLE_INSIDE if inside else ANGLE_AROUND) / 2)
    poses, shows, weights = _candidates(grid, positions, sees, weights, targets, frame, focal)
    chosen, counts = _choose(poses, shows, weights)
    order = _chain(poses[chosen])
    cameras = [
        SplatCamera(f"{number:03d}", pose, WIDTH, HEIGHT, focal, focal, WIDTH / 2, HEIGHT / 2)
        for number, pose in enumerate(poses[chosen][order])
    ]
    return PlacedCameras(cameras, inside, float((counts > 0).mean()), float((counts >= SEVERAL).mean()))


def _targets(positions: ndarray, grid: OccupancyGrid) -> Float[ndarray, "num 3"]:
    """Half of the targets as the Gaussians are spread, half as the space is that they fill."""
    rng = np.random.default_rng(1)
    if len(positions) <= TARGETS:
        return positions
    shuffled = rng.permutation(positions)
    cells = np.floor((shuffled - grid.low) / grid.cell).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    by_cell = shuffled[rng.permutation(first)[: TARGETS // 2]]
    return np.concatenate([by_cell, shuffled[: TARGETS - len(by_cell)]])


def _upright(up: ndarray) -> Float[ndarray, "3 3"]:
    """A frame with its third axis upwards; its axes are the columns."""
    up = up / np.linalg.norm(up)
    side = np.eye(3)[np.argmin(np.abs(up))]
    side = np.cross(up, side) / np.linalg.norm(np.cross(up, side))
    return np.stack([side, np.cross(up, side), up], axis=1)


def _positions_around(grid: OccupancyGrid, frame: ndarray) -> tuple[Float[ndarray, "num 3"], Float[ndarray, " num"]]:
    """Free positions outside what is dense, and how high they stand above its middle, in degrees."""
    center, half = grid.bounds.mean(axis=0), (grid.bounds[1] - grid.bounds[0]) / 2
    radius = max(float(np.linalg.norm(half)), 2 * grid.cell)
    directions = sphere(72)
    points = np.concatenate([center + factor * radius * directions @ frame.T for factor in (1.25, 1.75, 2.4)])
    elevation = np.tile(np.degrees(np.arcsin(directions[:, 2])), 3)
    free = grid.clearance(points) >= 3 * grid.cell
    return points[free], elevation[free]


def _positions_within(grid: OccupancyGrid) -> Float[ndarray, "num 3"]:
    """Free positions between what is dense, far from it and from each other."""
    widest = float(grid.distance.max()) * grid.cell
    points = grid.free_positions(max(2.5 * grid.cell, 0.15 * widest))
    if not len(points):
        return points
    rng = np.random.default_rng(2)
    points = rng.permutation(points)[:8000]
    chosen = [int(np.argmax(grid.clearance(points)))]
    nearest = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < 90 and nearest.max() > 2 * grid.cell:
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return points[chosen]


def _visible(
    grid: OccupancyGrid, near: NearSurfaces, positions: ndarray, targets: ndarray
) -> Bool[ndarray, "positions targets"]:
    seen = [grid.visible(position, targets) & near.visible(position, targets) for position in positions]
    return np.array(seen).reshape(len(positions), len(targets))


def look_at(
    position: Float[ndarray, "3"], forward: Float[ndarray, "3"], up: Float[ndarray, "3"]
) -> Float[ndarray, "4 4"]:
    """A camera's pose: to the world, from x to the right, y upwards, z backwards.

    Args:
        position: Where it is.
        forward: Which way it looks.
        up: Upwards in the world; if the camera looks along it, any upright will do.
    """
    back = -np.asarray(forward, np.float64) / np.linalg.norm(forward)
    right = np.cross(up, back)
    if np.linalg.norm(right) < 1e-3:
        right = np.cross(np.eye(3)[np.argmin(np.abs(back))], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=1)
    return pose


def in_image(
    pose: Float[ndarray, "4 4"], points: Float[ndarray, "num 3"], focal: float, width: int, height: int
) -> Bool[ndarray, " num"]:
    """Which points lie in front of a camera and within its image, seen or hidden."""
    local = (points - pose[:3, 3]) @ pose[:3, :3]
    depth = -local[:, 2]
    fits = (np.abs(local[:, 0]) * focal <= width / 2 * depth) & (np.abs(local[:, 1]) * focal <= height / 2 * depth)
    return (depth > 0) & fits


def _candidates(
    grid: OccupancyGrid,
    positions: ndarray,
    sees: ndarray,
    weights: ndarray,
    targets: ndarray,
    frame: ndarray,
    focal: float,
) -> tuple[Float[ndarray, "num 4 4"], Float[ndarray, "num targets"], Float[ndarray, " num"]]:
    """Poses of cameras, how well each shows each target, and how welcome each is."""
    center, size = targets.mean(axis=0), float(np.linalg.norm(grid.bounds[1] - grid.bounds[0]))
    poses, shows, welcome = [], [], []
    for position, seen, weight in zip(positions, sees, weights, strict=True):
        outside = bool(((position < grid.bounds[0]) | (position > grid.bounds[1])).any())
        if outside:
            ways = np.concatenate([[center], targets[:: len(targets) // 6 + 1]]) - position
        else:
            turns, tilts = np.radians(np.arange(0, 360, 45)), np.radians([-50, -20, 15, 50])
            ways = (
                np.array([[np.cos(t) * np.cos(e), np.sin(t) * np.cos(e), np.sin(e)] for t in turns for e in tilts])
                @ frame.T
            )
        distance = np.linalg.norm(targets - position, axis=1)
        # What is nearer shows larger, until it fills the image.
        sharp = np.clip(0.5 * size / np.maximum(distance, 1e-9), 0.2, 1.0) * seen
        for way in ways:
            pose = look_at(position, way, frame[:, 2])
            # A little within the edges of the image.
            shown = sharp * in_image(pose, targets, 1.05 * focal, WIDTH, HEIGHT)
            if (shown > 0).mean() > 0.01:
                poses.append(pose)
                shows.append(shown.astype(np.float32))
                welcome.append(weight)
    if not poses:
        pose = look_at(center + size * frame[:, 0], -frame[:, 0], frame[:, 2])
        return pose[None], in_image(pose, targets, focal, WIDTH, HEIGHT)[None].astype(np.float32), np.ones(1)
    return np.array(poses), np.array(shows), np.array(welcome)


def _choose(poses: ndarray, shows: ndarray, weights: ndarray) -> tuple[list[int], ndarray]:
    """Indices of cameras, and how many of them see each target that any candidate sees."""
    seeable = (shows > 0).any(axis=0)
    shows = shows[:, seeable]
    counts = np.zeros(shows.shape[1], int)
    possible = np.minimum((shows > 0).sum(axis=0), SEVERAL)
    available, chosen = np.ones(len(poses), bool), []
    while len(chosen) < MOST and available.any():
        if len(chosen) >= FEWEST and (counts > 0).mean() >= ENOUGH and (counts >= possible).mean() >= ENOUGH_SEVERAL:
            break
        wanted = np.array([1.0, 0.5, 0.25, 1e-4], np.float32)[np.minimum(counts, SEVERAL)]
        gain = np.where(available, (shows @ wanted) * weights, -1.0)
        best = int(np.argmax(gain))
        if len(chosen) >= FEWEST and ((shows[best] > 0) & (counts < possible)).mean() < LITTLE:
            break
        chosen.append(best)
        counts += shows[best] > 0
        # Not the same view again.
        near = np.linalg.norm(poses[:, :3, 3] - poses[best, :3, 3], axis=1) < 1e-6
        available &= ~(near & (poses[:, :3, 2] @ poses[best, :3, 2] > 0.93))
        available[best] = False
    return chosen, counts


def _chain(poses: ndarray) -> list[int]:
    """An order in which each camera is near the one before it."""
    places = poses[:, :3, 3] / max(float(np.ptp(poses[:, :3, 3], axis=0).max()), 1e-9)
    features = np.concatenate([places, 0.3 * poses[:, :3, 2]], axis=1)
    order, left = [0], set(range(1, len(poses)))
    while left:
        following = min(left, key=lambda index: float(np.linalg.norm(features[index] - features[order[-1]])))
        order.append(following)
        left.remove(following)
    return order
