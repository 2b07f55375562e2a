"""3D Gaussians as in splat files, independent of any model."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.transform import Rotation
from scipy.special import lpmv

MAX_SH_DEGREE = 4
"""Highest degree of spherical harmonics that gsplat renders."""
SH_C0 = 0.28209479177387814
"""The constant basis function, 1 / (2 sqrt(pi))."""


@dataclass
class Gaussians:
    """A set of 3D Gaussians with the values that 3DGS files hold and splatfacto trains, all float32.

    Positions are in the file's own frame, which has no agreed unit or orientation.
    """

    means: Float[ndarray, "num 3"]
    """Centres."""
    scales: Float[ndarray, "num 3"]
    """Natural logarithms of the standard deviations along the three axes."""
    quats: Float[ndarray, "num 4"]
    """Rotations from a Gaussian's axes to the frame as quaternions w, x, y, z; of any length but 0."""
    opacities: Float[ndarray, " num"]
    """Logits of the opacity."""
    features_dc: Float[ndarray, "num 3"]
    """Coefficients of the constant basis function for red, green and blue; colour is 0.5 + ``SH_C0`` times them."""
    features_rest: Float[ndarray, "num bases 3"]
    """Coefficients of the other basis functions; ``(degree + 1) ** 2 - 1`` of them."""

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, rows: ndarray | slice) -> Gaussians:
        """Select Gaussians by indices, a mask or a slice."""
        return Gaussians(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    @property
    def sh_degree(self) -> int:
        """Degree of the spherical harmonics."""
        return math.isqrt(self.features_rest.shape[1] + 1) - 1

    @property
    def alphas(self) -> Float[ndarray, " num"]:
        """Opacities in [0, 1]."""
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-self.opacities))

    @property
    def colors(self) -> Float[ndarray, "num 3"]:
        """Red, green and blue in [0, 1], without their view-dependent part."""
        return np.clip(0.5 + SH_C0 * self.features_dc, 0, 1)

    @property
    def axes(self) -> Float[ndarray, "num 3 3"]:
        """Unit vectors along each Gaussian's axes, as columns."""
        return Rotation.from_quat(np.roll(self.quats, -1, axis=1)).as_matrix().astype(np.float32)

    def moved(self, rotation: Float[ndarray, "3 3"], origin: Float[ndarray, "3"]) -> Gaussians:
        """The Gaussians rotated about a point that becomes the origin, view-dependent colours included.

        Args:
            rotation: Rotation of directions in this frame to the new one.
            origin: Position of the new origin in this frame.
        """
        turn = Rotation.from_matrix(rotation)
        turned = (turn * Rotation.from_quat(np.roll(self.quats, -1, axis=1))).as_quat()
        rest = self.features_rest.copy()
        for degree in range(1, self.sh_degree + 1):
            band = slice(degree**2 - 1, (degree + 1) ** 2 - 1)
            rest[:, band] = np.einsum("ij,njc->nic", band_rotation(degree, rotation), rest[:, band])
        return Gaussians(
            ((self.means - origin) @ np.asarray(rotation).T).astype(np.float32),
            self.scales,
            np.roll(turned, 1, axis=1).astype(np.float32),
            self.opacities,
            self.features_dc,
            rest,
        )


def sh_band(degree: int, directions: Float[ndarray, "num 3"]) -> Float[ndarray, "num orders"]:
    """The real spherical harmonics of one degree with the signs of 3DGS: order -degree to degree.

    They are ``sqrt(2) N P(cos theta) sin(|m| phi)`` for negative orders m and the same with a cosine for positive ones,
    where the associated Legendre function P has the Condon-Shortley phase and N is its norm on the sphere.

    Args:
        degree: From 0 on.
        directions: Unit vectors.
    """
    x, y, z = np.asarray(directions, np.float64).T
    azimuth, columns = np.arctan2(y, x), []
    for order in range(-degree, degree + 1):
        size = abs(order)
        ratio = math.factorial(degree - size) / math.factorial(degree + size)
        column = math.sqrt((2 * degree + 1) / (4 * math.pi) * ratio) * lpmv(size, degree, np.clip(z, -1, 1))
        if order:
            column = math.sqrt(2) * column * (np.sin(size * azimuth) if order < 0 else np.cos(size * azimuth))
        columns.append(column)
    return np.stack(columns, axis=-1)


def band_rotation(degree: int, rotation: Float[ndarray, "3 3"]) -> Float[ndarray, "orders orders"]:
    """Matrix that rotates the coefficients of one degree, and thus the view-dependent colours.

    The functions of a degree span a space that rotations map to itself, so the matrix follows from a few directions.

    Args:
        degree: From 1 on.
        rotation: Rotation of directions in the old frame to the new one.
    """
    directions = np.random.default_rng(0).normal(size=(8 * (2 * degree + 1), 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    before, after = sh_band(degree, directions), sh_band(degree, directions @ np.asarray(rotation, np.float64).T)
    return np.linalg.lstsq(after, before, rcond=None)[0].astype(np.float32)
