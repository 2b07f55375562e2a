"""Rendering a part of a scene: the densities of all fields of a model, scaled by where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RaySamples
from nerfstudio.fields.base_field import Field
from torch import Tensor, nn

Gate = Callable[[Float[Tensor, "*batch 3"]], Float[Tensor, "*batch 1"]]
"""From world positions to a factor in [0, 1]."""


@contextmanager
def gated_density(model: nn.Module, gate: Gate) -> Iterator[None]:
    """Scale the density of every field of a model, proposal networks included, while the context lasts.

    The model's own samplers then find what is left, so that a gate that keeps one object removes what stood in front
    of it, and one that removes the object shows what it hid. Fields that render signed distances have their alphas
    scaled instead, and samplers that look for their surfaces find none where the gate is closed.
    """
    with ExitStack() as stack:
        for field in model.modules():
            if isinstance(field, Field):
                for name in ("get_density", "get_alpha", "get_sdf"):
                    if hasattr(field, name):
                        stack.enter_context(_wrapped(field, name, gate))
        yield


@contextmanager
def _wrapped(field: Field, name: str, gate: Gate) -> Iterator[None]:
    original = getattr(field, name)

    def gated(ray_samples: RaySamples, *args: Any, **kwargs: Any) -> Any:
        result = original(ray_samples, *args, **kwargs)
        factor = gate(ray_samples.frustums.get_positions())
        if name == "get_sdf":
            return torch.where(factor.to(result) > 0.5, result, result.abs() + 1)
        # TensoRF returns the density alone, get_alpha the alphas; the others a pair with the features.
        if isinstance(result, tuple):
            return (result[0] * factor.to(result[0]), *result[1:])
        return result * factor.to(result)

    # On the instance, where it hides the class's method and can be taken away again; gates within gates multiply.
    outer = field.__dict__.get(name)
    field.__dict__[name] = gated
    try:
        yield
    finally:
        if outer is None:
            del field.__dict__[name]
        else:
            field.__dict__[name] = outer
