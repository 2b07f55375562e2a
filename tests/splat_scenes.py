"""Scenes of flat Gaussians on boxes and balls, with ground truth: the solid of each Gaussian, and its visibility."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy.spatial.transform import Rotation

from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.virtual_cameras import in_image


@dataclass
class Box:
    """A solid, axis-aligned box."""

    low: Sequence[float]
    high: Sequence[float]
    faces: Sequence[int] = (0, 1, 2, 3, 4, 5)
    """Faces with Gaussians; 0 to 5 are low and high in x, in y, in z."""

    def surface(self, density: float, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
        """Random points on its faces, and their normals."""
        low, high, pairs = np.array(self.low, float), np.array(self.high, float), []
        for face in self.faces:
            axis = face // 2
            area = np.prod(np.delete(high - low, axis))
            points = rng.uniform(low, high, (int(np.ceil(area * density)), 3))
            points[:, axis] = (low, high)[face % 2][axis]
            pairs.append((points, np.tile(np.eye(3)[axis], (len(points), 1))))
        return np.concatenate([pair[0] for pair in pairs]), np.concatenate([pair[1] for pair in pairs])

    def passed(self, origin: ndarray, rays: ndarray) -> ndarray:
        """Positions [2, rays] where rays enter and leave it, from 0 at the origin to 1 at the ray's end."""
        with np.errstate(divide="ignore", invalid="ignore"):
            first, second = (np.array(self.low) - origin) / rays, (np.array(self.high) - origin) / rays
        return np.stack([np.fmax.reduce(np.fmin(first, second), 1), np.fmin.reduce(np.fmax(first, second), 1)])


@dataclass
class Ball:
    """A solid ball."""

    center: Sequence[float]
    radius: float

    def surface(self, density: float, rng: np.random.Generator) -> tuple[ndarray, ndarray]:
        """Random points on it, and their normals."""
        normals = rng.normal(size=(int(4 * np.pi * self.radius**2 * density), 3))
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return np.array(self.center) + self.radius * normals, normals

    def passed(self, origin: ndarray, rays: ndarray) -> ndarray:
        """As :meth:`Box.passed`."""
        offset = origin - np.array(self.center)
        a, b, c = (rays**2).sum(1), rays @ offset, offset @ offset - self.radius**2
        root = np.sqrt(np.maximum(b * b - a * c, 0.0))
        hit = b * b > a * c
        return np.stack([np.where(hit, (-b - root) / a, 2.0), np.where(hit, (-b + root) / a, 1.0)])


@dataclass
class SplatScene:
    """Solids with Gaussians on them, and in a room, walls around them."""

    solids: Sequence[Box | Ball]
    density: float
    """Gaussians per unit of area."""
    sigma: float
    walls: Box | None = None
    degree: int = 1
    colors: Sequence[Sequence[float]] | None = None
    """Colour of each solid, in [0, 1]; by default, each Gaussian has a random one."""
    owner: ndarray = field(init=False)
    """Index of each Gaussian's solid; -1 for the walls."""
    gaussians: Gaussians = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = [*self.solids, *([] if self.walls is None else [self.walls])]
        pairs = [shape.surface(self.density, rng) for shape in shapes]
        index = [*range(len(self.solids)), -1]
        self.owner = np.concatenate([np.full(len(pair[0]), i) for pair, i in zip(pairs, index, strict=False)])
        points, normals = (np.concatenate([pair[i] for pair in pairs]) for i in range(2))
        colors = None
        if self.colors is not None:
            colors = np.clip(np.array(self.colors)[self.owner] + rng.normal(0, 0.03, points.shape), 0, 1)
        self.gaussians = flat_gaussians(points, normals, self.sigma, self.degree, rng, colors)

    def seeable(self) -> Bool[ndarray, " num"]:
        """Whether each Gaussian lies outside all other solids."""
        points, outside = self.gaussians.means.astype(float), np.ones(len(self.owner), bool)
        for index, solid in enumerate(self.solids):
            of_others = self.owner != index
            if isinstance(solid, Ball):
                within = np.linalg.norm(points - np.array(solid.center), axis=1) < solid.radius + 1e-3
            else:
                within = ((points > np.array(solid.low) - 1e-3) & (points < np.array(solid.high) + 1e-3)).all(1)
            outside &= ~(within & of_others)
        return outside

    def seen(self, camera: SplatCamera) -> Bool[ndarray, " num"]:
        """Whether a camera sees each Gaussian's centre: it is in the image, and no solid or wall hides it."""
        points = self.gaussians.means.astype(float)
        origin = camera.pose[:3, 3]
        seen = in_image(camera.pose, points, camera.fx, camera.width, camera.height)
        rays = points - origin
        for solid in self.solids:
            enter, leave = solid.passed(origin, rays)
            seen &= ~((np.minimum(leave, 1 - 1e-3) - np.maximum(enter, 0)) > 1e-3)
        if self.walls is not None:
            inside = ((origin > np.array(self.walls.low)) & (origin < np.array(self.walls.high))).all()
            seen &= inside
        return seen

    def within_solid(self, point: Float[ndarray, "3"]) -> bool:
        """Whether a position is in a solid, or in or beyond a wall."""
        for solid in self.solids:
            if isinstance(solid, Ball) and np.linalg.norm(point - np.array(solid.center)) < solid.radius:
                return True
            if isinstance(solid, Box) and ((point > np.array(solid.low)) & (point < np.array(solid.high))).all():
                return True
        if self.walls is None:
            return False
        return not bool(((point > np.array(self.walls.low)) & (point < np.array(self.walls.high))).all())


