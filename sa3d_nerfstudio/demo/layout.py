"""Layout of the demo's scene: objects, room and cameras."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sa3d_nerfstudio.demo.solids import Box, Cylinder, Solid, Sphere
from sa3d_nerfstudio.demo.textures import checker, mottled, stripes
from sa3d_nerfstudio.demo.tracer import Room

AIM = (0.0, 0.0, 0.12)
"""Point that the cameras look at, world frame."""
CAMERA_DISTANCE = 1.25
"""Distance of the cameras from ``AIM``, metres, to within 4 %."""
FOCAL = 1.05
"""Focal length as a multiple of the image's width."""

_BLUE_DICE = checker((0.15, 0.25, 0.75), (0.55, 0.7, 0.95), 0.065, seed=31)


def room() -> Room:
    """Room of 4 x 4 x 2.4 metres, textured all over so that every ray ends on texture."""
    return Room(
        half=(2.0, 2.0, 1.2),
        floor=mottled((0.36, 0.37, 0.33), (0.80, 0.79, 0.72), 0.26, seed=11),
        walls=mottled((0.45, 0.55, 0.62), (0.85, 0.87, 0.85), 0.7, seed=12),
    )


def solids() -> list[Solid]:
    """Six objects; the demo clicks on the first by default."""
    return [
        Solid(
            "ball",
            Sphere(0.17),
            (-0.17, -0.2, 0.17),
            mottled((0.72, 0.06, 0.05), (0.95, 0.22, 0.12), 0.09, seed=21),
            tags=("partly occluded by post",),
        ),
        Solid(
            "crate",
            Box((0.15, 0.12, 0.13)),
            (0.16, 0.14, 0.13),
            stripes((0.85, 0.66, 0.25), (0.55, 0.38, 0.14), 0.045, axis=2, seed=22),
            tags=("touching tin",),
        ),
        Solid(
            "tin",
            Cylinder(0.085, 0.15),
            # Its side lies against the crate's face at x = 0.01.
            (0.01 - 0.085, 0.16, 0.15),
            stripes((0.92, 0.92, 0.9), (0.1, 0.55, 0.5), 0.06, axis=2, seed=23),
            tags=("touching crate",),
        ),
        Solid("die_near", Box((0.075, 0.075, 0.075)), (0.22, -0.17, 0.075), _BLUE_DICE, 0.4, ("look-alike",)),
        Solid("die_far", Box((0.075, 0.075, 0.075)), (-0.36, 0.12, 0.075), _BLUE_DICE, 1.1, ("look-alike",)),
        Solid(
            "post",
            Cylinder(0.028, 0.2),
            (0.04, -0.35, 0.2),
            stripes((0.12, 0.5, 0.16), (0.5, 0.72, 0.2), 0.07, axis=2, seed=24),
            tags=("thin", "occludes ball"),
        ),
    ]


def look_at(position: Float[ndarray, "3"], target: Float[ndarray, "3"]) -> Float[ndarray, "4 4"]:
    """Pose (camera to world, OpenGL axes) of an upright camera that looks at ``target``."""
    back = (position - target) / np.linalg.norm(position - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, position], axis=-1)
    return pose


def poses(num_train: int, num_test: int, seed: int) -> list[Float[ndarray, "4 4"]]:
    """Training cameras all round at two elevations in turn, then test cameras in the gaps between them.

    Args:
        num_train: Number of training cameras.
        num_test: Number of test cameras, each half way (in azimuth) between two training cameras.
        seed: Seed of small random shifts of the cameras.
    """
    rng = np.random.default_rng(seed)
    step = 2 * np.pi / num_train
    gaps = np.floor(np.arange(num_test) * num_train / max(num_test, 1)) + 0.5
    azimuths = step * np.concatenate([np.arange(num_train) + rng.uniform(-0.15, 0.15, num_train), gaps])
    elevations = np.where(np.arange(num_train) % 2 == 0, np.radians(28.0), np.radians(48.0))
    elevations = np.concatenate(
        [elevations + rng.uniform(-0.06, 0.06, num_train), np.radians(rng.uniform(30, 45, num_test))]
    )
    distances = CAMERA_DISTANCE * rng.uniform(0.96, 1.04, num_train + num_test)
    result = []
    for azimuth, elevation, distance in zip(azimuths, elevations, distances, strict=True):
        direction = [np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)]
        target = np.asarray(AIM) + rng.uniform(-0.02, 0.02, 3)
        result.append(look_at(np.asarray(AIM) + distance * np.asarray(direction), target))
    return result
