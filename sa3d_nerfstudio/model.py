"""The base model with mask outputs, and with the object alone or removed beside its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import new_class
from typing import Any

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.lazy_outputs import LazyOutputs
from sa3d_nerfstudio.mask_outputs import MaskOutputs
from sa3d_nerfstudio.splat_model import MaskedSplatModel
from sa3d_nerfstudio.traces.gating import Gate, gated_density
from sa3d_nerfstudio.traces.nerf import NerfTrace, WeightedSamples, trace_rays


class MaskedModel(MaskOutputs):
    """What is added to the class of a base model that renders rays."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Outputs for a bundle of rays."""
        if self.training:
            return super().get_outputs(ray_bundle)  # type: ignore[safe-super]
        outputs, samples = self.trace(ray_bundle)
        rgb = _first(outputs, "rgb")
        passing = self.masks.hits(ray_bundle.origins, ray_bundle.directions, self.mask_threshold)
        return LazyOutputs(
            self.with_mask(outputs, rgb, NerfTrace(samples)),
            {
                ("object_rgb", "object_depth", "object_accumulation"): lambda: self._object(ray_bundle, passing, rgb),
                ("background_rgb",): lambda: {"background_rgb": self._background(ray_bundle, passing, rgb)},
            },
        )

    def trace(self, ray_bundle: RayBundle) -> tuple[dict[str, Any], WeightedSamples]:
        """The base model's outputs for a bundle of rays, and the samples and weights that made them."""
        return trace_rays(self, lambda: self._base_outputs(ray_bundle), len(ray_bundle))

    def new_field(self, resolution: int) -> MaskGrid:
        """An empty mask field: a grid."""
        return MaskGrid(resolution).to(self.device)

    def field_with_cells(self, num_cells: int) -> MaskGrid:
        """An empty grid to restore from a checkpoint."""
        return MaskGrid(round(num_cells ** (1 / 3)))

    def _base_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        # A copy, because some models move the near and far planes of the bundle that they are given.
        return super().get_outputs(copy.copy(ray_bundle))  # type: ignore[safe-super]

    def _gated(self, ray_bundle: RayBundle, keep: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Outputs with the density kept only where ``keep`` says so of the objects' probability."""

        def gate(positions: Tensor) -> Tensor:
            return keep(self.masks.probability_at(positions)).float()

        return self._render_gated(ray_bundle, gate)

    def _render_gated(self, ray_bundle: RayBundle, gate: Gate) -> dict[str, Any]:
        with gated_density(self, gate):
            return self._base_outputs(ray_bundle)

    def _object(self, ray_bundle: RayBundle, passing: Tensor, rgb: Tensor) -> dict[str, Tensor]:
        background = renderers.BACKGROUND_COLOR_OVERRIDE
        if background is None:
            background = COLORS_DICT[self.object_background]
        color = background.to(rgb).expand_as(rgb).clone()
        depth, accumulation = torch.zeros_like(rgb[:, :1]), torch.zeros_like(rgb[:, :1])
        if passing.any():
            with renderers.background_color_override_context(background.to(rgb)):
                alone = self._gated(ray_bundle[passing], lambda p: p > self.mask_threshold)
            color[passing] = _first(alone, "rgb")
            accumulation[passing] = _first(alone, "accumulation").reshape(-1, 1).clamp(0, 1)
            depth[passing] = _first(alone, "depth").reshape(-1, 1)
            depth = depth * (accumulation > 0.5)
        return {"object_rgb": color, "object_depth": depth, "object_accumulation": accumulation}

    def _background(self, ray_bundle: RayBundle, passing: Tensor, rgb: Tensor) -> Tensor:
        color = rgb.clone()
        if passing.any():
            color[passing] = _first(self._gated(ray_bundle[passing], lambda p: p <= self.mask_threshold), "rgb")
        return color


def _first(outputs: dict[str, Tensor], name: str) -> Tensor:
    """An output by the name that models with one pass give it, or by that of the finer of two."""
    return outputs[name] if name in outputs else outputs[f"{name}_fine"]


def with_masks(model: Model, threshold: float, object_background: str) -> Model:
    """Give a model mask outputs: its class becomes a subclass of what it was.

    Changing the class of the instance, not wrapping it, keeps it what nerfstudio's tools look for by isinstance.
    """
    kind = type(model)
    # nerfstudio itself asks this to tell the models that are given cameras from those that are given rays.
    mixin = MaskedSplatModel if isinstance(model, SplatfactoModel) else MaskedModel
    model.__class__ = new_class(f"SA3D{kind.__name__}", (mixin, kind))
    assert isinstance(model, MaskOutputs)
    model.masks = MaskObjects(model.field_with_cells)
    model.mask_threshold = threshold
    model.object_background = object_background
    return model
