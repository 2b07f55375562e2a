"""The trace of a view in some 37 bytes a ray."""

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
"""A ray's weight is dealt out to its atoms in so many parts."""
CPU_RAYS = 8192
"""Rays that are worked on at a time on a CPU: as many as its caches hold."""

REMEMBERED = 1 << 24
"""Atoms whose places in a grid are remembered, at most; of one view, or on CUDA of several."""
REMEMBERED_VIEWS = 16
"""Views on CUDA of whose atoms that holds: those that are visited together, their windows and coarse images."""
MANY_RAYS = 1 << 17
"""Rays from which on the host waits for CUDA to tell which of them count; fewer are all lifted sooner than that."""
SHARE_OF_EVERY_RAY = 0.1
"""Of the memory that is free, what may be kept of all rays of views in grids."""

Located = tuple[Part, Tensor, Tensor, trilinear.Fractions]
"""Rays, weights of their atoms [atoms, rays], and the flattened places of these in a grid."""


@dataclass(eq=False)
class CompressedTrace:
    """The trace of all pixels of a view of a NeRF, as atoms of weight; its cells are the vertices of a MaskGrid.

    A linear map of its own, with an exact adjoint. Of the trace that it was packed from it differs by

    - the distances of atoms and of the rendered depth, which are within ``distance_error`` of themselves;
    - where on its ray weight lies: with the mean of the samples that an atom stands for, and the share of the ray's
      weight up to any atom is off by 1 / 510 at most;
    - the accumulation, by 2^-17, and colours by 1 / 510.
    """

    height: int
    width: int
    distances: Int16[Tensor, "atoms num_rays"]
    """Codes of the distances of each ray's atoms."""
    shares: UInt8[Tensor, "atoms num_rays"]
    """Parts of its accumulation, of ``LEVELS``."""
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
    """Whether it has been made of a larger trace for once, and will be made anew when it is needed again."""
    _surface: Tensor | None = dataclass_field(default=None, init=False, repr=False)
    """The surface points of such a trace: of a visit, they are asked for several times."""

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
        """Pack the atoms of :func:`sa3d_nerfstudio.traces.atoms.atoms_of` with what the model renders."""
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
        """What :meth:`tensors` and :meth:`numbers` gave.

        Raises:
            TypeError: Some are missing, or there are others.
            ValueError: They are not of these rays.
        """
        trace = cls(**tensors, **numbers, rays=rays)
        count = len(rays.local)
        shapes = [trace.distances.shape[1:], trace.shares.shape[1:], trace.coverage.shape, trace.depths.shape]
        if any(shape != (count,) for shape in shapes) or trace.colors.shape != (trace.height, trace.width, 3):
            raise ValueError("not of these rays")
        return trace

    def part(self, pixels: Pixels, rays: ViewRays | None = None) -> CompressedTrace:
        """The trace of some of the pixels, as an image of their own.

        Args:
            pixels: Which.
            rays: Those of these pixels, if they are known; else they are taken from this trace's.
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
        """The same trace with its distances in other codes, which adds half a step to their error."""

        def coded(codes: Tensor) -> Tensor:
            logs = codes.double().add_(32768).mul_(self.log_step).add_(self.log_low)
            return (logs.sub_(log_low).div_(log_step).round_().clamp_(0, 65535) - 32768).to(torch.int16)

        distances, depths = coded(self.distances), coded(self.depths)
        return replace(self, distances=distances, depths=depths, log_low=log_low, log_step=log_step)

    # What a trace is.

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
        everything = slice(None)
        depth = self._decoded(self.depths)[:, None]
        points = torch.addcmul(self.rays.origins_of(everything), self.rays.directions_of(everything), depth)
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
            whole = values.new_zeros(len(self.coverage), values.shape[1])
            for part, weights, index, fractions in self._everywhere(field):
                whole[part] = trilinear.read_all(values, weights, index, fractions, field.corner_offsets())
            return whole
        channels, told = _channels(field, values)
        out = values.new_zeros(values.shape[1], len(self.coverage))
        for part, weights, index, fractions in self._everywhere(field):
            sums = trilinear.read_sums(channels, told, weights, index, fractions, field.resolution)
            for number, total in enumerate(sums):
                out[number, part] = total
        return out.T

    def backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: spread rays over their atoms, and those over the grid. Rays that are 0 cost nothing."""
        return with_smaller_chunks(LIFTED, lambda: self._backproject(field, image))

    def _backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        if image.is_cuda and len(image) <= MANY_RAYS:
            whole = image.new_zeros(field.num_cells, image.shape[1])
            for part, weights, index, fractions in self._everywhere(field):
                trilinear.add_all(whole, image[part], weights, index, fractions, field.corner_offsets())
            return whole
        channels = []
        for channel in image.unbind(-1):
            out = image.new_zeros(field.num_cells)
            rays = channel.nonzero()[:, 0]
            # Where most rays count, it is quicker to take them all: their atoms' places may be remembered.
            most = 2 * len(rays) > len(channel)
            for part, weights, index, fractions in self._everywhere(field) if most else self._along(field, rays):
                values = weights * channel[part]
                trilinear.add(out, values.reshape(-1), index, fractions, field.resolution)
            channels.append(out)
        return torch.stack(channels).T

    def rows(self, field: MaskGrid, rays: Int[Tensor, " num_rows"]) -> AtomRows:
        """The rows of ``A`` of some rays: where their atoms lie in the grid, 32 bytes each."""
        return with_smaller_chunks(
            LIFTED, lambda: AtomRows.of((located[1:] for located in self._along(field, rays)), field)
        )

    @property
    def keeps_all_rays(self) -> bool:
        """Whether :meth:`backproject_all` is worth its memory: it is asked for again, and takes long."""
        return not self.is_part and (not self.coverage.is_cuda or len(self.coverage) > MANY_RAYS)

    def backproject_all(self, field: MaskGrid) -> Float[Tensor, " num_cells"]:
        """``Aᵀ 1``: how much of all rays each cell has; kept for as long as the field's cells are where they are."""
        place = field.placement()
        return _EVERY_RAY.get(
            self, place, lambda: self.backproject(field, self.accumulation.new_ones(len(self.depths), 1))[:, 0]
        )

    # How it is kept.

    @property
    def distance_error(self) -> float:
        """Largest error of a distance by its coding, as a share of the distance itself."""
        return self.log_step / 2 + 1e-6

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values()) + self.rays.num_bytes

    def tensors(self) -> dict[str, Tensor]:
        """All but the rays, which follow from the camera."""
        return {
            each.name: value
            for each in fields(self)
            if each.init and isinstance(value := getattr(self, each.name), Tensor)
        }

    def numbers(self) -> dict[str, Any]:
        """The numbers beside the tensors."""
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
        """The atoms of some rays, or of all, in a grid; some at a time."""
        step = LIFTED.eval_num_rays_per_chunk if self.coverage.device.type == "cuda" else CPU_RAYS
        total = len(self.coverage) if rays is None else len(rays)
        for start in range(0, total, step):
            part = slice(start, min(start + step, total))
            part = part if rays is None else rays[part]
            yield part, self._weights(part), *self._located(field, part)

    def _everywhere(self, field: MaskGrid) -> Iterator[Located]:
        """The atoms of all rays in a grid, remembered if asked for lately: a view is rendered, and then lifted."""
        place = field.placement()
        parts = _LOCATED.get(self, place)
        if parts is not None:
            yield from parts
        elif self.shares.numel() > REMEMBERED:
            yield from self._along(field, None)
        else:
            # First the old ones go, so that these take their memory; and each is used while the CPU's caches hold it.
            _LOCATED.make_room(self)
            parts = []
            for located in self._along(field, None):
                parts.append(located)
                yield located
            _LOCATED.put(self, place, parts)


