"""The base model with mask outputs, and with the object alone or removed beside its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from contextvars import ContextVar
from types import new_class
from typing import Any, Literal

import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.fields.sdf_field import SDFField
from nerfstudio.model_components import renderers
from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

from sa3d_nerfstudio.chunks import with_smaller_chunks
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.object_sdf import cut_to_objects, whole_scene
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.lazy_outputs import LazyOutputs
from sa3d_nerfstudio.mask_outputs import SOLID, MaskOutputs
from sa3d_nerfstudio.splat_model import MaskedSplatModel
from sa3d_nerfstudio.traces.gating import Gate, gated_density
from sa3d_nerfstudio.traces.nerf import NerfTrace, WeightedSamples, trace_rays

FAR = 1e3
"""Depth that exporters are given where there is no object."""
_FOR: ContextVar[Literal["viewing", "export"] | None] = ContextVar("for", default=None)
"""What an image is rendered for; None while nobody renders one."""


class MaskedModel(MaskOutputs):
    """What is added to the class of a base model that renders rays.

    **What is exported.** ns-viewer, ns-render and ns-eval render through ``get_outputs_for_camera``, and get the base
    model's image with masks beside it. The exporters of meshes (``ns-export tsdf``, and the textures of all meshes)
    call ``get_outputs_for_camera_ray_bundle`` themselves and look at ``rgb`` and ``depth`` alone: so from there these
    are the object's, and its depth is ``FAR`` where there is none, which the TSDF reads as free space. The exporters
    of points call the model itself and go by alpha (``get_rgba_image``). ``ns-export marching-cubes`` asks the model's
    field for signed distances, see :class:`sa3d_nerfstudio.fields.object_sdf.ObjectSDF`.
    """

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Outputs for a bundle of rays."""
        if self.training:
            return super().get_outputs(ray_bundle)  # type: ignore[safe-super]
        outputs, samples = self.trace(ray_bundle)
        rgb = _first(outputs, "rgb")
        passing = self.masks.hits(ray_bundle.origins, ray_bundle.directions, self.mask_threshold)
        ready = self.with_mask(outputs, rgb, NerfTrace(samples))
        if _FOR.get() == "export":
            return ready | self._to_export(outputs, *self._alone(ray_bundle, passing))
        later: dict[tuple[str, ...], Callable[[], dict[str, Tensor]]] = {
            ("object_rgb", "object_depth", "object_accumulation"): lambda: self._object(ray_bundle, passing, rgb),
            ("background_rgb",): lambda: {"background_rgb": self._background(ray_bundle, passing, rgb)},
        }
        if self.wanted_outputs is not None:
            wanted = self.wanted_outputs()
            for names in [names for names in later if wanted.isdisjoint(names)]:
                ready |= {name: torch.zeros_like(rgb if name.endswith("rgb") else rgb[:, :1]) for name in names}
                del later[names]
        return LazyOutputs(ready, later)

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Outputs for all pixels of a camera."""
        purpose = _FOR.set("viewing")
        try:
            return super().get_outputs_for_camera(camera, obb_box)
        finally:
            _FOR.reset(purpose)

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Outputs for an image of rays; for exporters, which call this themselves, those of the objects alone.

        Raises:
            SA3DError: An exporter asks, and there is no object.
        """
        render = functools.partial(super().get_outputs_for_camera_ray_bundle, camera_ray_bundle)
        if _FOR.get() == "viewing":
            return with_smaller_chunks(self.config, render)
        self.require_object()
        purpose = _FOR.set("export")
        try:
            return with_smaller_chunks(self.config, render)
        finally:
            _FOR.reset(purpose)

    def trace(self, ray_bundle: RayBundle) -> tuple[dict[str, Any], WeightedSamples]:
        """The base model's outputs for a bundle of rays, and the samples and weights that made them."""
        return trace_rays(self, lambda: self._base_outputs(ray_bundle), len(ray_bundle))

    def new_field(self, resolution: int) -> MaskGrid:
        """An empty mask field: a grid."""
        return MaskGrid(resolution).to(self.device)

    def field_with_cells(self, num_cells: int) -> MaskGrid:
        """An empty grid to restore from a checkpoint."""
        return self.new_field(round(num_cells ** (1 / 3)))

    def _base_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        # A copy, because some models move the near and far planes of the bundle that they are given.
        with whole_scene():
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
        color, depth, accumulation = self._alone(ray_bundle, passing)
        background = renderers.BACKGROUND_COLOR_OVERRIDE
        if background is None:
            background = COLORS_DICT[self.object_background]
        return {
            "object_rgb": color + (1 - accumulation) * background.to(rgb),
            "object_depth": depth * (accumulation > SOLID),
            "object_accumulation": accumulation,
        }

    def _to_export(
        self, outputs: dict[str, Any], color: Tensor, depth: Tensor, accumulation: Tensor
    ) -> dict[str, Tensor]:
        """The object's outputs under the names of the base model's; its colours are not mixed with what is behind."""
        values = {
            "rgb": torch.where(accumulation > 0.01, color / accumulation.clamp(min=0.01), color).clamp(0, 1),
            "depth": torch.where(accumulation > SOLID, depth, FAR),
            "accumulation": accumulation,
        }
        values |= {f"{name}_fine": value for name, value in values.items()} | {"expected_depth": values["depth"]}
        return {name: value for name, value in values.items() if name in outputs}

    def _alone(self, ray_bundle: RayBundle, passing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Colour (on black), depth and accumulation of the objects alone."""
        zero = torch.zeros(len(ray_bundle), 1, device=ray_bundle.origins.device)
        color, depth, accumulation = zero.repeat(1, 3), zero.clone(), zero.clone()
        if passing.any():
            # On black, for models that put an image of the background behind the object themselves.
            with renderers.background_color_override_context(color.new_zeros(3)):
                alone = self._gated(ray_bundle[passing], lambda p: p > self.mask_threshold)
            color[passing] = _first(alone, "rgb")
            accumulation[passing] = _first(alone, "accumulation").reshape(-1, 1).clamp(0, 1)
            depth[passing] = _first(alone, "depth").reshape(-1, 1)
        return color, depth, accumulation

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
    field = getattr(model, "field", None)
    if isinstance(model, MaskedModel) and isinstance(field, SDFField):
        cut_to_objects(field, model)
    return model
