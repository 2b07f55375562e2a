"""The base model with mask outputs, and with the object alone or removed beside its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import new_class
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.lazy_outputs import LazyOutputs
from sa3d_nerfstudio.traces.base import RayTrace, render_probability
from sa3d_nerfstudio.traces.gating import Gate, gated_density
from sa3d_nerfstudio.traces.nerf import RGB_OUTPUTS, NerfTrace, WeightedSamples, trace_rays

TINT = 0.6
"""How much of an object's colour goes into ``mask_overlay``."""

_Base = Model if TYPE_CHECKING else object


class MaskedModel(_Base):
    """What is added to the class of a base model that renders rays.

    Outputs in evaluation, beside the base model's own, which stay as they are:

    - ``mask``: probability of the shown objects, as rendered from the evidence.
    - ``mask_overlay``: the image with the objects tinted.
    - ``object_rgb``, ``object_depth``, ``object_accumulation``: the objects alone, what stood in front gone. Depth is 0
      where there is none.
    - ``background_rgb``: the scene without the objects.
    """

    masks: MaskObjects
    mask_threshold: float
    object_background: str

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Outputs for a bundle of rays."""
        if self.training:
            return super().get_outputs(ray_bundle)  # type: ignore[safe-super]
        outputs, samples = self.trace(ray_bundle)
        rgb = outputs[next(name for name in RGB_OUTPUTS if name in outputs)]
        mask, overlay = self.render_overlay(NerfTrace(samples), rgb)
        ready = {**outputs, "mask": mask[:, None], "mask_overlay": overlay}
        passing = self.masks.hits(ray_bundle.origins, ray_bundle.directions, self.mask_threshold)
        return LazyOutputs(
            ready,
            {
                ("object_rgb", "object_depth", "object_accumulation"): lambda: self._object(ray_bundle, passing, rgb),
                ("background_rgb",): lambda: {"background_rgb": self._background(ray_bundle, passing, rgb)},
            },
        )

    def trace(self, ray_bundle: RayBundle) -> tuple[dict[str, Any], WeightedSamples]:
        """The base model's outputs for a bundle of rays, and the samples and weights that made them."""
        return trace_rays(self, lambda: self._base_outputs(ray_bundle), len(ray_bundle))

    def render_mask(self, trace: RayTrace) -> Float[Tensor, " num_rays"]:
        """Probability of the shown objects along rays that have been traced."""
        mask = torch.zeros_like(trace.accumulation)
        for field in self.masks.shown:
            mask = torch.maximum(mask, render_probability(trace, field)[0])
        return mask

    def render_overlay(
        self, trace: RayTrace, rgb: Float[Tensor, "num_rays 3"]
    ) -> tuple[Float[Tensor, " num_rays"], Float[Tensor, "num_rays 3"]]:
        """Probability of the shown objects along rays that have been traced, and their colours tinted by it."""
        mask, color = torch.zeros_like(trace.accumulation), torch.zeros_like(rgb)
        for name in self.masks.shown_names:
            probability = render_probability(trace, self.masks[name])[0]
            color = torch.where((probability > mask)[:, None], rgb.new_tensor(self.masks.colors[name]), color)
            mask = torch.maximum(mask, probability)
        tint = TINT * (mask > self.mask_threshold).float()[:, None]
        return mask, rgb * (1 - tint) + color * tint

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """An output with alpha: the object's where it can be told, so that exporters keep the object alone.

        nerfstudio's point cloud exporter keeps a pixel where alpha exceeds a half; a mask at its threshold
        becomes that.
        """
        if output_name == "object_rgb":
            return torch.cat([outputs[output_name], outputs["object_accumulation"]], dim=-1)
        if output_name == "background_rgb" or not self.masks.shown:
            return super().get_rgba_image(outputs, output_name)
        mask, threshold = outputs["mask"], self.mask_threshold
        low, high = 0.5 * mask / threshold, 0.5 + 0.5 * (mask - threshold) / (1 - threshold)
        return torch.cat([outputs[output_name][..., :3], torch.where(mask > threshold, high, low)], dim=-1)

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
    model.__class__ = new_class(f"SA3D{kind.__name__}", (MaskedModel, kind))
    assert isinstance(model, MaskedModel)
    model.masks = MaskObjects()
    model.mask_threshold = threshold
    model.object_background = object_background
    return model
