"""A Gaussian model with mask outputs, and with the object alone or removed beside its own."""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
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
    OBJECT_OUTPUTS,
    OF_THE_OBJECT,
    SOLID,
    MaskOutputs,
    Observation,
)
from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.base import RayTrace, render_probability
from sa3d_nerfstudio.traces.gaussians import (
    SMALLER,
    GaussianTrace,
    GaussianViewTrace,
    RenderedCells,
    gated_splats,
    install_interception,
    trace_gaussians,
)
from sa3d_nerfstudio.traces.window import Window, bounds, cropped

REACH = 3.0
"""Standard deviations of a splat up to which gsplat draws it."""
TOGETHER = 16
"""Objects that are rasterised at once: two channels each, of the 32 that gsplat takes at a time."""

_Base = SplatfactoModel if TYPE_CHECKING else object
_RENDERING: ContextVar[bool] = ContextVar("rendering", default=False)
"""Whether the base model renders, which sees all splats."""


def _splats_to_export(name: str) -> Any:
    return property(lambda self: self._to_export(name), doc=f"{name} of the splats; see MaskedSplatModel.")


class MaskedSplatModel(MaskOutputs, _Base):
    """What is added to the class of splatfacto, or of any class derived from it.

    **What is exported.** ``ns-export gaussian-splat`` sets the pipeline up in the mode "inference" and then, without
    rendering anything, reads ``means``, ``scales``, ``quats``, ``opacities`` and the colours off the model; nothing
    tells the model why. So in that mode callers outside the model read the shown objects' splats alone, while
    the model's own rendering sees them all. The other commands that use the mode (``ns-render``, ``ns-texture``) do
    nothing but render, and the viewer, which also reads ``means``, does not use it. The checkpoint and
    ``gauss_params`` are always whole.
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
        """Let renders be traced and gated."""
        install_interception(self)

    def object_splats(self) -> Bool[Tensor, " num_splats"]:
        """The splats of the shown objects."""
        means = self.gauss_params["means"]
        keep = torch.zeros(len(means), dtype=torch.bool, device=means.device)
        for field in self.masks.shown:
            assert isinstance(field, SplatMask)
            resting = field.is_packed
            keep |= field.selected(self.mask_threshold)
            if resting:
                field.rest()
        return keep

    def new_field(self, resolution: int) -> SplatMask:
        """An empty mask field: one cell per splat."""
        return SplatMask(self.gauss_params["means"].detach())

    def field_with_cells(self, num_cells: int) -> SplatMask:
        """An empty mask field to restore from a checkpoint.

        Raises:
            SA3DError: The model has another number of splats.
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
        # Which splats are the object's takes a search for neighbours: the image alone does not wait for it.
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
        """Probability of each of some objects in the pixels of a view, of several in one rasterisation."""
        found: list[Tensor] = []
        for start in range(0, len(fields), TOGETHER):
            some = fields[start : start + TOGETHER]
            resting = [field for field in some if isinstance(field, SplatMask) and field.is_packed]
            sums = trace.render(some[0], torch.cat([field.cells() for field in some], dim=-1))
            parts = sums.split(sums.shape[1] // len(some), dim=-1)
            found += [
                render_probability(RenderedCells(part, trace.accumulation), field)[0]
                for part, field in zip(parts, some, strict=True)
            ]
            for field in resting:
                field.rest()
        return found

    def trace(self, camera: Cameras) -> tuple[dict[str, Any], GaussianTrace]:
        """The base model's outputs for a camera, and the trace of its pixels."""
        return trace_gaussians(self, lambda: self._base_outputs(camera))

    @torch.no_grad()
    def trace_view(self, camera: Cameras, lock: AbstractContextManager[Any] | None = None) -> GaussianViewTrace:
        """Trace all pixels of one camera."""
        with lock or nullcontext():
            return within_memory(lambda: self._trace_view(camera), SMALLER)

    def _trace_view(self, camera: Cameras) -> GaussianViewTrace:
        self.eval()
        self.set_crop(None)
        height, width = int(camera.height.max()), int(camera.width.max())
        camera = camera.to(self.device)
        self._shared = self._shared or {}
        outputs, trace = trace_gaussians(self, lambda: self._base_outputs(camera), self._shared)
        assert trace.rasterization is not None
        # Positions are rasterised, not depths: that gives a place in the world whatever the camera's projection is.
        points = trace.rasterization(self.gauss_params["means"]) / trace.accumulation[:, None].clamp(min=1e-10)
        distance = (points - camera.camera_to_worlds[0, :, 3]).norm(dim=-1)
        something = trace.accumulation > 1e-3
        farthest = distance[something].max() if bool(something.any()) else distance.new_tensor(0.0)
        return GaussianViewTrace(
            rasterization=trace.rasterization,
            accumulation=trace.accumulation,
            height=height,
            width=width,
            rgb=outputs["rgb"],
            depth=torch.where(something, distance, farthest).reshape(height, width, 1),
            points=points,
        )

    @torch.no_grad()
    def observe(self, camera: Cameras, fields: Sequence[MaskField], threshold: float) -> Observation:
        """See what of some objects is visible to a camera; of its image, the part in which they may be is rendered."""
        camera = camera.to(self.device)
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        directions = rays.directions
        height, width = directions.shape[:2]
        images = [directions.new_zeros(height, width, channels) for channels in (len(fields), 3, 3)]
        passing = torch.zeros(height, width, dtype=torch.bool, device=self.device)
        window = self._window(rays, self._rows_of(fields, threshold))
        if window is not None:
            seen = super().observe(cropped(camera, window), fields, threshold)
            for image, part in zip(images, (seen.probability.permute(1, 2, 0), seen.rgb, seen.points), strict=True):
                image[window.rows, window.columns] = part
            passing[window.rows, window.columns] = True
        return Observation(images[0].permute(2, 0, 1), images[1], images[2], directions, passing)

    @torch.no_grad()
    def render_outputs(self, camera: Cameras, names: Collection[str]) -> dict[str, Tensor]:
        """Outputs for all pixels of a camera; of the object alone, that part of the image in which it may be."""
        if not OF_THE_OBJECT.issuperset(names):
            return super().render_outputs(camera, names)
        camera = camera.to(self.device)
        window = self._object_window(camera)
        images = self.outputs_without_object(names, int(camera.height.max()), int(camera.width.max()))
        if window is not None:
            part = super().render_outputs(cropped(camera, window), names)
            for name, image in images.items():
                image[window.rows, window.columns] = part[name]
        return images

    @torch.no_grad()
    def rays_for(self, camera: Cameras, names: Collection[str]) -> Bool[Tensor, "height width"]:
        """Which rays of a camera :meth:`render_outputs` renders for outputs of these names."""
        rays = super().rays_for(camera, names)
        if OF_THE_OBJECT.issuperset(names):
            window = self._object_window(camera.to(self.device))
            rays[:] = False
            if window is not None:
                rays[window.rows, window.columns] = True
        return rays

    def _object_window(self, camera: Cameras) -> Window | None:
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        return self._window(rays, self.object_splats() | self._rows_of(self.masks.shown, self.mask_threshold))

    def _rows_of(self, fields: Sequence[MaskField], threshold: float) -> Bool[Tensor, " num_splats"]:
        """The splats by which a pixel may be one of the objects'."""
        means = self.gauss_params["means"]
        found = torch.zeros(len(means), dtype=torch.bool, device=means.device)
        for field in fields:
            assert isinstance(field, SplatMask)
            found[field.object_rows(threshold).long()] = True
        return found

    def _window(self, rays: RayBundle, splats: Bool[Tensor, " num_splats"]) -> Window | None:
        """The part of an image of rays in which some splats are drawn, as far as they reach; None where none is."""
        if not bool(splats.any()):
            return None
        places = self.gauss_params["means"][splats]
        reach = REACH * self.gauss_params["scales"][splats].exp().amax(-1, keepdim=True)
        corners = torch.stack([(places - reach).amin(0), (places + reach).amax(0)])
        passing = through_box(corners, rays.origins, rays.directions)
        box, size = bounds(passing), (passing.shape[0], passing.shape[1])
        return None if box is None else Window.whole(size, max(size), 1.0).around(box, 1.0, margin=0.0)

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True, **kwargs: Any) -> _IncompatibleKeys:  # type: ignore[override]
        """Load a checkpoint of any number of splats, and say what did not fit, which splatfacto keeps to itself."""
        loaded = dict(state_dict)
        super().load_state_dict(loaded, strict=strict, **kwargs)
        own = self.state_dict()
        return _IncompatibleKeys([key for key in own if key not in loaded], [key for key in loaded if key not in own])

    def _base_outputs(self, camera: Cameras) -> dict[str, Any]:
        # A copy, because the model scales the camera that it is given, there and back.
        render = functools.partial(super().get_outputs, copy.deepcopy(camera))  # type: ignore[safe-super]
        outputs = within_memory(lambda: scoped(_RENDERING, True, render), SMALLER)
        # Where nothing lies in its crop box, splatfacto answers on the CPU wherever it is itself.
        return {name: value.to(self.device) if isinstance(value, Tensor) else value for name, value in outputs.items()}

    def render_splats(self, camera: Cameras, keep: Bool[Tensor, " num_splats"]) -> dict[str, Any]:
        """The base model's outputs for a camera with some of its splats alone."""
        self.eval()
        return self._gated(camera.to(self.device), keep.to(self.device))

    @torch.no_grad()
    def _gated(self, camera: Cameras, keep: Tensor) -> dict[str, Any]:
        return gated_splats(self, keep, lambda: self._base_outputs(camera))

    def _object(self, camera: Cameras, keep: Tensor) -> dict[str, Tensor]:
        alone = self._gated(camera, keep)
        rgb, accumulation = alone["rgb"], alone["accumulation"]
        # The model has put its own background behind the splats: take that away again.
        behind = COLORS_DICT[self.object_background].to(rgb) - alone["background"].to(rgb)
        return {
            "object_rgb": (rgb + (1 - accumulation) * behind).clamp(0, 1),
            "object_depth": alone["depth"] * (accumulation > SOLID),
            "object_accumulation": accumulation,
        }