def flat_gaussians(
    points: ndarray,
    normals: ndarray,
    sigma: float,
    degree: int,
    rng: np.random.Generator,
    colors: ndarray | None = None,
) -> Gaussians:
    """Flat Gaussians across the normals of a surface.

    Args:
        points: Centres of the Gaussians.
        normals: Unit normals.
        sigma: Standard deviation across the normal; a tenth of it along the normal.
        degree: Degree of the spherical harmonics.
        rng: Random numbers for colours and opacities.
        colors: Colours in [0, 1]; random by default.
    """
    count = len(points)
    rotations = np.concatenate([np.cross([0, 0, 1.0], normals), 1 + normals[:, 2:]], axis=1)
    rotations[np.linalg.norm(rotations, axis=1) < 1e-6] = [1, 0, 0, 0]
    quats = np.roll(Rotation.from_quat(rotations).as_quat(), 1, axis=1)
    colors = rng.uniform(size=(count, 3)) if colors is None else colors
    values = (
        points,
        np.log(np.tile([sigma, sigma, 0.1 * sigma], (count, 1))),
        quats,
        rng.uniform(1, 5, count),
        (colors - 0.5) / 0.28209479177387814,
        rng.normal(0, 0.1, (count, (degree + 1) ** 2 - 1, 3)),
    )
    return Gaussians(*(np.ascontiguousarray(value, dtype=np.float32) for value in values))


STANDING = (0, 1, 2, 3, 5)
"""Faces of a box without the bottom."""


def room() -> SplatScene:
    """A room of 6 x 5 x 3 with furniture and a floating ball."""
    furniture = [
        Box([1, 1, 0], [2.5, 2, 0.8], STANDING), Box([4, 3, 0], [5.4, 4.6, 0.5], STANDING), Ball([3, 2.5, 1.5], 0.3)
    ]  # fmt: skip
    return SplatScene(furniture, 700, 0.03, Box([0, 0, 0], [6, 5, 3]))


def table() -> SplatScene:
    """A table with objects on it, on a wider floor."""
    legs = [Box([x, y, -1], [x + 0.05, y + 0.05, -0.05], (0, 1, 2, 3)) for x in (-0.9, 0.85) for y in (-0.6, 0.55)]
    objects = [Ball([0.3, 0, 0.2], 0.2), Box([-0.5, -0.3, 0], [-0.2, 0, 0.4], STANDING)]
    floor = Box([-3, -3, -1.001], [3, 3, -1], (5,))
    return SplatScene([floor, Box([-1, -0.7, -0.05], [1, 0.7, 0]), *legs, *objects], 1500, 0.02)


def single_object() -> SplatScene:
    """A figure of balls and a block, with nothing around it."""
    return SplatScene(
        [Ball([0, 0, 0], 0.6), Ball([0, 0, 0.85], 0.35), Box([-0.5, -0.4, -0.9], [0.5, 0.4, -0.55])], 3000, 0.015
    )


def desk(degree: int = 3) -> SplatScene:
    """A red ball and a blue block on a grey board, of few, large Gaussians for a slow rasteriser."""
    solids = [
        Ball([0, 0, 0.35], 0.35),
        Box([0.55, 0.3, 0], [0.9, 0.7, 0.6], STANDING),
        Box([-1.2, -1.2, -0.05], [1.2, 1.2, 0]),
    ]
    return SplatScene(solids, 110, 0.07, degree=degree, colors=[[0.85, 0.15, 0.1], [0.1, 0.2, 0.8], [0.6, 0.6, 0.6]])


SCENES: dict[str, Callable[[], SplatScene]] = {"room": room, "table": table, "object": single_object}
