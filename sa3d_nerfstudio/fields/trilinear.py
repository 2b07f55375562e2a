"""Trilinear interpolation as sparse sums: each corner of a block of eight vertices by itself."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Fractions = tuple[Float[Tensor, " num"], Float[Tensor, " num"], Float[Tensor, " num"]]
"""How far positions lie along x, y and z from the first vertex of their block to the last, in [0, 1]."""


def corner_offsets(resolution: int) -> tuple[int, ...]:
    """Distance of a block's eight vertices from its first one, in memory of layout [z, y, x]."""
    y, z = resolution, resolution * resolution
    return (0, 1, y, y + 1, z, z + 1, z + y, z + y + 1)


def corner_weights(fractions: Fractions, scale: Float[Tensor, " num"] | None = None) -> list[Float[Tensor, " num"]]:
    """Weight of each of the eight vertices, in the order of :func:`corner_offsets`; times ``scale``."""
    x, y, z = fractions
    far = z if scale is None else scale * z
    weights = []
    for plane in ((1 - far) if scale is None else scale - far, far):
        upper = plane * y
        for line in (plane - upper, upper):
            right = line * x
            weights += [line - right, right]
    return weights


def read(
    values: Float[Tensor, " num_cells"],
    uniform: Bool[Tensor, " num_cells"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    resolution: int,
) -> Float[Tensor, " num"]:
    """Read a channel at positions.

    Args:
        values: At the vertices.
        uniform: See :func:`uniform_blocks`: where it is True, one vertex says what all eight would.
        index: First vertex of the block that each position lies in.
        fractions: Where in the block.
        resolution: Vertices along each axis.
    """
    result = values.index_select(0, index)
    mixed = (~uniform.index_select(0, index)).nonzero()[:, 0]
    if len(mixed):
        at = index.index_select(0, mixed)
        x, y, z = (fraction.index_select(0, mixed) for fraction in fractions)
        total = torch.zeros_like(x)
        for offset, weight in zip(corner_offsets(resolution), corner_weights((x, y, z)), strict=True):
            total.addcmul_(values.index_select(0, at + offset), weight)
        result.index_copy_(0, mixed, total)
    return result


def add(
    out: Float[Tensor, " num_cells"],
    values: Float[Tensor, " num"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    resolution: int,
) -> None:
    """Add values at positions to the vertices around them: the adjoint of :func:`read`."""
    for offset, weight in zip(corner_offsets(resolution), corner_weights(fractions, values), strict=True):
        out.scatter_add_(0, index + offset, weight)


def uniform_blocks(values: Float[Tensor, " num_cells"], resolution: int) -> Bool[Tensor, " num_cells"]:
    """At the first vertex of each block, whether all eight hold the same value: then so does everything in between."""
    v = values.reshape(resolution, resolution, resolution)
    x, y, z = v[:, :, 1:] == v[:, :, :-1], v[:, 1:] == v[:, :-1], v[1:] == v[:-1]
    # A block is uniform if its front and back are, and one edge joins them; a side if its two edges are.
    side = x[:, 1:] & x[:, :-1] & y[:, :, :-1]
    result = torch.zeros_like(v, dtype=torch.bool)
    result[:-1, :-1, :-1] = side[1:] & side[:-1] & z[:, :-1, :-1]
    return result.reshape(-1)
