"""The rays of a view: those of views of one lens are the same in the camera's frame, and are held once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import torch
from jaxtyping import Float, Int
from torch import Tensor

LENSES = 8
"""Lenses whose directions views may share. Where each view has its own, nothing is shared and much is searched."""

Part = Union[slice, Tensor]


def rotated(vectors: Float[Tensor, "num 3"], matrix: Float[Tensor, "3 3"]) -> Float[Tensor, "num 3"]:
    """A matrix times each of some vectors, in full precision.

    A product of matrices on CUDA may be one of 10 bits (TF32), as some containers set it: half a pixel of an image of
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
    """The rays of a view: directions in the camera's frame, which all views of one lens share, and its pose."""

    origins: Float[Tensor, "one_or_num_rays 3"]
    """World space; one row if all begin in one place."""
    local: Float[Tensor, "num_rays 3"]
    """Unit directions in the camera's frame."""
    rotation: Float[Tensor, "3 3"]
    """From there to the world."""
    shared: bool = True
    """Whether the directions are kept for other views as well."""

    @classmethod
    def of(
        cls,
        origins: Float[Tensor, "num_rays 3"],
        directions: Float[Tensor, "num_rays 3"],
        rotation: Float[Tensor, "3 3"],
        known: list[Tensor] | None = None,
    ) -> ViewRays:
        """Take the rays that a camera generates.

        Args:
            origins: Where they begin.
            directions: Where they go.
            rotation: The camera's.
            known: Directions in the camera's frame of other views. Those that are equal are held once; this view's are
                added, if there are not too many.
        """
        rotation = rotation.to(directions)
        local = rotated(directions, rotation.T)
        if not torch.allclose(rotated(local, rotation), directions, atol=1e-5):
            rotation, local = torch.eye(3).to(directions), directions
        if torch.equal(origins, origins[:1].expand_as(origins)):
            origins = origins[:1].clone()
        shared = True
        if known is not None:
            same = (other for other in known if other.shape == local.shape and torch.allclose(other, local, atol=1e-6))
            found = next(same, None)
            shared = found is not None or len(known) < LENSES
            if found is not None:
                local = found
            elif shared:
                known.append(local)
        return cls(origins, local, rotation, shared)

    def origins_of(self, part: Part) -> Float[Tensor, "one_or_num_rays 3"]:
        """Where some of the rays begin."""
        return self.origins if len(self.origins) == 1 else self.origins[part]

    def directions_of(self, part: Part) -> Float[Tensor, "num_rays 3"]:
        """Where some of the rays go."""
        return rotated(self.local[part], self.rotation)

    def to(self, device: torch.device) -> ViewRays:
        """The same on a device."""
        return ViewRays(self.origins.to(device), self.local.to(device), self.rotation.to(device), self.shared)

    def part(self, pixels: Int[Tensor, " num_pixels"]) -> ViewRays:
        """Those of some of the pixels."""
        return ViewRays(self.origins_of(pixels), self.local[pixels], self.rotation, shared=False)

    @property
    def num_bytes(self) -> int:
        """Memory that is this view's alone."""
        own = [self.origins] * (len(self.origins) > 1) + [self.local] * (not self.shared)
        return sum(each.numel() * each.element_size() for each in own)
