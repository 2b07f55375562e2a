"""Convex solids, each of which a ray meets in one interval.

Every shape is defined in its local frame, centred on the origin with z up; :class:`Solid` places it in the world.
Arrays are float64; lengths are in metres.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

Texture = Callable[[Float[ndarray, "num 3"]], Float[ndarray, "num 3"]]
"""Albedo in [0, 1] at points in the solid's local frame."""

PARALLEL = 1e-12
"""Replacement of direction components near zero, so that divisions by them give huge finite numbers."""


class Shape(Protocol):
    """Convex solid in its local frame."""

    def interval(
        self, origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"]
    ) -> tuple[Float[ndarray, " num"], Float[ndarray, " num"]]:
        """Ray parameters of entry and exit; a ray that misses has its exit before its entry."""
        ...

    def normals(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, "num 3"]:
        """Outward unit normals at points of the surface."""
        ...

    def sample_surface(self, num: int, rng: np.random.Generator) -> Float[ndarray, "num 3"]:
        """Points spread evenly over the surface."""
        ...

    def half_extent(self, yaw: float) -> Float[ndarray, "3"]:
        """Half the size of the axis-aligned box around the shape after a rotation by ``yaw`` radians about z."""
        ...


def _slab(
    origins: Float[ndarray, " num"], directions: Float[ndarray, " num"], half: float
) -> tuple[Float[ndarray, " num"], Float[ndarray, " num"]]:
    """Interval of the ray parameter in which one coordinate stays within ±half."""
    inverse = 1.0 / np.where(np.abs(directions) < PARALLEL, PARALLEL, directions)
    first, second = (-half - origins) * inverse, (half - origins) * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _round(
    origins: Float[ndarray, "num dims"], directions: Float[ndarray, "num dims"], radius: float
) -> tuple[Float[ndarray, " num"], Float[ndarray, " num"]]:
    """Interval of the ray parameter within ``radius`` of the origin: a ball in 3D, an endless cylinder in 2D."""
    a = np.maximum((directions**2).sum(-1), PARALLEL)
    b = (origins * directions).sum(-1)
    discriminant = b**2 - a * ((origins**2).sum(-1) - radius**2)
    root = np.sqrt(np.maximum(discriminant, 0.0))
    hit = discriminant > 0
    return np.where(hit, (-b - root) / a, np.inf), np.where(hit, (-b + root) / a, -np.inf)


