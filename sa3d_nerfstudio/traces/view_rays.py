"""The rays of a view: views of one lens share their directions in the camera's frame, which are held once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import torch
from jaxtyping import Float, Int
from torch import Tensor

LENSES = 8
"""Largest number of lenses with shared directions; if each view has another lens, more would only cost searches."""

Part = Union[slice, Tensor]


def rotated(vectors: Float[Tensor, "num 3"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "num 3"]:
    """Multiply each vector by a matrix, in full precision.

    A matrix product on CUDA may have 10 bits (TF32), as some containers set it: an error of half a pixel in an image of
    a thousand.
    """
    x, y, z = (vectors[:, axis, None] for axis in range(3))
    return torch.addcmul(torch.addcmul(x * matrix[:, 0], y, matrix[:, 1]), z, matrix[:, 2])


def pixel_angle(directions: Float[Tensor, "height width 3"]) -> float:
    """Angle between the rays of neighbouring pixels, in radians: the median over the image."""
    pairs = [(directions[:, 1:], directions[:, :-1]), (directions[1:], directions[:-1])]
    steps = torch.cat([torch.linalg.cross(a, b).norm(dim=-1).reshape(-1) for a, b in pairs])
    return max(float(steps.median()), 1e-6) if len(steps) else 1e-3


@dataclass
class ViewRays:
    """The rays of a view: directions in the camera's frame, shared by all views of one lens, and the camera's pose."""

    origins: Float[Tensor, "one_or_num_rays 3"]
    """Origins in world space; one row if all rays have the same."""
    local: Float[Tensor, "num_rays 3"]
    """Unit directions in the camera's frame."""
    rotation: Float[Tensor, "3 3"]
    """Rotation from the camera's frame to the world."""
    shared: bool = True
    """Whether the directions are held for other views as well."""

    @classmethod
    def of(
        cls,
        origins: Float[Tensor, "num_rays 3"],
        directions: Float[Tensor, "num_rays 3"],
        rotation: Float[Tensor, "3 3"],
        known: list[Tensor] | None = None,
    ) -> ViewRays:
        """The rays that a camera generates.

        Args:
            origins: Origins in world space.
            directions: Unit directions in world space.
            rotation: Rotation of the camera, from its frame to the world.
            known: Directions of other views in the camera's frame. Equal ones are held once; this view's are added to
                the list, up to ``LENSES``.
        """
        rotation = rotation.to(directions)
        local = rotated(directions, rotation.T)
        if not torch.allclose(rotated(local, rotation), directions, atol=1e-5):
            rotation, local = torch.eye(3).to(directions), directions
        if torch.equal(origins, origins[:1].expand_as(origins)):
            origins = origins[:1].clone()
        shared = True
        if known is not None:
            equal = (lens for lens in known if lens.shape == local.shape and torch.allclose(lens, local, atol=1e-6))
            first_equal = next(equal, None)
            shared = first_equal is not None or len(known) < LENSES
            if first_equal is not None:
                local = first_equal
            elif shared:
                known.append(local)
        return cls(origins, local, rotation, shared)

    def origins_of(self, part: Part) -> Float[Tensor, "one_or_num_rays 3"]:
        """Origins of some of the rays, world space."""
        return self.origins if len(self.origins) == 1 else self.origins[part]

    def directions_of(self, part: Part) -> Float[Tensor, "num_rays 3"]:
        """Directions of some of the rays, world space."""
        return rotated(self.local[part], self.rotation)

    def to(self, device: torch.device) -> ViewRays:
        """The rays on a device."""
        return ViewRays(self.origins.to(device), self.local.to(device), self.rotation.to(device), self.shared)

    def part(self, pixels: Int[Tensor, " num_pixels"]) -> ViewRays:
        """The rays of some of the pixels."""
        return ViewRays(self.origins_of(pixels), self.local[pixels], self.rotation, shared=False)

    @property
    def num_bytes(self) -> int:
        """Memory of the tensors that are not shared with other views, in bytes."""
        tensors = [self.origins] * (len(self.origins) > 1) + [self.local] * (not self.shared)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
