"""Oriented boxes around objects, in the form that nerfstudio's exporters take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import trimesh
import viser.transforms as vtf
from jaxtyping import Float

from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.fields.base import MaskField


@dataclass
class Box:
    """Box oriented as nerfstudio's ``OrientedBox``: a point is inside if ``|Rᵀ (x - center)| <= scale / 2``."""

    center: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    """Rotation from the box's axes to the world's."""
    scale: Float[np.ndarray, "3"]
    """Lengths of the edges."""

    @property
    def corners(self) -> Float[np.ndarray, "8 3"]:
        """The eight corners."""
        signs = np.array(np.meshgrid(*[[-0.5, 0.5]] * 3)).reshape(3, -1).T
        return self.center + (signs * self.scale) @ self.rotation.T

    @property
    def roll_pitch_yaw(self) -> tuple[float, float, float]:
        """The rotation in the form of nerfstudio's options, in radians."""
        angles = vtf.SO3.from_matrix(self.rotation).as_rpy_radians()
        return float(angles.roll), float(angles.pitch), float(angles.yaw)

    def moved(self, frame: Frame) -> Box:
        """The box in another frame."""
        center = frame.points(torch.from_numpy(self.center)[None])[0].numpy()
        rotation = frame.directions(torch.from_numpy(self.rotation.T)).numpy().T
        return Box(center, rotation, self.scale * frame.length)

    def numbers(self) -> dict[str, list[float]]:
        """Values of the options of ns-export, by name."""
        corners = self.corners
        values = {
            "obb_center": self.center,
            "obb_rotation": self.roll_pitch_yaw,
            "obb_scale": self.scale,
            "bounding_box_min": corners.min(axis=0),
            "bounding_box_max": corners.max(axis=0),
        }
        return {name: [round(float(value), 6) + 0.0 for value in numbers] for name, numbers in values.items()}

    def options(self) -> str:
        """The options for ``ns-export pointcloud``, ``poisson`` and ``gaussian-splat``, as a line to paste."""
        return _line(self.numbers(), ("obb_center", "obb_rotation", "obb_scale"))

    def bounding_options(self) -> str:
        """The options for ``ns-export tsdf`` and ``marching-cubes``, which take axis-aligned boxes."""
        return _line(self.numbers(), ("bounding_box_min", "bounding_box_max"))


def _line(numbers: dict[str, Any], names: tuple[str, ...]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {' '.join(f'{value:g}' for value in numbers[name])}" for name in names)


def box_around(points: Float[np.ndarray, "num 3"], pad: float = 0.0, tilted: bool = False) -> Box:
    """The smallest box around points.

    Args:
        points: World positions, in nerfstudio's frame.
        pad: Margin on each side of the points.
        tilted: Allow any orientation; by default the box is upright along nerfstudio's z axis, as most objects are.
    """
    positions = np.asarray(points, np.float64)
    if tilted:
        to_origin, extents = trimesh.bounds.oriented_bounds(_with_volume(positions, pad))
        pose = np.linalg.inv(to_origin)
        rotation, center = pose[:3, :3], pose[:3, 3]
        if np.linalg.det(rotation) < 0:
            rotation = rotation * [1, 1, -1]
    else:
        to_rectangle, lengths = trimesh.bounds.oriented_bounds_2D(_with_volume(positions, pad)[:, :2])
        rotation = np.eye(3)
        rotation[:2, :2] = to_rectangle[:2, :2].T
        if np.linalg.det(rotation) < 0:
            rotation[:, 0] *= -1
        if rotation[0, 0] < 0:  # a half turn gives the same box
            rotation[:2, :2] *= -1
        bottom, top = positions[:, 2].min(), positions[:, 2].max()
        center = np.array([*(-to_rectangle[:2, :2].T @ to_rectangle[:2, 2]), (bottom + top) / 2])
        extents = np.array([*lengths, top - bottom])
    return Box(center, rotation, np.asarray(extents) + 2 * pad)


def _with_volume(points: np.ndarray, pad: float) -> np.ndarray:
    """Thicken points in a plane or on a line, which have no hull, by a negligible amount."""
    size = max(pad, float(np.ptp(points, axis=0).max()), 1e-6) * 1e-3
    return np.concatenate([points, *(points.mean(axis=0) + size * sign * np.eye(3) for sign in (-1, 1))])


def object_box(field: MaskField, threshold: float, tilted: bool = False) -> Box:
    """Box around an object, from its cells alone, without rendering.

    Args:
        field: The object's mask field.
        threshold: Probability above which a cell belongs to the object.
        tilted: See :func:`box_around`.
    """
    points, pad = field.main_points(threshold)
    return box_around(points.double().cpu().numpy(), pad, tilted)
