"""The trace of a NeRF's view, compressed to some 37 bytes per ray."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from dataclasses import field as dataclass_field
from typing import Any

import torch
from jaxtyping import Float, Int, Int16, UInt8
from torch import Tensor

from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.gpu_memory import LIFTED, free_bytes, reclaim_from, with_smaller_chunks
from sa3d_nerfstudio.traces.atoms import NEAREST, AtomRows
from sa3d_nerfstudio.traces.view_rays import Part, ViewRays, rotated
from sa3d_nerfstudio.traces.window import Pixels

LEVELS = 255
"""Quantisation levels of an atom's share of its ray's weight."""
CPU_RAYS = 8192
"""Rays per chunk on a CPU: as many as its caches hold."""

MAX_CACHED_ATOMS = 1 << 24
"""Largest number of atoms whose grid positions are cached: those of one view, or on CUDA of several."""
MAX_CACHED_TRACES = 16
"""Largest number of traces in that cache on CUDA: the windows and coarse images of views visited together."""
MANY_RAYS = 1 << 17
"""Largest number of rays of which CUDA lifts all: faster than a wait of the host for those that are not 0."""
SHARE_OF_ALL_RAYS_CACHE = 0.1
"""Largest share of the free memory for cached ``Aᵀ 1`` of traces."""

Located = tuple[Part, Tensor, Tensor, trilinear.Fractions]
"""Rays, weights of their atoms [atoms, rays], and the atoms' flattened positions in a grid."""


