"""Cameras for a scene without cameras, placed by the space that its Gaussians fill and hide."""

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
"""Positions that cameras may have: all free ones, outside of the dense part, or within a room."""

WIDTH, HEIGHT = 1008, 756
"""Size of the images in pixels: segmenters work at 1008 pixels."""
ANGLE_AROUND, ANGLE_INSIDE = 60.0, 80.0
"""Horizontal angle of view in degrees, of cameras around a scene and of those in a room."""
TARGETS = 6000
"""Largest number of Gaussians that stand for all as targets of visibility."""
SEVERAL = 3
"""Number of views wanted of each Gaussian."""
FEWEST = 24
"""Least number of cameras, so that views can prompt each other."""
MAX_CAMERAS = 160
"""Largest number of cameras."""
COVERED = 0.999
"""Share of the visible Gaussians with a view, from which on no cameras are added for first views."""
ENOUGH_SEVERAL = 0.98
"""The same, for several views of each Gaussian."""
MIN_GAIN = 0.001
"""Least share of the Gaussians to which a camera must add a wanted view."""
ENCLOSED = 0.6
"""Share of directions that end on solid cells, from which on a position is walled in."""
HIDDEN = 0.02
"""Least share of the visible targets that only walled-in positions see, if these are not in a hollow object."""
OPEN = 0.9
"""Level views from outside see less than this share of the visible targets in a room without a ceiling."""
LEVEL = 35.0
"""Largest elevation of level views from outside, up or down, in degrees."""


@dataclass
class PlacedCameras:
    """Cameras, and their coverage of the scene."""

    cameras: list[SplatCamera]
    inside: bool
    """Whether the scene is a room, and all cameras are in it."""
    seen: float
    """Share of the visible targets in the dense part that at least one camera sees."""
    seen_by_several: float
    """Share of them that ``SEVERAL`` cameras see."""


