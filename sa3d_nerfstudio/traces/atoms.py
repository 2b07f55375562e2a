"""Atoms: a ray's weight gathered at a few distances, and the rows of a trace made of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.traces.nerf import WeightedSamples

ATOMS = 10
"""Atoms per ray."""
NEAREST = 1e-6
"""Smallest distance along a ray: distances are stored as logarithms, which must be finite."""


class NotOnRays(ValueError):
    """The samples of a model lie off its rays, so that distances along the rays do not determine their positions."""


def atoms_of(
    samples: WeightedSamples,
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    angle: float,
    count: int = ATOMS,
) -> tuple[Float[Tensor, "count num_rays"], Float[Tensor, "count num_rays"]]:
    """Gather the samples of each ray into at most ``count`` atoms, each at the mean distance of its samples.

    Each ray keeps all of its weight. Its samples are grouped like the levels of a quantiser of ``count`` levels for a
    density f, which lie as densely as f^(1/3) (P. Panter, W. Dite, "Quantization distortion in pulse-count modulation",
    1951). f is a density over the logarithm of the distance, the scale on which pixels resolve depth.

    Args:
        samples: All samples, ordered by ray.
        origins: Origins of the rays, world space.
        directions: Unit directions of the rays.
        angle: Angle between the rays of neighbouring pixels, in radians.
        count: Largest number of atoms per ray.

    Returns:
        Distances of the atoms along their rays, and their weights; atoms without weight have arbitrary distances.

    Raises:
        NotOnRays: A sample lies farther from its ray than half the distance to the neighbouring ray.
    """
    num_rays, ray = len(origins), samples.ray_indices
    if len(ray) == 0:
        return origins.new_ones(count, num_rays), origins.new_zeros(count, num_rays)
    offset, direction = samples.positions - origins[ray], directions[ray]
    distance = (offset * direction).sum(-1)
    stray = (offset - direction * distance[:, None]).norm(dim=-1) - 1e-4 * samples.positions.norm(dim=-1)
    if bool(((stray > 0.5 * angle * distance.abs() + 1e-6) & (samples.weights > 1e-3)).any()):
        raise NotOnRays
    distance, weights = distance.clamp(min=NEAREST), samples.weights
    first = torch.ones_like(ray, dtype=torch.bool)
    first[1:] = ray[1:] != ray[:-1]
    if bool(((distance[1:] < distance[:-1]) & ~first[1:]).any()):
        order = distance.argsort()
        order = order[ray[order].argsort(stable=True)]
        distance, weights = distance[order], weights[order]
    gap = torch.diff(distance.log(), prepend=distance[:1].log())
    between = (weights + torch.cat([weights[:1], weights[:-1]])) / 2
    # f^(1/3) times the gap, with f = weight / gap.
    cost = torch.where(first, 0.0, between.clamp(min=1e-5) ** (1 / 3) * gap.clamp(min=0) ** (2 / 3))
    sums = cost.double().cumsum(0)
    begin = first.nonzero()[:, 0]
    lengths = torch.diff(begin, append=begin.new_tensor([len(ray)]))
    total = (sums[begin + lengths - 1] - sums[begin]).clamp(min=1e-12)
    level = (sums - sums[begin].repeat_interleave(lengths)) * (count / total).repeat_interleave(lengths)
    target = level.long().clamp(max=count - 1) * num_rays + ray
    weight = weights.new_zeros(count * num_rays).index_add_(0, target, weights)
    moment = weights.new_zeros(count * num_rays).index_add_(0, target, weights * distance)
    mean = torch.where(weight > 1e-12, moment / weight.clamp(min=1e-12), distance.min())
    return mean.reshape(count, num_rays), weight.reshape(count, num_rays)


@dataclass
class AtomRows:
    """Rows of a trace over a mask grid, stored as the atoms with weight and their positions in the grid."""

    num_rows: int
    rows: Int[Tensor, " num_atoms"]
    """Row of each atom."""
    weights: Float[Tensor, " num_atoms"]
    index: Int[Tensor, " num_atoms"]
    """First vertex of the block that each atom lies in."""
    fractions: trilinear.Fractions
    """Position of each atom within its block."""
    resolution: int

    @classmethod
    def of(cls, parts: Iterable[tuple[Tensor, Tensor, trilinear.Fractions]], field: MaskGrid) -> AtomRows:
        """Join chunks of consecutive rays: weights [atoms, rays], and the atoms' flattened positions in a grid."""
        chunks, first = [], 0
        for weights, index, fractions in parts:
            count = weights.shape[1]
            atoms = weights.reshape(-1).nonzero()[:, 0]
            chunks.append((atoms % count + first, *(flat[atoms] for flat in (weights.reshape(-1), index, *fractions))))
            first += count
        if not chunks:
            empty = field.hit.new_zeros(0)
            return cls(0, empty.long(), empty, empty.long(), (empty, empty, empty), field.resolution)
        rows, weights, index, x, y, z = (torch.cat(columns) for columns in zip(*chunks, strict=True))
        return cls(first, rows, weights, index, (x, y, z), field.resolution)

    @classmethod
    def joined(cls, parts: Sequence[AtomRows]) -> AtomRows:
        """Concatenate several sets of rows, all over the same grid."""
        first = itertools.accumulate((part.num_rows for part in parts), initial=0)
        rows = torch.cat([part.rows + start for part, start in zip(parts, first, strict=False)])
        weights, index = (torch.cat([getattr(part, name) for part in parts]) for name in ("weights", "index"))
        x, y, z = (torch.cat(axis) for axis in zip(*(part.fractions for part in parts), strict=True))
        return cls(sum(part.num_rows for part in parts), rows, weights, index, (x, y, z), parts[0].resolution)

    def render(self, values: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_rows"]:
        """``A x``."""
        read = trilinear.read(values, self.index, self.fractions, self.resolution).mul_(self.weights)
        return values.new_zeros(self.num_rows).index_add_(0, self.rows, read)

    def backproject(self, image: Float[Tensor, " num_rows"], out: Float[Tensor, " num_cells"]) -> None:
        """Add ``Aᵀ y`` to ``out``."""
        trilinear.add(out, image[self.rows] * self.weights, self.index, self.fractions, self.resolution)