@dataclass(eq=False)
class CompressedTrace:
    """The trace of all pixels of a view of a NeRF, as atoms of weight; its cells are the vertices of a MaskGrid.

    It is a linear map with an exact adjoint, and differs from the trace that it was packed from in

    - the distances of atoms and the rendered depth, by a relative error of up to ``distance_error``;
    - the position of weight along its ray: an atom lies at the mean of its samples, and the share of the ray's weight
      up to any atom is off by up to 1 / 510;
    - the accumulation, by 2^-17, and colours, by 1 / 510.
    """

    height: int
    width: int
    distances: Int16[Tensor, "atoms num_rays"]
    """Codes of the distances of each ray's atoms."""
    shares: UInt8[Tensor, "atoms num_rays"]
    """Share of each atom in its ray's accumulation, in units of 1 / ``LEVELS``."""
    coverage: Int16[Tensor, " num_rays"]
    """Codes of the accumulation."""
    depths: Int16[Tensor, " num_rays"]
    """Codes of the rendered distance."""
    colors: UInt8[Tensor, "height width 3"]
    log_low: float
    """Logarithm of the smallest distance."""
    log_step: float
    """Step of the logarithms of distances from code to code."""
    rays: ViewRays
    is_part: bool = False
    """Whether this is a temporary part of a larger trace, made anew whenever it is needed."""
    _surface: Tensor | None = dataclass_field(default=None, init=False, repr=False)
    """Surface points of such a part, cached because a visit reads them several times."""

    @classmethod
    def pack(
        cls,
        distances: Float[Tensor, "atoms num_rays"],
        weights: Float[Tensor, "atoms num_rays"],
        accumulation: Float[Tensor, " num_rays"],
        rgb: Float[Tensor, "height width 3"],
        depth: Float[Tensor, "height width 1"],
        rays: ViewRays,
    ) -> CompressedTrace:
        """Pack atoms (:func:`sa3d_nerfstudio.traces.atoms.atoms_of`) and the model's rendered outputs."""
        depth = depth.reshape(-1).nan_to_num().clamp(min=NEAREST)
        low = float(torch.minimum(depth.min(), distances.min()).log())
        high = float(torch.maximum(depth.max(), distances.max()).log())
        step = max(high - low, 1e-6) / 65535

        def coded(values: Tensor) -> Tensor:
            return (((values.log() - low) / step).round().clamp(0, 65535) - 32768).to(torch.int16)

        # Differences of the rounded sums, so that rounding errors do not add up along the ray.
        sums = weights.cumsum(0)
        sums = (sums / sums[-1].clamp(min=1e-9) * LEVELS).round()
        return cls(
            height=rgb.shape[0],
            width=rgb.shape[1],
            distances=coded(distances),
            shares=torch.diff(sums, dim=0, prepend=torch.zeros_like(sums[:1])).to(torch.uint8),
            coverage=((accumulation.clamp(0, 1) * 65535).round() - 32768).to(torch.int16),
            depths=coded(depth),
            colors=(rgb.clamp(0, 1) * 255).round().to(torch.uint8),
            log_low=low,
            log_step=step,
            rays=rays,
        )

    @classmethod
    def restored(cls, tensors: dict[str, Tensor], numbers: dict[str, Any], rays: ViewRays) -> CompressedTrace:
        """Restore a trace from its :meth:`tensors` and :meth:`numbers`.

        Raises:
            TypeError: Entries are missing, or unknown.
            ValueError: The tensors do not fit these rays.
        """
        trace = cls(**tensors, **numbers, rays=rays)
        count = len(rays.local)
        shapes = [trace.distances.shape[1:], trace.shares.shape[1:], trace.coverage.shape, trace.depths.shape]
        if any(shape != (count,) for shape in shapes) or trace.colors.shape != (trace.height, trace.width, 3):
            raise ValueError("not of these rays")
        return trace

    def part(self, pixels: Pixels, rays: ViewRays | None = None) -> CompressedTrace:
        """The trace of some of the pixels, as a new image.

        Args:
            pixels: The pixels, and the size of the new image.
            rays: Rays of these pixels; by default they are picked from this trace's.
        """
        index = pixels.indices
        return CompressedTrace(
            height=pixels.height,
            width=pixels.width,
            distances=self.distances[:, index],
            shares=self.shares[:, index],
            coverage=self.coverage[index],
            depths=self.depths[index],
            colors=self.colors.reshape(-1, 3)[index].reshape(pixels.height, pixels.width, 3),
            log_low=self.log_low,
            log_step=self.log_step,
            rays=self.rays.part(index) if rays is None else rays,
            is_part=True,
        )

    def recoded(self, log_low: float, log_step: float) -> CompressedTrace:
        """The same trace with its distances in new codes, which adds half a step to their error."""

        def coded(codes: Tensor) -> Tensor:
            logs = codes.double().add_(32768).mul_(self.log_step).add_(self.log_low)
            return (logs.sub_(log_low).div_(log_step).round_().clamp_(0, 65535) - 32768).to(torch.int16)

        distances, depths = coded(self.distances), coded(self.depths)
        return replace(self, distances=distances, depths=depths, log_low=log_low, log_step=log_step)

    # The protocol of view traces.

    @property
    def accumulation(self) -> Float[Tensor, " num_rays"]:
        """Sum of all weights of each ray."""
        return self.coverage.float().add_(32768).div_(65535)

    @property
    def rgb(self) -> Float[Tensor, "height width 3"]:
        """Colours in [0, 1]."""
        return self.colors.float().div_(255)

    @property
    def depth(self) -> Float[Tensor, "height width 1"]:
        """Distance along the ray, in nerfstudio's frame."""
        return self._decoded(self.depths).reshape(self.height, self.width, 1)

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position at the rendered depth of each pixel."""
        if self._surface is not None:
            return self._surface
        all_rays = slice(None)
        depth = self._decoded(self.depths)[:, None]
        points = torch.addcmul(self.rays.origins_of(all_rays), self.rays.directions_of(all_rays), depth)
        if self.is_part:
            self._surface = points
        return points

    def render(
        self, field: MaskGrid, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """``A x``: read the grid at the atoms, add up along the rays."""
        return with_smaller_chunks(LIFTED, lambda: self._render(field, values))

    def _render(
        self, field: MaskGrid, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        if values.is_cuda:
            image = values.new_zeros(len(self.coverage), values.shape[1])
            for chunk, weights, index, fractions in self._everywhere(field):
                image[chunk] = trilinear.read_all(values, weights, index, fractions, field.corner_offsets())
            return image
        channels, single = _channels(field, values)
        out = values.new_zeros(values.shape[1], len(self.coverage))
        for chunk, weights, index, fractions in self._everywhere(field):
            sums = trilinear.read_sums(channels, single, weights, index, fractions, field.resolution)
            for number, total in enumerate(sums):
                out[number, chunk] = total
        return out.T

    def backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: spread rays over their atoms, and atoms over the grid. Rays of value 0 are skipped if faster."""
        return with_smaller_chunks(LIFTED, lambda: self._backproject(field, image))

    def _backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        if image.is_cuda and len(image) <= MANY_RAYS:
            cells = image.new_zeros(field.num_cells, image.shape[1])
            for chunk, weights, index, fractions in self._everywhere(field):
                trilinear.add_all(cells, image[chunk], weights, index, fractions, field.corner_offsets())
            return cells
        channels = []
        for channel in image.unbind(-1):
            out = image.new_zeros(field.num_cells)
            rays = channel.nonzero()[:, 0]
            # If most rays are not 0, it is faster to lift all, since their atoms' grid positions may be cached.
            most = 2 * len(rays) > len(channel)
            for chunk, weights, index, fractions in self._everywhere(field) if most else self._along(field, rays):
                values = weights * channel[chunk]
                trilinear.add(out, values.reshape(-1), index, fractions, field.resolution)
            channels.append(out)
        return torch.stack(channels).T

    def rows(self, field: MaskGrid, rays: Int[Tensor, " num_rows"]) -> AtomRows:
        """The rows of ``A`` of some rays: the grid positions of their atoms, 32 bytes each."""
        return with_smaller_chunks(
            LIFTED, lambda: AtomRows.of((located[1:] for located in self._along(field, rays)), field)
        )

    @property
    def keeps_all_rays(self) -> bool:
        """Whether :meth:`backproject_all` is worth its memory: the trace is lifted again, and that takes long."""
        return not self.is_part and (not self.coverage.is_cuda or len(self.coverage) > MANY_RAYS)

    def backproject_all(self, field: MaskGrid) -> Float[Tensor, " num_cells"]:
        """``Aᵀ 1``: the weight of all rays in each cell, cached until the field's cells move."""
        placement = field.placement()
        return _ALL_RAYS_CACHE.get(
            self, placement, lambda: self.backproject(field, self.accumulation.new_ones(len(self.depths), 1))[:, 0]
        )

    # Storage.

    @property
    def distance_error(self) -> float:
        """Largest relative error of a distance due to its coding."""
        return self.log_step / 2 + 1e-6

    @property
    def num_bytes(self) -> int:
        """Memory of the trace in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values()) + self.rays.num_bytes

    def tensors(self) -> dict[str, Tensor]:
        """All tensors but the rays, which follow from the camera."""
        return {
            entry.name: value
            for entry in fields(self)
            if entry.init and isinstance(value := getattr(self, entry.name), Tensor)
        }

    def numbers(self) -> dict[str, Any]:
        """Image size and distance coding, to be stored with the tensors."""
        return {name: getattr(self, name) for name in ("height", "width", "log_low", "log_step")}

    def _decoded(self, codes: Int16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return codes.float().mul_(self.log_step).add_(self.log_low + 32768 * self.log_step).exp_()

    def _weights(self, part: Part) -> Float[Tensor, "atoms num_rays"]:
        coverage = self.coverage[part].float().add_(32768).div_(65535 * LEVELS)
        return self.shares[:, part].float().mul_(coverage)

    def _located(self, field: MaskGrid, part: Part) -> tuple[Tensor, trilinear.Fractions]:
        distances = self._decoded(self.distances[:, part])
        offset = (self.rays.origins_of(part) - field.center) / field.half_extent
        slope = rotated(self.rays.local[part], self.rays.rotation / field.half_extent[:, None])
        x, y, z = (torch.addcmul(offset[:, axis], slope[:, axis].contiguous(), distances) for axis in range(3))
        return field.located(x, y, z)

    def _along(self, field: MaskGrid, rays: Tensor | None) -> Iterator[Located]:
        """Weights and grid positions of the atoms of some rays, or of all, chunk by chunk."""
        step = LIFTED.eval_num_rays_per_chunk if self.coverage.device.type == "cuda" else CPU_RAYS
        total = len(self.coverage) if rays is None else len(rays)
        for start in range(0, total, step):
            chunk = slice(start, min(start + step, total))
            chunk = chunk if rays is None else rays[chunk]
            yield chunk, self._weights(chunk), *self._located(field, chunk)

    def _everywhere(self, field: MaskGrid) -> Iterator[Located]:
        """:meth:`_along` for all rays, cached, because a view is rendered and then lifted."""
        placement = field.placement()
        chunks = _LOCATED.get(self, placement)
        if chunks is not None:
            yield from chunks
        elif self.shares.numel() > MAX_CACHED_ATOMS:
            yield from self._along(field, None)
        else:
            # Old entries are evicted first to free their memory; chunks are used while the CPU's caches hold them.
            _LOCATED.make_room(self)
            chunks = []
            for located in self._along(field, None):
                chunks.append(located)
                yield located
            _LOCATED.put(self, placement, chunks)


def _channels(field: MaskGrid, values: Float[Tensor, "num_cells channels"]) -> tuple[list[Tensor], list[Tensor]]:
    """The channels of values, and :func:`trilinear.single_valued` of each, cached for the next views to be rendered.

    Each takes longer to compute than a window of a view to render.
    """
    global _split  # noqa: PLW0603
    split = _split
    if split is None or split[0]() is not values or split[1] != (values._version, field.resolution):
        channels = [channel.contiguous() for channel in values.unbind(-1)]
        single = [trilinear.single_valued(channel, field.resolution) for channel in channels]
        _split = split = (weakref.ref(values), (values._version, field.resolution), channels, single)
    return split[2], split[3]


_split: tuple[weakref.ref[Tensor], tuple[int, int], list[Tensor], list[Tensor]] | None = None
"""Cache of :func:`_channels`: the values rendered last, their version and resolution, and the two results."""


class _LocatedAtoms:
    """Cache of recently used traces' atoms with their positions in a grid."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[CompressedTrace], tuple[float, ...], list[Located]]] = {}

    def get(self, trace: CompressedTrace, place: tuple[float, ...]) -> list[Located] | None:
        """The cached chunks of a trace for this placement of the grid; None if there are none."""
        entry = self._kept.get(id(trace))
        return entry[2] if entry is not None and entry[0]() is trace and entry[1] == place else None

    def make_room(self, trace: CompressedTrace) -> None:
        """Evict entries until another trace fits; for a CPU trace, all of them."""
        views = MAX_CACHED_TRACES if trace.coverage.is_cuda else 1
        entries = {key: entry for key, entry in self._kept.items() if entry[0]() not in (None, trace)}
        sizes = {key: sum(located[1].numel() for located in entry[2]) for key, entry in entries.items()}
        while entries and (len(entries) >= views or sum(sizes.values()) + trace.shares.numel() > MAX_CACHED_ATOMS):
            oldest = next(iter(entries))
            del entries[oldest], sizes[oldest]
        self._kept = entries

    def put(self, trace: CompressedTrace, place: tuple[float, ...], parts: list[Located]) -> None:
        """Add a trace, after :meth:`make_room`."""
        self._kept[id(trace)] = (weakref.ref(trace), place, parts)

    def forget(self) -> None:
        """Empty the cache."""
        self._kept = {}

    def reclaim(self) -> int:
        """Empty this cache and that of :func:`_channels`; return the bytes that this one took."""
        tensors = [
            tensor for entry in self._kept.values() for located in entry[2] for tensor in (*located[1:3], *located[3])
        ]
        forget()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class _AllRaysCache:
    """Cache of ``Aᵀ 1`` of traces for a placement of the grid, limited to a share of the free memory."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[CompressedTrace], tuple[float, ...], Tensor]] = {}
        self._budget: int | None = None

    def get(self, trace: CompressedTrace, place: tuple[float, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The cached value, or else the computed one; it is cached if it fits once other placements are evicted."""
        entry = self._kept.get(id(trace))
        if entry is not None and entry[0]() is trace and entry[1] == place:
            return entry[2]
        # Drop the entries of dead traces: those of windows are made anew for each visit.
        self._kept = {key: entry for key, entry in self._kept.items() if entry[0]() not in (None, trace)}
        value = compute()
        if self._budget is None:
            self._budget = int((free_bytes(value.device) or 0) * SHARE_OF_ALL_RAYS_CACHE)
        if self.num_bytes + value.numel() * 4 > self._budget:
            self._kept = {
                key: entry for key, entry in self._kept.items() if entry[0]() is not None and entry[1] == place
            }
        if self.num_bytes + value.numel() * 4 <= self._budget:
            self._kept[id(trace)] = (weakref.ref(trace), place, value)
        return value

    @property
    def num_bytes(self) -> int:
        """Memory of the cached values in bytes."""
        return sum(value.numel() * value.element_size() for _, _, value in self._kept.values())

    def reclaim(self) -> int:
        """Empty the cache for good; return the bytes that it took."""
        num_bytes, self._kept, self._budget = self.num_bytes, {}, 0
        return num_bytes


_LOCATED, _ALL_RAYS_CACHE = _LocatedAtoms(), _AllRaysCache()
for _holder in (_LOCATED, _ALL_RAYS_CACHE):
    reclaim_from(_holder)


def forget() -> None:
    """Empty the caches of located atoms and of channels."""
    global _split  # noqa: PLW0603
    _split = None
    _LOCATED.forget()