def place_cameras(gaussians: Gaussians, up: Float[ndarray, "3"], placement: Placement = "auto") -> PlacedCameras:
    """Place cameras so that several see every visible Gaussian.

    Positions are tried on spheres around the scene's dense part and in the free space within it, at least a few cells
    of an occupancy grid from solid cells. The scene is a room if walled-in positions see nearly all visible targets,
    and positions outside do not see some of these, or level views from outside do not see many: then only walled-in
    positions are used. An empty, closed room does not differ from a hollow object, and is taken for one. Positions and
    directions are chosen greedily, to show most of the targets that fewest cameras see.

    Args:
        gaussians: The scene.
        up: Upward direction of the scene, for upright cameras.
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
        # One room, without the hollow objects in it.
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
            # These positions see hardly anything more: they are within a hollow object.
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
    """Targets of visibility: half spread as the Gaussians are, half as the cells that they fill."""
    rng = np.random.default_rng(1)
    if len(positions) <= TARGETS:
        return positions
    shuffled = rng.permutation(positions)
    cells = np.floor((shuffled - grid.low) / grid.cell).astype(np.int64)
    _, first = np.unique(cells, axis=0, return_index=True)
    by_cell = shuffled[rng.permutation(first)[: TARGETS // 2]]
    return np.concatenate([by_cell, shuffled[: TARGETS - len(by_cell)]])


def _upright(up: ndarray) -> Float[ndarray, "3 3"]:
    """Frame with its third axis upwards; the axes are the columns."""
    up = up / np.linalg.norm(up)
    side = np.eye(3)[np.argmin(np.abs(up))]
    side = np.cross(up, side) / np.linalg.norm(np.cross(up, side))
    return np.stack([side, np.cross(up, side), up], axis=1)


def _positions_around(grid: OccupancyGrid, frame: ndarray) -> tuple[Float[ndarray, "num 3"], Float[ndarray, " num"]]:
    """Free positions outside of the dense part, and their elevations above its middle, in degrees."""
    center, half = grid.bounds.mean(axis=0), (grid.bounds[1] - grid.bounds[0]) / 2
    radius = max(float(np.linalg.norm(half)), 2 * grid.cell)
    directions = sphere(72)
    points = np.concatenate([center + factor * radius * directions @ frame.T for factor in (1.25, 1.75, 2.4)])
    elevation = np.tile(np.degrees(np.arcsin(directions[:, 2])), 3)
    free = grid.clearance(points) >= 3 * grid.cell
    return points[free], elevation[free]


def _positions_within(grid: OccupancyGrid) -> Float[ndarray, "num 3"]:
    """Free positions within the dense part, far from solid cells and from each other."""
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
    """Pose of a camera: camera to world; the camera's x points right, y up, z backwards.

    Args:
        position: Position of the camera in the world.
        forward: Viewing direction in the world.
        up: Upward direction in the world; ignored if the camera looks along it.
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
    """Which points lie in front of a camera and within its image, hidden or not."""
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
    """Poses of candidate cameras, how well each shows each target, and the weight of each."""
    center, size = targets.mean(axis=0), float(np.linalg.norm(grid.bounds[1] - grid.bounds[0]))
    poses, shows, pose_weights = [], [], []
    for position, seen, weight in zip(positions, sees, weights, strict=True):
        outside = bool(((position < grid.bounds[0]) | (position > grid.bounds[1])).any())
        if outside:
            directions = np.concatenate([[center], targets[:: len(targets) // 6 + 1]]) - position
        else:
            turns, tilts = np.radians(np.arange(0, 360, 45)), np.radians([-50, -20, 15, 50])
            directions = (
                np.array([[np.cos(t) * np.cos(e), np.sin(t) * np.cos(e), np.sin(e)] for t in turns for e in tilts])
                @ frame.T
            )
        distance = np.linalg.norm(targets - position, axis=1)
        # Targets show larger from nearer positions, until the scene fills the image.
        detail = np.clip(0.5 * size / np.maximum(distance, 1e-9), 0.2, 1.0) * seen
        for direction in directions:
            pose = look_at(position, direction, frame[:, 2])
            # The longer focal length keeps targets a little within the edges of the image.
            visibility = detail * in_image(pose, targets, 1.05 * focal, WIDTH, HEIGHT)
            if (visibility > 0).mean() > 0.01:
                poses.append(pose)
                shows.append(visibility.astype(np.float32))
                pose_weights.append(weight)
    if not poses:
        pose = look_at(center + size * frame[:, 0], -frame[:, 0], frame[:, 2])
        return pose[None], in_image(pose, targets, focal, WIDTH, HEIGHT)[None].astype(np.float32), np.ones(1)
    return np.array(poses), np.array(shows), np.array(pose_weights)


def _choose(poses: ndarray, shows: ndarray, weights: ndarray) -> tuple[list[int], ndarray]:
    """Indices of chosen cameras, and the number of them that see each target that any candidate sees."""
    seeable = (shows > 0).any(axis=0)
    shows = shows[:, seeable]
    counts = np.zeros(shows.shape[1], int)
    possible = np.minimum((shows > 0).sum(axis=0), SEVERAL)
    available, chosen = np.ones(len(poses), bool), []
    while len(chosen) < MAX_CAMERAS and available.any():
        if len(chosen) >= FEWEST and (counts > 0).mean() >= COVERED and (counts >= possible).mean() >= ENOUGH_SEVERAL:
            break
        wanted = np.array([1.0, 0.5, 0.25, 1e-4], np.float32)[np.minimum(counts, SEVERAL)]
        gain = np.where(available, (shows @ wanted) * weights, -1.0)
        best = int(np.argmax(gain))
        if len(chosen) >= FEWEST and ((shows[best] > 0) & (counts < possible)).mean() < MIN_GAIN:
            break
        chosen.append(best)
        counts += shows[best] > 0
        # Nearly the same view is not chosen again.
        near = np.linalg.norm(poses[:, :3, 3] - poses[best, :3, 3], axis=1) < 1e-6
        available &= ~(near & (poses[:, :3, 2] @ poses[best, :3, 2] > 0.93))
        available[best] = False
    return chosen, counts


def _chain(poses: ndarray) -> list[int]:
    """Order in which each camera is near the one before it."""
    positions = poses[:, :3, 3] / max(float(np.ptp(poses[:, :3, 3], axis=0).max()), 1e-9)
    features = np.concatenate([positions, 0.3 * poses[:, :3, 2]], axis=1)
    order, remaining = [0], set(range(1, len(poses)))
    while remaining:
        nearest = min(remaining, key=lambda index: float(np.linalg.norm(features[index] - features[order[-1]])))
        order.append(nearest)
        remaining.remove(nearest)
    return order
