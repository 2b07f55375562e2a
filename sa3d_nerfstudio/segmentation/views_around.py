"""Virtual cameras around an object, where the training views that are visited show it badly."""

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
"""Directions that are tried, evenly all around."""
REACH = 40.0
"""Degrees from the nearest training camera up to which a radiance field is taken to be known well enough."""
FILLED = 0.7
"""Of the image's side, what a ball around the object covers: about the share of a window that an object takes."""
SIDES = (32, 256)
"""Pixels along each side that such images have at least and at most."""


@runtime_checkable
class RendersAnywhere(Views, Protocol):
    """Training views whose scene can be rendered from other places as well."""

    def look_from(self, pose: Float[Tensor, "3 4"], angle: float, side: int) -> ViewTrace:
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
    """Directions from an object that differ most from those in which visited cameras lie.

    Greedy (T. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), among directions near to
    those of training cameras: elsewhere the radiance field has never been seen.

    Args:
        center: Of the object.
        trained: Poses of all training cameras.
        visited: Poses of the cameras that have shown the object.
        count: How many are wanted.

    Returns:
        Unit vectors, fewer where there are not so many.
    """
    index = torch.arange(CANDIDATES, dtype=torch.float64) + 0.5
    height, turn = 1 - 2 * index / CANDIDATES, index * math.pi * (3 - math.sqrt(5))
    flat = (1 - height**2).sqrt()
    candidates = torch.stack([flat * turn.cos(), flat * turn.sin(), height], dim=-1).to(center)
    near = _angles(candidates, _directions(trained, center)).amin(1) < math.radians(REACH)
    candidates = candidates[near]
    apart = _angles(candidates, _directions(visited, center)).amin(1)
    chosen: list[Tensor] = []
    while len(chosen) < min(count, len(candidates)):
        best = int(apart.argmax())
        chosen.append(candidates[best])
        apart = torch.minimum(apart, _angles(candidates, candidates[best : best + 1])[:, 0])
    return torch.stack(chosen) if chosen else candidates[:0]


def camera_towards(
    center: Float[Tensor, "3"], direction: Float[Tensor, "3"], trained: Float[Tensor, "num_views 3 4"]
) -> Float[Tensor, "3 4"]:
    """Pose of a camera that looks at an object from a direction, upright, and as far away as training cameras there."""
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
    """Render an object from where no visited camera was.

    Each image is a window around the object, as large as a window of a training view would be: its pixels are as far
    apart on the object.

    Args:
        views: The training views.
        field: What is known of the object.
        threshold: Probability above which something is on it.
        visited: Poses of the cameras that have shown it.
        spacing: Distance between what neighbouring pixels of theirs see of it.
        count: How many views are wanted.

    Returns:
        The views by names that stand for their cameras; none where nothing is known to be the object.
    """
    points, weights = field.object_points(threshold)
    if not len(points) or not len(visited):
        return {}
    trained = views.camera_to_worlds
    low, high = robust_bounds(points, weights)
    center, radius = ((low + high) / 2).to(trained), float((high - low).norm() / 2)
    found = {}
    for direction in directions_around(center, trained, visited.to(trained), count):
        pose = camera_towards(center, direction, trained)
        distance = float((pose[:, 3] - center).norm())
        half = math.asin(min(radius / distance, 0.9))
        least, most = SIDES
        side = round(min(max(2 * radius / FILLED / max(spacing, 1e-9), least), most))
        trace = views.look_from(pose, 2 * math.atan(math.tan(half) / FILLED), side)
        found[f"around the object {digest([pose, side])[:8]}"] = FreeView(trace, pose)
    return found


def _directions(poses: Float[Tensor, "num 3 4"], center: Float[Tensor, "3"]) -> Float[Tensor, "num 3"]:
    """In which cameras lie, seen from a point."""
    return torch.nn.functional.normalize(poses[:, :, 3] - center, dim=-1)


def _angles(
    directions: Float[Tensor, "num 3"], others: Float[Tensor, "num_others 3"]
) -> Float[Tensor, "num num_others"]:
    """Between unit vectors."""
    return torch.arccos((directions @ others.T).clamp(-1, 1))
