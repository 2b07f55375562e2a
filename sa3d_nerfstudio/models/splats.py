"""Mask outputs of Gaussian models, with the object alone or removed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.models.splatfacto import SplatfactoModel
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor
from torch.nn.modules.module import _IncompatibleKeys

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.splat_mask import SplatMask, through_box
from sa3d_nerfstudio.gpu_memory import within_memory
from sa3d_nerfstudio.models.outputs import (
    BACKGROUND_OUTPUTS,
    MASK_OUTPUTS,
    NO_OBJECT,
    OBJECT_ONLY_OUTPUTS,
    OBJECT_OUTPUTS,
    SOLID,
    TOGETHER,
    MaskOutputs,
    Observation,
)
from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.base import RayTrace, render_probability
from sa3d_nerfstudio.traces.gaussians import (
    MEMORY_REMEDY,
    GaussianTrace,
    GaussianViewTrace,
    RenderedCells,
    gated_splats,
    trace_gaussians,
)
from sa3d_nerfstudio.traces.gsplat_calls import install_interception
from sa3d_nerfstudio.traces.window import Window, bounds, render_window

REACH = 3.0
"""Radius up to which gsplat draws a splat, in standard deviations."""

_Base = SplatfactoModel if TYPE_CHECKING else object
_RENDERING: ContextVar[bool] = ContextVar("rendering", default=False)
"""Whether the base model is rendering; its renders use all splats."""


def _splats_to_export(name: str) -> Any:
    return property(lambda self: self._to_export(name), doc=f"{name} of the splats; see MaskedSplatModel.")


class MaskedSplatModel(MaskOutputs, _Base):
    """Mixin for the class of splatfacto, or of any class derived from it.

    **Exports.** ``ns-export gaussian-splat`` sets the pipeline up in the mode "inference" and then, without rendering,
    reads ``means``, ``scales``, ``quats``, ``opacities`` and the colours from the model, which cannot recognise the
    export. So in that mode callers outside the model read the shown objects' splats alone, while the model's own
    renders use all splats. The other commands that use the mode (``ns-render``, ``ns-texture``) only render, and the
    viewer, which also reads ``means``, does not use it. The checkpoint and ``gauss_params`` always hold all splats.
    """

    EXPORT = "gaussian-splat"
    CROPS = True

    _shared: dict[str, Tensor] | None = None

    means = _splats_to_export("means")
    scales = _splats_to_export("scales")
    quats = _splats_to_export("quats")
    opacities = _splats_to_export("opacities")
    features_dc = _splats_to_export("features_dc")
    features_rest = _splats_to_export("features_rest")

    def _to_export(self, name: str) -> Tensor:
        values = self.gauss_params[name]
        if _RENDERING.get() or not self.for_inference:
            return values
        keep = self.object_splats()
        if not bool(keep.any()):
            raise SA3DError(NO_OBJECT)
        return values[keep]

    def prepare_masks(self) -> None:
        """Prepare renders for traces and gates."""
        install_interception(self)

    def object_splats(self) -> Bool[Tensor, " num_splats"]:
        """Mask of the splats of the shown objects."""
        means = self.gauss_params["means"]
        keep = torch.zeros(len(means), dtype=torch.bool, device=means.device)
        for field in self.masks.shown:
            assert isinstance(field, SplatMask)
            was_packed = field.is_packed
            keep |= field.selected(self.mask_threshold)
            if was_packed:
                field.rest()
        return keep

    def new_field(self, resolution: int) -> SplatMask:
        """An empty mask field: one cell per splat."""
        return SplatMask(self.gauss_params["means"].detach())

    def field_with_cells(self, num_cells: int) -> SplatMask:
        """An empty mask field to restore from a checkpoint.

        Raises:
            SA3DError: The model has a different number of splats.
        """
        field = self.new_field(0)
        if field.num_cells != num_cells:
            raise SA3DError(
                f"the masks are of {num_cells} splats, but the base run has {field.num_cells}: "
                "segment again, or use the checkpoint that was segmented."
            )
        return field

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Outputs for a camera."""
        if self.training or not isinstance(camera, Cameras):
            return super().get_outputs(camera)  # type: ignore[safe-super]
        outputs, trace = self.trace(camera)
        rgb = outputs["rgb"]
        # Selecting the object's splats takes a search for neighbours, which the image alone does not need.
        keep = functools.cache(self.object_splats)

        def background() -> Tensor:
            return self._gated(camera, ~keep())["rgb"] if bool(keep().any()) else rgb

        return self.lazy_outputs(
            outputs,
            rgb,
            {
                MASK_OUTPUTS: lambda: self.mask_outputs(rgb, trace),
                OBJECT_OUTPUTS: lambda: self._object(camera, keep()),
                BACKGROUND_OUTPUTS: lambda: {"background_rgb": background()},
            },
        )

    def probabilities(self, trace: RayTrace, fields: Sequence[MaskField]) -> list[Float[Tensor, " num_rays"]]:
        """Probability of each of some objects in the pixels of a view; one rasterisation renders several objects."""
        results: list[Tensor] = []
        for start in range(0, len(fields), TOGETHER):
            batch = fields[start : start + TOGETHER]
            packed = [field for field in batch if isinstance(field, SplatMask) and field.is_packed]
            sums = trace.render(batch[0], torch.cat([field.cells() for field in batch], dim=-1))
            rendered_fields = sums.split(sums.shape[1] // len(batch), dim=-1)
            results += [
                render_probability(RenderedCells(rendered, trace.accumulation), field)[0]
                for rendered, field in zip(rendered_fields, batch, strict=True)
            ]
            for field in packed:
                field.rest()
        return results

    def trace(self, camera: Cameras) -> tuple[dict[str, Any], GaussianTrace]:
        """The base model's outputs for a camera, and the trace of its pixels."""
        return trace_gaussians(self, lambda: self._base_outputs(camera))

    @torch.no_grad()
    def trace_view(self, camera: Cameras, lock: AbstractContextManager[Any] | None = None) -> GaussianViewTrace:
        """Trace all pixels of one camera."""
        with lock or nullcontext():
            return within_memory(lambda: self._trace_view(camera), MEMORY_REMEDY)

    def _trace_view(self, camera: Cameras) -> GaussianViewTrace:
        self.eval()
        self.set_crop(None)
        height, width = int(camera.height.max()), int(camera.width.max())
        camera = camera.to(self.device)
        self._shared = self._shared or {}
        outputs, trace = trace_gaussians(self, lambda: self._base_outputs(camera), self._shared)
        assert trace.rasterization is not None
        # World positions are rasterised instead of depths: they are surface points for any projection of the camera.
        points = trace.rasterization(self.gauss_params["means"]) / trace.accumulation[:, None].clamp(min=1e-10)
        distance = (points - camera.camera_to_worlds[0, :, 3]).norm(dim=-1)
        covered = trace.accumulation > 1e-3
        farthest = distance[covered].max() if bool(covered.any()) else distance.new_tensor(0.0)
        return GaussianViewTrace(
            rasterization=trace.rasterization,
            accumulation=trace.accumulation,
            height=height,
            width=width,
            rgb=outputs["rgb"],
            depth=torch.where(covered, distance, farthest).reshape(height, width, 1),
            points=points,
        )

    @torch.no_grad()
    def observe(self, camera: Cameras, fields: Sequence[MaskField], threshold: float) -> Observation:
        """Render some objects as a camera sees them; only the window in which they may be is rendered."""
        camera = camera.to(self.device)
        rays = _pinhole_rays(camera)
        directions = rays.directions
        height, width = directions.shape[:2]
        probability, rgb, points = (directions.new_zeros(height, width, *last) for last in ((), (3,), (3,)))
        index = torch.zeros_like(probability, dtype=torch.long)
        passing = torch.zeros_like(probability, dtype=torch.bool)
        window = self._window(rays, self._rows_of(fields, threshold))
        if window is not None:
            observe = functools.partial(super().observe, fields=fields, threshold=threshold)
            view = render_window(camera, window, observe)
            parts = (view.probability, view.index, view.rgb, view.points)
            for image, part in zip((probability, index, rgb, points), parts, strict=True):
                image[window.rows, window.columns] = part
            passing[window.rows, window.columns] = True
        return Observation(probability, index, rgb, points, directions, passing)

    @torch.no_grad()
    def render_outputs(self, camera: Cameras, names: Collection[str]) -> dict[str, Tensor]:
        """Render outputs for all pixels of a camera; for the object alone, only the window in which it may be."""
        if not OBJECT_ONLY_OUTPUTS.issuperset(names):
            return super().render_outputs(camera, names)
        camera = camera.to(self.device)
        window = self._object_window(camera)
        images = self.empty_outputs(names, int(camera.height.max()), int(camera.width.max()))
        if window is not None:
            rendered = render_window(camera, window, functools.partial(super().render_outputs, names=names))
            for name, image in images.items():
                image[window.rows, window.columns] = rendered[name]
        return images

    @torch.no_grad()
    def rays_for(self, camera: Cameras, names: Collection[str]) -> Bool[Tensor, "height width"]:
        """Mask of the rays that :meth:`render_outputs` renders for outputs of these names."""
        rays = super().rays_for(camera, names)
        if OBJECT_ONLY_OUTPUTS.issuperset(names):
            window = self._object_window(camera.to(self.device))
            rays[:] = False
            if window is not None:
                rays[window.rows, window.columns] = True
        return rays

    def _object_window(self, camera: Cameras) -> Window | None:
        rays = _pinhole_rays(camera)
        return self._window(rays, self.object_splats() | self._rows_of(self.masks.shown, self.mask_threshold))

    def _rows_of(self, fields: Sequence[MaskField], threshold: float) -> Bool[Tensor, " num_splats"]:
        """Mask of the splats by which a pixel may show one of the objects."""
        means = self.gauss_params["means"]
        mask = torch.zeros(len(means), dtype=torch.bool, device=means.device)
        for field in fields:
            assert isinstance(field, SplatMask)
            mask[field.object_rows(threshold).long()] = True
        return mask

    def _window(self, rays: RayBundle, splats: Bool[Tensor, " num_splats"]) -> Window | None:
        """The window of an image of rays in which some splats are drawn, their radius included; None if none is."""
        if not bool(splats.any()):
            return None
        centers = self.gauss_params["means"][splats]
        reach = REACH * self.gauss_params["scales"][splats].exp().amax(-1, keepdim=True)
        corners = torch.stack([(centers - reach).amin(0), (centers + reach).amax(0)])
        passing = through_box(corners, rays.origins, rays.directions)
        box, size = bounds(passing), (passing.shape[0], passing.shape[1])
        return None if box is None else Window.whole(size, max(size), 1.0).around(box, 1.0, margin=0.0)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, **kwargs: Any) -> _IncompatibleKeys:  # type: ignore[override]
        """Load a checkpoint of any number of splats, and return missing and unexpected keys, unlike splatfacto."""
        loaded = dict(state_dict)
        super().load_state_dict(loaded, strict=strict, **kwargs)
        state = self.state_dict()
        return _IncompatibleKeys(
            [key for key in state if key not in loaded], [key for key in loaded if key not in state]
        )

    def _base_outputs(self, camera: Cameras) -> dict[str, Any]:
        # A copy, because the model rescales its camera, and then scales it back.
        render = functools.partial(super().get_outputs, copy.deepcopy(camera))  # type: ignore[safe-super]
        outputs = within_memory(lambda: scoped(_RENDERING, True, render), MEMORY_REMEDY)
        # If its crop box is empty, splatfacto returns outputs on the CPU, whatever its device.
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in outputs.items()}

    def render_splats(self, camera: Cameras, keep: Bool[Tensor, " num_splats"]) -> dict[str, Any]:
        """The base model's outputs for a camera, rendered from some of its splats alone."""
        self.eval()
        return self._gated(camera.to(self.device), keep.to(self.device))

    @torch.no_grad()
    def _gated(self, camera: Cameras, keep: Tensor) -> dict[str, Any]:
        return gated_splats(self, keep, lambda: self._base_outputs(camera))

    def _object(self, camera: Cameras, keep: Tensor) -> dict[str, Tensor]:
        outputs = self._gated(camera, keep)
        rgb, accumulation = outputs["rgb"], outputs["accumulation"]
        # The model has composited its own background behind the splats: replace it.
        background_change = COLORS_DICT[self.object_background].to(rgb) - outputs["background"].to(rgb)
        return {
            "object_rgb": (rgb + (1 - accumulation) * background_change).clamp(0, 1),
            "object_depth": outputs["depth"] * (accumulation > SOLID),
            "object_accumulation": accumulation,
        }


def _pinhole_rays(camera: Cameras) -> RayBundle:
    """Rays of all pixels as splatfacto renders them: of a pinhole, whatever lens the camera has."""
    pinhole = copy.copy(camera)
    pinhole.distortion_params = None
    pinhole.camera_type = torch.full_like(camera.camera_type, CameraType.PERSPECTIVE.value)
    return pinhole.generate_rays(camera_indices=0, keep_shape=True)
