"""Rendering of a part of a scene: the densities of all fields of a model are scaled by position."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import ContextVar
from types import new_class
from typing import Any, TypeVar

import nerfacc
import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field
from nerfstudio.model_components.renderers import RGBRenderer
from torch import Tensor, nn

from sa3d_nerfstudio.scoped import scoped

Gate = Callable[[Float[Tensor, "*batch 3"]], Float[Tensor, "*batch 1"]]
"""Function from world positions to a density factor in [0, 1]."""
Result = TypeVar("Result")

GATED = ("get_density", "get_alpha", "get_sdf")
"""Methods of fields that return densities, alphas or signed distances."""

_GATE: ContextVar[Gate | None] = ContextVar("gate", default=None)
_ON_BLACK: ContextVar[bool] = ContextVar("on_black", default=False)


def gated_density(gate: Gate, render: Callable[[], Result]) -> Result:
    """Render with the density of every field scaled, those of proposal networks included.

    The model's samplers then place samples in the remaining density: a gate that keeps one object removes its
    occluders, and a gate that removes the object shows the scene behind it. Fields that render signed distances have
    their alphas scaled instead, and samplers that search for their surfaces find none where the gate is closed.

    Args:
        gate: Density factor by position; the factors of nested gates multiply.
        render: Renders a model that :func:`install_gates` has prepared.
    """
    outer = _GATE.get()
    combined = gate if outer is None else lambda positions: outer(positions) * gate(positions)
    return scoped(_GATE, combined, render)


def on_black(render: Callable[[], Result]) -> Result:
    """Render with black behind the samples of each ray, whatever background the model or the viewer would use."""
    return scoped(_ON_BLACK, True, render)


class GatedField(Field):
    """Mixin for the class of a field; see :func:`gated_density`."""


class GatedRGBRenderer(RGBRenderer):
    """Mixin for the class of a renderer of colours; see :func:`on_black`."""

    @classmethod
    def combine_rgb(
        cls,
        rgb: Tensor,
        weights: Tensor,
        background_color: Any = "random",
        ray_indices: Tensor | None = None,
        num_rays: int | None = None,
    ) -> Tensor:
        """Composite colours along rays."""
        if not _ON_BLACK.get():
            return super().combine_rgb(rgb, weights, background_color, ray_indices, num_rays)
        if ray_indices is None or num_rays is None:
            return (weights * rgb).sum(-2)
        return nerfacc.accumulate_along_rays(weights[..., 0], values=rgb, ray_indices=ray_indices, n_rays=num_rays)


def install_gates(model: nn.Module) -> None:
    """Prepare the fields and renderers of a model for gates; without an active gate they work as before.

    Called once, when a model gets its masks, and not while it renders: see :func:`sa3d_nerfstudio.scoped.scoped`. The
    classes of the instances become subclasses of their former classes.
    """
    for module in list(model.modules()):
        if isinstance(module, Field) and not isinstance(module, GatedField):
            module.__class__ = _gated_class(type(module))
        elif isinstance(module, RGBRenderer) and not isinstance(module, GatedRGBRenderer):
            module.__class__ = new_class(f"Gated{type(module).__name__}", (GatedRGBRenderer, type(module)))


@functools.cache
def _gated_class(kind: type[Field]) -> type[Field]:
    methods = {name: _gated(kind, name) for name in GATED if hasattr(kind, name)}
    namespace = {**methods, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return new_class(f"Gated{kind.__name__}", (GatedField, kind), exec_body=lambda body: body.update(namespace))


def _gated(kind: type[Field], name: str) -> Callable[..., Any]:
    original = getattr(kind, name)

    @functools.wraps(original)
    def gated(self: Field, ray_samples: RaySamples, *args: Any, **kwargs: Any) -> Any:
        result = original(self, ray_samples, *args, **kwargs)
        gate = _GATE.get()
        if gate is None:
            return result
        factor = gate(ray_samples.frustums.get_positions())
        if name == "get_sdf":
            return torch.where(factor.to(result) > 0.5, result, result.abs() + 1)
        # TensoRF returns the density alone, and get_alpha the alphas; the others return a pair with the features.
        if isinstance(result, tuple):
            return (result[0] * factor.to(result[0]), *result[1:])
        return result * factor.to(result)

    return gated
