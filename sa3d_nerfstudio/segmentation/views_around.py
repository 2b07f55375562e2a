"""Virtual cameras around an object, in directions that the visited training views lack."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import robust_bounds
from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.segmentation.session_views import FreeView, Views
from sa3d_nerfstudio.traces.base import ViewTrace

CANDIDATES = 400
"""Number of candidate directions, evenly spread over the sphere."""
REACH = 40.0
"""Greatest angle to the nearest training camera, in degrees, at which the radiance field is taken to be reliable."""
FILLED = 0.7
"""Share of the image's side that a ball around the object covers: about the share that an object has of a window."""
SIDES = (32, 256)
"""Least and greatest number of pixels along each side of the images."""


@runtime_checkable
class RendersAnywhere(Views, Protocol):
    """Training views whose scene can also be rendered from other poses."""

    def render_from(self, pose: Float[Tensor, "3 4"], angle: float, side: int) -> ViewTrace:
        """The trace of a square image of a pinhole camera.

        Args:
            pose: Camera-to-world in nerfstudio's frame.
            angle: Field of view in radians.
            side: Pixels along each side.
        """
        ...


def directions_around(
    center: Float[Tensor, "3"],
    trained: Float[Tensor, "num_views 3 4"],
    visited: Float[Tensor, "num_visited 3 4"],
    count: int,
) -> Float[Tensor, "num_chosen 3"]:
    """Choose directions from an object that differ most from the directions to the visited cameras.

    Greedy (T. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), among directions near to
    those of training cameras: elsewhere the radiance field was never observed.

    Args:
        center: Centre of the object.
        trained: Poses of all training cameras.
        visited: Poses of the visited cameras whose views show the object.
        count: Number of directions to choose.

    Returns:
        Unit vectors; fewer than ``count`` where there are fewer candidates.
    """
    index = torch.arange(CANDIDATES, dtype=torch.float64) + 0.5
    height, azimuth = 1 - 2 * index / CANDIDATES, index * math.pi * (3 - math.sqrt(5))
    radius = (1 - height**2).sqrt()
    candidates = torch.stack([radius * azimuth.cos(), radius * azimuth.sin(), height], dim=-1).to(center)
    near = _angles(candidates, _directions(trained, center)).amin(1) < math.radians(REACH)
    candidates = candidates[near]
    separation = _angles(candidates, _directions(visited, center)).amin(1)
    chosen: list[Tensor] = []
    while len(chosen) < min(count, len(candidates)):
        best = int(separation.argmax())
        chosen.append(candidates[best])
        separation = torch.minimum(separation, _angles(candidates, candidates[best : best + 1])[:, 0])
    return torch.stack(chosen) if chosen else candidates[:0]


def camera_towards(
    center: Float[Tensor, "3"], direction: Float[Tensor, "3"], trained: Float[Tensor, "num_views 3 4"]
) -> Float[Tensor, "3 4"]:
    """Pose of an upright camera that looks at an object from a direction.

    Its distance is that of the training camera nearest in angle.
    """
    angles = _angles(direction[None], _directions(trained, center))[0]
    distance = (trained[int(angles.argmin()), :, 3] - center).norm()
    upwards = trained[:, :, 1].mean(0)
    right = torch.linalg.cross(upwards, direction)
    if float(right.norm()) < 1e-3:
        right = torch.linalg.cross(trained[0, :, 1], direction)
    right = torch.nn.functional.normalize(right, dim=0)
    return torch.stack([right, torch.linalg.cross(direction, right), direction, center + distance * direction], dim=1)


def views_around(
    views: RendersAnywhere,
    field: MaskField,
    threshold: float,
    visited: Float[Tensor, "num_visited 3 4"],
    spacing: float,
    count: int,
) -> dict[str, FreeView]:
    """Render an object from directions that the visited cameras lack.

    Each image is a window around the object, at the resolution of a training view's window: its pixels have the same
    spacing on the object.

    Args:
        views: The training views.
        field: Mask field of the object.
        threshold: Probability above which a cell is on the object.
        visited: Poses of the visited cameras whose views show the object.
        spacing: Distance between the object's surface points at neighbouring pixels of these views.
        count: Number of views to render.

    Returns:
        The views by names derived from their cameras; none where no cell is on the object, or no view has shown it.
    """
    points, weights = field.object_points(threshold)
    if not len(points) or not len(visited):
        return {}
    trained = views.camera_to_worlds
    low, high = robust_bounds(points, weights)
    center, radius = ((low + high) / 2).to(trained), float((high - low).norm() / 2)
    free_views = {}
    for direction in directions_around(center, trained, visited.to(trained), count):
        pose = camera_towards(center, direction, trained)
        distance = float((pose[:, 3] - center).norm())
        half_angle = math.asin(min(radius / distance, 0.9))
        min_side, max_side = SIDES
        side = round(min(max(2 * radius / FILLED / max(spacing, 1e-9), min_side), max_side))
        trace = views.render_from(pose, 2 * math.atan(math.tan(half_angle) / FILLED), side)
        free_views[f"around the object {digest([pose, side])[:8]}"] = FreeView(trace, pose)
    return free_views


def _directions(poses: Float[Tensor, "num 3 4"], center: Float[Tensor, "3"]) -> Float[Tensor, "num 3"]:
    """Unit vectors from a point to the cameras."""
    return torch.nn.functional.normalize(poses[:, :, 3] - center, dim=-1)


def _angles(
    directions: Float[Tensor, "num 3"], others: Float[Tensor, "num_others 3"]
) -> Float[Tensor, "num num_others"]:
    """Angles between unit vectors, in radians."""
    return torch.arccos((directions @ others.T).clamp(-1, 1))