def _channels(field: MaskGrid, values: Float[Tensor, "num_cells channels"]) -> tuple[list[Tensor], list[Tensor]]:
    """The channels of values, and :func:`trilinear.single_valued` of each; remembered, as views are rendered in turn.

    Either takes longer than a window of a view.
    """
    global _split  # noqa: PLW0603
    split = _split
    if split is None or split[0]() is not values or split[1] != (values._version, field.resolution):
        channels = [channel.contiguous() for channel in values.unbind(-1)]
        told = [trilinear.single_valued(channel, field.resolution) for channel in channels]
        _split = split = (weakref.ref(values), (values._version, field.resolution), channels, told)
    return split[2], split[3]


_split: tuple[weakref.ref[Tensor], tuple[int, int], list[Tensor], list[Tensor]] | None = None
"""What was rendered last: values of a grid, their version, their channels, and where these have one value."""


class _LocatedAtoms:
    """The atoms of traces that were worked on last, where they are in a grid."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[CompressedTrace], tuple[float, ...], list[Located]]] = {}

    def get(self, trace: CompressedTrace, place: tuple[float, ...]) -> list[Located] | None:
        """What is remembered of a trace in a grid at that place."""
        kept = self._kept.get(id(trace))
        return kept[2] if kept is not None and kept[0]() is trace and kept[1] == place else None

    def make_room(self, trace: CompressedTrace) -> None:
        """Forget as much as another trace will take; of CPU traces, whatever there is."""
        views = REMEMBERED_VIEWS if trace.coverage.is_cuda else 1
        kept = {key: each for key, each in self._kept.items() if each[0]() not in (None, trace)}
        sizes = {key: sum(part[1].numel() for part in each[2]) for key, each in kept.items()}
        while kept and (len(kept) >= views or sum(sizes.values()) + trace.shares.numel() > REMEMBERED):
            oldest = next(iter(kept))
            del kept[oldest], sizes[oldest]
        self._kept = kept

    def put(self, trace: CompressedTrace, place: tuple[float, ...], parts: list[Located]) -> None:
        """Remember a trace, for which there is room."""
        self._kept[id(trace)] = (weakref.ref(trace), place, parts)

    def forget(self) -> None:
        """Let go of all."""
        self._kept = {}

    def reclaim(self) -> int:
        """Let go of all, and of values; how many bytes it was."""
        held = [part for kept in self._kept.values() for located in kept[2] for part in (*located[1:3], *located[3])]
        forget()
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


class _EveryRay:
    """``Aᵀ 1`` of traces, by the place of a grid; no more than a share of the memory that is free."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[weakref.ref[CompressedTrace], tuple[float, ...], Tensor]] = {}
        self._budget: int | None = None

    def get(self, trace: CompressedTrace, place: tuple[float, ...], compute: Callable[[], Tensor]) -> Tensor:
        """What is kept, or is computed; it is kept where there is room when those of other places have left."""
        kept = self._kept.get(id(trace))
        if kept is not None and kept[0]() is trace and kept[1] == place:
            return kept[2]
        # Traces of windows are made anew for each visit.
        self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() not in (None, trace)}
        value = compute()
        if self._budget is None:
            self._budget = int((free_bytes(value.device) or 0) * SHARE_OF_EVERY_RAY)
        if self.num_bytes + value.numel() * 4 > self._budget:
            self._kept = {key: kept for key, kept in self._kept.items() if kept[0]() is not None and kept[1] == place}
        if self.num_bytes + value.numel() * 4 <= self._budget:
            self._kept[id(trace)] = (weakref.ref(trace), place, value)
        return value

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        return sum(value.numel() * value.element_size() for _, _, value in self._kept.values())

    def reclaim(self) -> int:
        """Let go of it all, and keep none from now on; how many bytes it was."""
        num_bytes, self._kept, self._budget = self.num_bytes, {}, 0
        return num_bytes


_LOCATED, _EVERY_RAY = _LocatedAtoms(), _EveryRay()
for _holder in (_LOCATED, _EVERY_RAY):
    reclaim_from(_holder)


def forget() -> None:
    """Let go of what is remembered of atoms and of values."""
    global _split  # noqa: PLW0603
    _split = None
    _LOCATED.forget()
