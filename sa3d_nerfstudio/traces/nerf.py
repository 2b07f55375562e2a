"""The trace of any NeRF that renders through nerfstudio's renderers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.model_components.renderers import DepthRenderer
from torch import Tensor, nn

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.base import PickedRows

DEPTH_OUTPUTS = ("depth", "depth_fine", "expected_depth")
ACCUMULATION_OUTPUTS = ("accumulation", "accumulation_fine")
RGB_OUTPUTS = ("rgb", "rgb_fine")
MIN_WEIGHT = 1e-3
"""Weight below which samples are left out of their ray's trace; it still counts in the accumulation."""


@dataclass
class WeightedSamples:
    """The samples of a bundle of rays with their volume-rendering weights, packed: one row per sample."""

    positions: Float[Tensor, "num_samples 3"]
    """World positions (nerfstudio's frame)."""
    weights: Float[Tensor, " num_samples"]
    """Weight of the sample in its ray's colour: transmittance x opacity."""
    ray_indices: Int[Tensor, " num_samples"]
    """Index of each sample's ray."""
    accumulation: Float[Tensor, " num_rays"]
    """Sum of all weights of each ray, including those of pruned samples."""
    depth: Float[Tensor, "num_rays 1"] | None = None
    """Distance along each ray as the model's depth renderer returns it, before any change by the model."""

    def pruned(self, min_weight: float = MIN_WEIGHT) -> WeightedSamples:
        """The samples without those of negligible weight."""
        keep = self.weights > min_weight
        return dataclasses.replace(
            self, positions=self.positions[keep], weights=self.weights[keep], ray_indices=self.ray_indices[keep]
        )

    def of_rays(self, rays: Int[Tensor, " num"]) -> WeightedSamples:
        """The samples of some rays, which are renumbered in that order."""
        numbers = torch.full_like(self.accumulation, -1, dtype=torch.long)
        numbers[rays] = torch.arange(len(rays), device=rays.device)
        ray_indices = numbers[self.ray_indices]
        keep = ray_indices >= 0
        depth = None if self.depth is None else self.depth[rays]
        accumulation = self.accumulation[rays]
        return WeightedSamples(self.positions[keep], self.weights[keep], ray_indices[keep], accumulation, depth)

    def composite(self, values: Float[Tensor, "num_samples channels"]) -> Float[Tensor, "num_rays channels"]:
        """Σ w v along each ray."""
        out = values.new_zeros(len(self.accumulation), values.shape[1])
        return out.index_add_(0, self.ray_indices, values * self.weights[:, None])

    def spread(self, image: Float[Tensor, "num_rays channels"]) -> Float[Tensor, "num_samples channels"]:
        """The adjoint of :meth:`composite`: each sample's weight times its ray's value."""
        return image[self.ray_indices] * self.weights[:, None]


@dataclass
class _DepthCall:
    weights: Tensor
    samples: RaySamples
    ray_indices: Tensor | None
    num_rays: int | None
    output: Tensor


_CALLS: ContextVar[list[_DepthCall] | None] = ContextVar("calls", default=None)
"""Recorded calls of depth renderers; None while no rays are traced."""
_HOOKED = "sa3d_hooked"
"""Attribute that marks depth renderers with the hook."""


def _note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
    """The hook: record the arguments of a depth renderer, which are the weights and samples of a pass."""
    calls = _CALLS.get()
    if calls is None:
        return
    names = ("weights", "ray_samples", "ray_indices", "num_rays")
    arguments = {**dict(zip(names, args, strict=False)), **kwargs}
    calls.append(
        _DepthCall(
            arguments["weights"],
            arguments["ray_samples"],
            arguments.get("ray_indices"),
            arguments.get("num_rays"),
            output,
        )
    )


def install_hooks(model: nn.Module) -> int:
    """Give each depth renderer of a model a hook that records its calls while rays are traced.

    Called when a model gets its masks, and not while it renders: see :func:`sa3d_nerfstudio.scoped.scoped`.

    Returns:
        Number of the model's depth renderers.
    """
    renderers = [module for module in model.modules() if isinstance(module, DepthRenderer)]
    for renderer in renderers:
        if not getattr(renderer, _HOOKED, False):
            renderer.register_forward_hook(_note, with_kwargs=True)
            setattr(renderer, _HOOKED, True)
    return len(renderers)


