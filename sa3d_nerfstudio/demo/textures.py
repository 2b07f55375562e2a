"""Procedural solid textures: colour as a function of the point in the solid's local frame (metres)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sa3d_nerfstudio.demo.solids import Texture

Colour = tuple[float, float, float]


def _lattice(corners: ndarray, seed: int) -> Float[ndarray, " num"]:
    """Pseudo-random number in [0, 1) of each integer point, the same on every machine (32-bit integer hash)."""
    x, y, z = (corners[:, axis].astype(np.int64).astype(np.uint32) for axis in range(3))
    mixed = x * np.uint32(0x8DA6B343) ^ y * np.uint32(0xD8163841) ^ z * np.uint32(0xCB1AB31F) ^ np.uint32(seed)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return (mixed ^ (mixed >> np.uint32(16))) / 2.0**32


def noise(points: Float[ndarray, "num 3"], size: float, seed: int, octaves: int = 2) -> Float[ndarray, " num"]:
    """Smooth value noise in [0, 1].

    Args:
        points: Points to evaluate the noise at, metres.
        size: Distance between independent values of the coarsest octave, metres.
        seed: Seed of the pattern.
        octaves: Number of octaves; each further one is twice as fine and half as strong.
    """
    total, strength = np.zeros(len(points)), 0.0
    for octave in range(octaves):
        scaled = points / size * 2.0**octave
        low = np.floor(scaled)
        blend = scaled - low
        blend = blend * blend * (3.0 - 2.0 * blend)
        value = np.zeros(len(points))
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(np.asarray(corner) == 1, blend, 1.0 - blend).prod(-1)
            value += weight * _lattice(low + corner, seed + octave)
        total += value / 2.0**octave
        strength += 1.0 / 2.0**octave
    return total / strength


def _mix(first: Colour, second: Colour, share: Float[ndarray, " num"]) -> Float[ndarray, "num 3"]:
    """Blend of two colours: ``first`` where ``share`` is 0, ``second`` where it is 1."""
    return np.asarray(first) + (np.asarray(second) - np.asarray(first)) * share[:, None]


def mottled(first: Colour, second: Colour, size: float, seed: int) -> Texture:
    """Smooth patches of two colours; ``size`` is that of a patch, metres."""

    def texture(points: ndarray) -> ndarray:
        # Value noise gathers around its mean; the stretch makes both colours appear.
        return _mix(first, second, np.clip((noise(points, size, seed) - 0.5) * 2.0 + 0.5, 0.0, 1.0))

    return texture


def checker(first: Colour, second: Colour, size: float, seed: int) -> Texture:
    """Cubes of edge ``size`` in two colours, with noise in the brightness."""

    def texture(points: ndarray) -> ndarray:
        # The shift keeps faces that pass through the origin off the boundary between two cubes.
        parity = np.floor(points / size + 0.5).sum(-1) % 2
        return _mix(first, second, parity) * (0.8 + 0.2 * noise(points, size, seed))[:, None]

    return texture


def stripes(first: Colour, second: Colour, size: float, axis: int, seed: int) -> Texture:
    """Bands of width ``size`` along one axis, wavy, with noise in the brightness."""

    def texture(points: ndarray) -> ndarray:
        band = np.floor(points[:, axis] / size + 0.5 * noise(points, 3 * size, seed)) % 2
        return _mix(first, second, band) * (0.8 + 0.2 * noise(points, size, seed + 7))[:, None]

    return texture
