"""Trilinear interpolation as sparse sums over the eight corners of blocks of vertices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

Fractions = tuple[Float[Tensor, " num"], Float[Tensor, " num"], Float[Tensor, " num"]]
"""Positions within their blocks along x, y and z, from 0 at the first vertex to 1 at the last."""


def corner_offsets(resolution: int) -> tuple[int, ...]:
    """Distance of a block's eight vertices from its first one, in memory of layout [z, y, x]."""
    y, z = resolution, resolution * resolution
    return (0, 1, y, y + 1, z, z + 1, z + y, z + y + 1)


def corner_weights(fractions: Fractions, scale: Float[Tensor, " num"] | None = None) -> Float[Tensor, "8 num"]:
    """Weight of each of the eight vertices, times ``scale``, in the order of :func:`corner_offsets`."""
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
    """Interpolate a channel at positions.

    Args:
        values: Values at the vertices.
        index: First vertex of the block that each position lies in.
        fractions: Positions within the blocks.
        resolution: Vertices along each axis.
    """
    total = torch.zeros_like(fractions[0])
    for offset, weight in zip(corner_offsets(resolution), corner_weights(fractions), strict=True):
        # Shift the values instead of the indices, which are then the same for all corners.
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
    """Interpolate channels at the atoms of rays, and sum along each ray: Σ w v of each channel.

    Args:
        channels: Values at the vertices.
        single: :func:`single_valued` of each channel. Rays that meet no infinite value in any of them read one vertex
            instead of eight.
        weights: Weights of the atoms.
        index: First vertices of the atoms' blocks, [atoms, num_rays] flattened.
        fractions: Positions of the atoms within the blocks.
        resolution: Vertices along each axis.
    """
    sums = [channel.index_select(0, index).reshape(weights.shape).mul_(weights).sum(0) for channel in single]
    # Once for all channels, since the host waits for it.
    mixed = (~sum(sums[1:], start=sums[0]).isfinite()).nonzero()[:, 0]
    if len(mixed):
        # Indices into the flattened atoms: many times faster than columns of a table.
        starts = torch.arange(0, len(index), weights.shape[1], device=index.device)
        atoms = (starts[:, None] + mixed).reshape(-1)
        x, y, z, weight = (flat.index_select(0, atoms) for flat in (*fractions, weights.reshape(-1)))
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
    """The sums of :func:`read_sums`, for which every ray reads all eight vertices of each block.

    For GPUs: there it takes less time than a wait for the rays that need not, and all corners together take less than
    one by one.

    Args:
        values: Values at the vertices.
        weights: Weights of the atoms.
        index: First vertices of the atoms' blocks, [atoms, num_rays] flattened.
        fractions: Positions of the atoms within the blocks.
        offsets: :func:`corner_offsets`, on the values' device.
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
    """The common value of the eight vertices of each block, at its first vertex; infinity if they differ.

    The interpolated value is then the same throughout the block. Vertices that begin no block hold arbitrary values.
    """
    # Neighbours in memory are compared, also across the ends of lines and planes, where no block begins.
    y, z = resolution, resolution * resolution
    count = len(values) - z - y - 1
    along_x, along_y = ((values[step:] - values[:-step]).abs_() for step in (1, y))
    # A block has one value if its front and its back have one each, and an edge that joins them has; a side likewise.
    side = along_x[: count + z] + along_x[y : y + count + z]
    side += along_y[: count + z]
    spread = (values[z : z + count] - values[:count]).abs_().add_(side[:count]).add_(side[z:])
    single = torch.full_like(values, torch.inf)
    # Any difference times this overflows to infinity, and 0 stays 0: cheaper than a comparison.
    huge = torch.finfo(values.dtype).max
    torch.add(spread.mul_(huge).mul_(huge).mul_(huge), values[:count], out=single[:count])
    return single