@dataclass(frozen=True)
class Sphere:
    """A ball."""

    radius: float

    def interval(self, origins: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
        """See :class:`Shape`."""
        return _round(origins, directions, self.radius)

    def normals(self, points: ndarray) -> ndarray:
        """See :class:`Shape`."""
        return points / np.linalg.norm(points, axis=-1, keepdims=True)

    def sample_surface(self, num: int, rng: np.random.Generator) -> ndarray:
        """See :class:`Shape`."""
        return self.radius * self.normals(rng.normal(size=(num, 3)))

    def half_extent(self, yaw: float) -> ndarray:
        """See :class:`Shape`."""
        return np.full(3, self.radius)


@dataclass(frozen=True)
class Box:
    """A cuboid with half the edge lengths ``half``."""

    half: tuple[float, float, float]

    def interval(self, origins: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
        """See :class:`Shape`."""
        slabs = [_slab(origins[:, axis], directions[:, axis], self.half[axis]) for axis in range(3)]
        return np.maximum.reduce([slab[0] for slab in slabs]), np.minimum.reduce([slab[1] for slab in slabs])

    def normals(self, points: ndarray) -> ndarray:
        """See :class:`Shape`."""
        face = np.argmax(np.abs(points) - np.asarray(self.half), axis=-1)
        rows = np.arange(len(points))
        normals = np.zeros_like(points)
        normals[rows, face] = np.sign(points[rows, face])
        return normals

    def sample_surface(self, num: int, rng: np.random.Generator) -> ndarray:
        """See :class:`Shape`."""
        half = np.asarray(self.half)
        area = np.prod(half) / half
        face = rng.choice(3, size=num, p=area / area.sum())
        points = rng.uniform(-half, half, size=(num, 3))
        points[np.arange(num), face] = half[face] * rng.choice([-1.0, 1.0], size=num)
        return points

    def half_extent(self, yaw: float) -> ndarray:
        """See :class:`Shape`."""
        (x, y, z), cos, sin = self.half, abs(np.cos(yaw)), abs(np.sin(yaw))
        return np.array([x * cos + y * sin, x * sin + y * cos, z])


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder with both its caps."""

    radius: float
    half_height: float

    def interval(self, origins: ndarray, directions: ndarray) -> tuple[ndarray, ndarray]:
        """See :class:`Shape`."""
        side = _round(origins[:, :2], directions[:, :2], self.radius)
        caps = _slab(origins[:, 2], directions[:, 2], self.half_height)
        return np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1])

    def normals(self, points: ndarray) -> ndarray:
        """See :class:`Shape`."""
        distance = np.linalg.norm(points[:, :2], axis=-1)
        cap = np.abs(points[:, 2]) - self.half_height > distance - self.radius
        cap_normals = points * [0.0, 0.0, 1.0]
        side_normals = points * [1.0, 1.0, 0.0]
        normals = np.where(cap[:, None], cap_normals, side_normals)
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)

    def sample_surface(self, num: int, rng: np.random.Generator) -> ndarray:
        """See :class:`Shape`."""
        angle = rng.uniform(0.0, 2 * np.pi, size=num)
        on_cap = rng.uniform(size=num) < self.radius / (self.radius + 2 * self.half_height)
        distance = np.where(on_cap, self.radius * np.sqrt(rng.uniform(size=num)), self.radius)
        z = np.where(on_cap, rng.choice([-1.0, 1.0], size=num), rng.uniform(-1.0, 1.0, size=num)) * self.half_height
        return np.stack([distance * np.cos(angle), distance * np.sin(angle), z], axis=-1)

    def half_extent(self, yaw: float) -> ndarray:
        """See :class:`Shape`."""
        return np.array([self.radius, self.radius, self.half_height])


@dataclass(frozen=True)
class Solid:
    """Named, textured shape, placed in the world."""

    name: str
    shape: Shape
    center: tuple[float, float, float]
    """World coordinates of the shape's centre."""
    texture: Texture
    yaw: float = 0.0
    """Rotation about z, radians."""
    tags: tuple[str, ...] = field(default=())
    """Properties that make the object hard to segment."""

    @property
    def rotation(self) -> Float[ndarray, "3 3"]:
        """Rotation from the local frame to the world."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])

    @property
    def bounds(self) -> tuple[Float[ndarray, "3"], Float[ndarray, "3"]]:
        """Lowest and highest corner of the axis-aligned box around the solid, in the world."""
        half = self.shape.half_extent(self.yaw)
        return np.asarray(self.center) - half, np.asarray(self.center) + half

    def to_local(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, "num 3"]:
        """World points, transformed to the shape's local frame."""
        return (points - np.asarray(self.center)) @ self.rotation

    def interval(
        self, origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"]
    ) -> tuple[Float[ndarray, " num"], Float[ndarray, " num"]]:
        """Ray parameters of entry and exit of world rays, in units of the length of ``directions``."""
        return self.shape.interval(self.to_local(origins), directions @ self.rotation)

    def normals(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, "num 3"]:
        """Outward unit normals at world points of the surface."""
        return self.shape.normals(self.to_local(points)) @ self.rotation.T

    def sample_surface(self, num: int, rng: np.random.Generator) -> Float[ndarray, "num 3"]:
        """World points spread evenly over the surface."""
        return self.shape.sample_surface(num, rng) @ self.rotation.T + np.asarray(self.center)

    def contains(self, points: Float[ndarray, "num 3"]) -> Bool[ndarray, " num"]:
        """Whether world points lie inside."""
        upward = np.broadcast_to([0.0, 0.0, 1.0], points.shape)
        enter, leave = self.interval(points, upward)
        return (enter < 0) & (leave > 0)
