"""Trilinear interpolation as sparse sums: each corner of a block of eight vertices by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Fractions = tuple[Float[Tensor, " num"], Float[Tensor, " num"], Float[Tensor, " num"]]
"""How far positions lie along x, y and z from the first vertex of their block to the last, in [0, 1]."""


def corner_offsets(resolution: int) -> tuple[int, ...]:
    """Distance of a block's eight vertices from its first one, in memory of layout [z, y, x]."""
    y, z = resolution, resolution * resolution
    return (0, 1, y, y + 1, z, z + 1, z + y, z + y + 1)


def corner_weights(fractions: Fractions, scale: Float[Tensor, " num"] | None = None) -> Float[Tensor, "8 num"]:
    """Weight of each of the eight vertices, in the order of :func:`corner_offsets`; times ``scale``."""
    x, y, z = fractions
    weights = x.new_empty(8, len(x))
    if scale is None:
        torch.sub(1, z, out=weights[0])
        weights[4] = z
    else:
        torch.mul(scale, z, out=weights[4])
        torch.sub(scale, weights[4], out=weights[0])
    for fraction, step in ((y, 2), (x, 1)):
        near, far = weights[:: 2 * step], weights[step :: 2 * step]
        torch.mul(near, fraction, out=far)
        near -= far
    return weights


def read(
    values: Float[Tensor, " num_cells"], index: Int[Tensor, " num"], fractions: Fractions, resolution: int
) -> Float[Tensor, " num"]:
    """Read a channel at positions.

    Args:
        values: At the vertices.
        index: First vertex of the block that each position lies in.
        fractions: Where in the block.
        resolution: Vertices along each axis.
    """
    total = torch.zeros_like(fractions[0])
    for offset, weight in zip(corner_offsets(resolution), corner_weights(fractions), strict=True):
        # The same indices into what begins with that corner, instead of other indices for each.
        total.addcmul_(values[offset:].index_select(0, index), weight)
    return total


def read_sums(
    channels: Sequence[Float[Tensor, " num_cells"]],
    single: Sequence[Float[Tensor, " num_cells"]],
    weights: Float[Tensor, "atoms num_rays"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    resolution: int,
) -> list[Float[Tensor, " num_rays"]]:
    """Read channels at the atoms of rays, and add up each ray's: Σ w v of each channel.

    Args:
        channels: At the vertices.
        single: Of each channel; see :func:`single_valued`. Rays that never come where any of it is infinite read one
            vertex for eight.
        weights: Of the atoms.
        index: First vertices of their blocks, [atoms, num_rays] in a row.
        fractions: Where in the blocks.
        resolution: Vertices along each axis.
    """
    sums = [part.index_select(0, index).reshape(weights.shape).mul_(weights).sum(0) for part in single]
    # Once for all channels: the host waits for it.
    mixed = (~sum(sums[1:], start=sums[0]).isfinite()).nonzero()[:, 0]
    if len(mixed):
        # Of all atoms in a row: many times faster than columns of a table.
        each = torch.arange(0, len(index), weights.shape[1], device=index.device)
        atoms = (each[:, None] + mixed).reshape(-1)
        x, y, z, weight = (part.index_select(0, atoms) for part in (*fractions, weights.reshape(-1)))
        first = index.index_select(0, atoms)
        for values, total in zip(channels, sums, strict=True):
            read_values = read(values, first, (x, y, z), resolution)
            total.index_copy_(0, mixed, read_values.mul_(weight).reshape(-1, len(mixed)).sum(0))
    return sums


def read_all(
    values: Float[Tensor, "num_cells channels"],
    weights: Float[Tensor, "atoms num_rays"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    offsets: Int[Tensor, "8 1"],
) -> Float[Tensor, "num_rays channels"]:
    """The sums of :func:`read_sums`, of which every ray reads all eight vertices of each block.

    For GPUs: there it takes less time than to be told which rays need not, and all corners at once less than one by
    one.

    Args:
        values: At the vertices.
        weights: Of the atoms.
        index: First vertices of their blocks, [atoms, num_rays] in a row.
        fractions: Where in the blocks.
        offsets: :func:`corner_offsets`, where the values are.
    """
    corners = corner_weights(fractions, weights.reshape(-1))
    read_values = values.index_select(0, (index + offsets).reshape(-1)).reshape(*corners.shape, -1)
    return read_values.mul_(corners[..., None]).reshape(-1, *weights.shape[1:], values.shape[1]).sum(0)


def add_all(
    out: Float[Tensor, "num_cells channels"],
    values: Float[Tensor, "num_rays channels"],
    weights: Float[Tensor, "atoms num_rays"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    offsets: Int[Tensor, "8 1"],
) -> None:
    """The adjoint of :func:`read_all`: add the values of rays to all vertices around their atoms."""
    corners = corner_weights(fractions, weights.reshape(-1)).reshape(-1, *weights.shape[1:], 1)
    out.index_add_(0, (index + offsets).reshape(-1), (values * corners).reshape(-1, values.shape[1]))


def add(
    out: Float[Tensor, " num_cells"],
    values: Float[Tensor, " num"],
    index: Int[Tensor, " num"],
    fractions: Fractions,
    resolution: int,
) -> None:
    """Add values at positions to the vertices around them: the adjoint of :func:`read`."""
    for offset, weight in zip(corner_offsets(resolution), corner_weights(fractions, values), strict=True):
        out[offset:].scatter_add_(0, index, weight)


def single_valued(values: Float[Tensor, " num_cells"], resolution: int) -> Float[Tensor, " num_cells"]:
    """At the first vertex of each block, the value that all eight have in common, or infinity.

    Everything in between then has that value. Vertices that begin no block hold arbitrary values.
    """
    # Neighbours in memory are compared, over the ends of lines and planes too, where no block begins.
    y, z = resolution, resolution * resolution
    count = len(values) - z - y - 1
    along_x, along_y = ((values[step:] - values[:-step]).abs_() for step in (1, y))
    # What differs in a block are its front, its back, or an edge that joins them; in a side likewise.
    side = along_x[: count + z] + along_x[y : y + count + z]
    side += along_y[: count + z]
    spread = (values[z : z + count] - values[:count]).abs_().add_(side[:count]).add_(side[z:])
    single = torch.full_like(values, torch.inf)
    # Any difference times this overflows to infinity, and 0 stays 0: cheaper than a comparison.
    huge = torch.finfo(values.dtype).max
    torch.add(spread.mul_(huge).mul_(huge).mul_(huge), values[:count], out=single[:count])
    return single