def trace_rays(
    model: nn.Module, render: Callable[[], dict[str, Any]], num_rays: int
) -> tuple[dict[str, Any], WeightedSamples]:
    """Run a rendering pass, and read off the samples and weights of its final image.

    Models render several passes (coarse and fine, proposals, background). The one whose depth *is* an output, or else
    whose weights add up to the output accumulation, is the final one.

    Args:
        model: The model, whose depth renderers are traced.
        render: Called without arguments; runs the pass and returns the model's outputs for ``num_rays`` rays.
        num_rays: Number of rays in the pass.

    Returns:
        The model's outputs, and the samples.

    Raises:
        SA3DError: The model does not render through nerfstudio's renderers.
    """
    if not install_hooks(model):  # again, in case a renderer has been replaced
        raise SA3DError(
            f"{_name(model)} cannot be traced: it has none of nerfstudio's depth renderers, through which the weights "
            "of ray samples are read; choose a run of a NeRF method such as nerfacto."
        )
    calls: list[_DepthCall] = []
    outputs = scoped(_CALLS, calls, render)
    samples = [(_pack(call, num_rays), call) for call in _final_calls(calls, outputs, num_rays)]
    if not samples:
        raise SA3DError(
            f"{_name(model)} cannot be traced: none of its depth renderings makes its output "
            f"{' or '.join(DEPTH_OUTPUTS)}; choose a run of a NeRF method such as nerfacto."
        )
    return outputs, samples[-1][0]


def _final_calls(calls: list[_DepthCall], outputs: dict[str, Any], num_rays: int) -> list[_DepthCall]:
    for name in DEPTH_OUTPUTS:
        final = [call for call in calls if call.output is outputs.get(name)]
        if final:
            return final
    for name in ACCUMULATION_OUTPUTS:
        if isinstance(outputs.get(name), Tensor):
            target = outputs[name].reshape(-1)
            return [
                call
                for call in calls
                if torch.allclose(_pack(call, num_rays).accumulation, target.to(call.weights), atol=1e-4)
            ]
    return []


def _pack(call: _DepthCall, num_rays: int) -> WeightedSamples:
    weights = call.weights.detach()[..., 0]
    positions = call.samples.frustums.get_positions().detach()
    if call.ray_indices is not None:
        ray_indices = call.ray_indices.long()
    else:
        weights = weights.reshape(num_rays, -1)
        ray_indices = torch.arange(num_rays, device=weights.device)[:, None].expand_as(weights).reshape(-1)
    weights = torch.nan_to_num(weights.reshape(-1).float()).clamp(min=0)
    accumulation = weights.new_zeros(num_rays).index_add_(0, ray_indices, weights)
    depth = call.output.detach().reshape(-1, 1)
    return WeightedSamples(positions.reshape(-1, 3).float(), weights, ray_indices, accumulation, depth)


@dataclass
class NerfTrace:
    """The trace of a bundle of rays through a NeRF; its cells are the vertices of a :class:`MaskGrid`."""

    samples: WeightedSamples

    @property
    def accumulation(self) -> Float[Tensor, " num_rays"]:
        """Sum of all weights of each ray."""
        return self.samples.accumulation

    def render(
        self, field: MaskGrid, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """``A x``: read the grid at the samples, composite along the rays."""
        return self.samples.composite(field.gather(values, self.samples.positions))

    def backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: spread rays over their samples, and samples over the grid."""
        return field.scatter(self.samples.spread(image), self.samples.positions)

    def rows(self, field: MaskGrid, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of ``A`` of some rays."""
        trace = NerfTrace(self.samples.of_rays(rays))
        return PickedRows(trace, field, torch.arange(len(rays), device=rays.device))


@dataclass
class NerfViewTrace(NerfTrace):
    """The trace of all pixels of one view of a NeRF."""

    height: int
    width: int
    rgb: Float[Tensor, "height width 3"]
    depth: Float[Tensor, "height width 1"]
    origins: Float[Tensor, "num_pixels 3"]
    directions: Float[Tensor, "num_pixels 3"]

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position at the rendered depth of each pixel."""
        return self.origins + self.directions * self.depth.reshape(-1, 1)


def concatenate(parts: list[WeightedSamples]) -> WeightedSamples:
    """Join the samples of consecutive chunks of rays."""
    offsets = torch.tensor([0, *[len(part.accumulation) for part in parts]]).cumsum(0).tolist()
    return WeightedSamples(
        torch.cat([part.positions for part in parts]),
        torch.cat([part.weights for part in parts]),
        torch.cat([part.ray_indices + offset for part, offset in zip(parts, offsets, strict=False)]),
        torch.cat([part.accumulation for part in parts]),
    )


def _name(model: nn.Module) -> str:
    return type(model).__name__.removeprefix("SA3D")
