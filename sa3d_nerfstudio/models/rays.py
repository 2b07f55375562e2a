"""Mask outputs of base models that render rays, with the object alone or removed."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Literal, TypeVar, cast

import torch
from jaxtyping import Bool
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.fields.sdf_field import SDFField
from nerfstudio.model_components import renderers
from nerfstudio.utils.colors import COLORS_DICT
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.gpu_memory import map_chunks, with_smaller_chunks, within_memory
from sa3d_nerfstudio.models.gating import Gate, gated_density, install_gates, on_black
from sa3d_nerfstudio.models.outputs import (
    BACKGROUND_OUTPUTS,
    MASK_OUTPUTS,
    OBJECT_ONLY_OUTPUTS,
    OBJECT_OUTPUTS,
    SOLID,
    MaskOutputs,
    Observation,
)
from sa3d_nerfstudio.models.signed_distance import cut_to_objects, whole_scene
from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.atoms import NotOnRays, atoms_of
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.nerf import (
    NerfTrace,
    NerfViewTrace,
    WeightedSamples,
    concatenate,
    install_hooks,
    trace_rays,
)
from sa3d_nerfstudio.traces.view_rays import ViewRays, pixel_angle
from sa3d_nerfstudio.traces.window import Pixels

Kept = TypeVar("Kept")

SMALLER_IMAGES = "work in smaller images (--pipeline.working-size), or close other programs that use it"
"""Remedy where a view does not fit into the GPU's memory."""
FAR = 1e3
"""Depth, for exporters, of pixels that show no object."""
_FOR: ContextVar[Literal["viewing", "export"] | None] = ContextVar("for", default=None)
"""Purpose of the image being rendered; None between images."""


class MaskedModel(MaskOutputs):
    """Mixin for the class of a base model that renders rays.

    **Exports.** ns-viewer, ns-render and ns-eval render through ``get_outputs_for_camera``, and get the base model's
    image with masks beside it. The exporters of meshes (``ns-export tsdf``, and the textures of all meshes) call
    ``get_outputs_for_camera_ray_bundle`` directly and read ``rgb`` and ``depth`` alone: for them, these are the
    object's, with depth ``FAR`` on pixels without it, which the TSDF reads as free space. The exporters of points call
    the model directly and filter by alpha (``get_rgba_image``). ``ns-export marching-cubes`` queries the model's field
    for signed distances, see :class:`sa3d_nerfstudio.models.signed_distance.ObjectSDF`.
    """

    RENDERS_RAYS = True

    def prepare_masks(self) -> None:
        """Prepare for traces and gates; cut a field of signed distances to the objects, for outside callers."""
        install_hooks(self)
        install_gates(self)
        field = getattr(self, "field", None)
        if isinstance(field, SDFField):
            cut_to_objects(field, self)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Outputs for a bundle of rays."""
        if self.training:
            return super().get_outputs(ray_bundle)  # type: ignore[safe-super]
        outputs, samples = self.trace(ray_bundle)
        rgb = _first(outputs, "rgb")

        @functools.cache
        def passing() -> Tensor:
            return self.masks.hits(ray_bundle.origins, ray_bundle.directions, self.mask_threshold)

        if _FOR.get() == "export":
            ready = self.with_mask(outputs, rgb, NerfTrace(samples))
            return ready | self._to_export(outputs, *self._alone(ray_bundle, passing()))
        return self.lazy_outputs(
            outputs,
            rgb,
            {
                MASK_OUTPUTS: lambda: self.mask_outputs(rgb, NerfTrace(samples)),
                OBJECT_OUTPUTS: lambda: self._object(ray_bundle, passing(), rgb),
                BACKGROUND_OUTPUTS: lambda: {"background_rgb": self._background(ray_bundle, passing(), rgb)},
            },
        )

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Outputs for all pixels of a camera."""
        return scoped(_FOR, "viewing", functools.partial(super().get_outputs_for_camera, camera, obb_box))

    def get_outputs_for_camera_ray_bundle(self, camera_ray_bundle: RayBundle) -> dict[str, Tensor]:
        """Outputs for an image of rays; for exporters, which call this directly, those of the objects alone.

        Raises:
            SA3DError: An exporter calls this, and no object is shown.
        """
        render = functools.partial(super().get_outputs_for_camera_ray_bundle, camera_ray_bundle)
        if _FOR.get() == "viewing":
            return with_smaller_chunks(self.config, render)
        self.require_object()
        return scoped(_FOR, "export", lambda: with_smaller_chunks(self.config, render))

    def trace(self, ray_bundle: RayBundle) -> tuple[dict[str, Any], WeightedSamples]:
        """The base model's outputs for a bundle of rays, and the samples and weights that they were composited from."""
        return trace_rays(self, lambda: self._base_outputs(ray_bundle), len(ray_bundle))

    @torch.no_grad()
    def trace_view(
        self, camera: Cameras, lock: AbstractContextManager[Any] | None = None, pixels: Pixels | None = None
    ) -> NerfViewTrace:
        """Trace all pixels of one camera, or some of them, in chunks of the model's size."""
        rays = pixel_rays(camera, pixels)
        traced = self._render_rays(camera, rays, lock, lambda samples, _: samples.pruned())
        height, width = shape_of(camera, pixels)

        def join() -> NerfViewTrace:
            return NerfViewTrace(
                samples=concatenate([samples for samples, _, _ in traced]),
                height=height,
                width=width,
                rgb=torch.cat([rgb for _, rgb, _ in traced]).reshape(height, width, 3),
                depth=torch.cat([depth for _, _, depth in traced]).reshape(height, width, 1),
                origins=rays.origins.to(self.device),
                directions=rays.directions.to(self.device),
            )

        return within_memory(join, SMALLER_IMAGES)

    @torch.no_grad()
    def compressed_view(
        self,
        camera: Cameras,
        lock: AbstractContextManager[Any] | None = None,
        shared_directions: list[Tensor] | None = None,
        pixels: Pixels | None = None,
    ) -> ViewTrace:
        """As :meth:`trace_view`, compressed chunk by chunk: the uncompressed trace of a whole view is never held.

        Returns:
            A :class:`CompressedTrace`; for models whose samples leave their rays, the uncompressed trace.
        """
        bundle = pixel_rays(camera, pixels)
        rays = view_rays(camera, bundle, shared_directions)
        height, width = shape_of(camera, pixels)
        if pixels is None:
            angle = pixel_angle(rays.local.reshape(height, width, 3))
        else:
            angle = max(float(bundle.pixel_area.nanmedian().sqrt()), 1e-6)

        def keep(samples: WeightedSamples, chunk: RayBundle) -> tuple[Tensor, Tensor, Tensor]:
            return *atoms_of(samples, chunk.origins, chunk.directions, angle), samples.accumulation

        try:
            traced = self._render_rays(camera, bundle, lock, keep)
        except NotOnRays:
            return self.trace_view(camera, lock, pixels)

        def pack() -> CompressedTrace:
            return CompressedTrace.pack(
                torch.cat([atoms[0] for atoms, _, _ in traced], dim=1),
                torch.cat([atoms[1] for atoms, _, _ in traced], dim=1),
                torch.cat([atoms[2] for atoms, _, _ in traced]),
                torch.cat([rgb for _, rgb, _ in traced]).reshape(height, width, 3),
                torch.cat([depth for _, _, depth in traced]).reshape(height, width, 1),
                rays,
            )

        return within_memory(pack, SMALLER_IMAGES)

    @torch.no_grad()
    def observe(self, camera: Cameras, fields: Sequence[MaskField], threshold: float) -> Observation:
        """Render some objects as a camera sees them; only rays that pass through an object are rendered.

        The probability is 0 on all other rays. A cell with hardly any evidence does not make a ray pass, though it may
        have a probability.
        """
        rays = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True)
        passing = torch.zeros(rays.shape, dtype=torch.bool, device=self.device)
        for field in fields:
            passing |= field.hits(rays.origins.reshape(-1, 3), rays.directions.reshape(-1, 3), threshold).reshape(
                rays.shape
            )

        def see(chunk: RayBundle) -> dict[str, Tensor]:
            if self.collider is not None:
                chunk = self.collider(chunk)
            self.eval()
            outputs, samples = self.trace(chunk)
            assert samples.depth is not None
            probability, index = self.most_probable(NerfTrace(samples.pruned()), fields)
            points = chunk.origins + chunk.directions * samples.depth
            return {"probability": probability, "index": index, "rgb": _first(outputs, "rgb"), "points": points}

        images = {name: torch.zeros_like(rays.directions) for name in ("rgb", "points")}
        images["probability"] = torch.zeros_like(rays.directions[..., 0])
        images["index"] = torch.zeros_like(images["probability"], dtype=torch.long)
        self._render_where(passing, rays, see, images)
        return Observation(
            images["probability"], images["index"], images["rgb"], images["points"], rays.directions, passing
        )

    def _render_where(
        self,
        passing: Bool[Tensor, "height width"],
        rays: RayBundle,
        render: Callable[[RayBundle], dict[str, Tensor]],
        images: dict[str, Tensor],
    ) -> None:
        """Render the masked rays of a camera, and write each output into the image of its name."""
        chosen = rays[passing]
        chunks = map_chunks(self.config, len(chosen), lambda part: render(chosen[part]), self.device.type == "cuda")
        for name, image in images.items():
            if chunks:
                image[passing] = torch.cat([chunk[name] for chunk in chunks])

    @torch.no_grad()
    def render_outputs(self, camera: Cameras, names: Collection[str]) -> dict[str, Tensor]:
        """Render outputs for all pixels of a camera; for the object alone, only of rays that pass through it."""
        if not OBJECT_ONLY_OUTPUTS.issuperset(names):
            return super().render_outputs(camera, names)
        rays = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True)
        images = self.empty_outputs(names, *rays.shape)
        self._render_where(self.rays_for(camera, names), rays, self, images)
        return images

    @torch.no_grad()
    def rays_for(self, camera: Cameras, names: Collection[str]) -> Bool[Tensor, "height width"]:
        """Mask of the rays that :meth:`render_outputs` renders for outputs of these names."""
        if not OBJECT_ONLY_OUTPUTS.issuperset(names):
            return super().rays_for(camera, names)
        rays = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True)
        shape = rays.origins.shape[:2]
        rays = rays.flatten()
        return self.masks.hits(rays.origins, rays.directions, self.mask_threshold).reshape(shape)

    def _render_rays(
        self,
        camera: Cameras,
        rays: RayBundle,
        lock: AbstractContextManager[Any] | None,
        keep: Callable[[WeightedSamples, RayBundle], Kept],
    ) -> list[tuple[Kept, Tensor, Tensor]]:
        """Render rays of a camera.

        Returns:
            For each chunk the result of ``keep``, the colours, and the distances along the rays.
        """
        guard = lock or nullcontext()
        # nerfstudio divides by zero for a pixel that lies exactly on the axis of a fisheye lens.
        rays.directions = torch.where(rays.directions.isnan(), -camera.camera_to_worlds[0, :, 2], rays.directions)

        def trace(part: slice) -> tuple[Kept, Tensor, Tensor]:
            chunk = rays[part].to(self.device)
            if self.collider is not None:
                chunk = self.collider(chunk)
            with guard:
                self.eval()
                outputs, samples = self.trace(chunk)
            # The output named depth is not used: models of signed distances measure it along the camera's axis.
            return keep(samples, chunk), _first(outputs, "rgb"), cast(Tensor, samples.depth)

        return map_chunks(self.config, len(rays), trace, self.device.type == "cuda")

    def new_field(self, resolution: int) -> MaskGrid:
        """An empty mask field: a grid."""
        return MaskGrid(resolution).to(self.device)

    def field_with_cells(self, num_cells: int) -> MaskGrid:
        """An empty grid to restore from a checkpoint."""
        return self.new_field(round(num_cells ** (1 / 3)))

    def _base_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:
        # A copy, because some models move the near and far planes of their bundle.
        return whole_scene(functools.partial(super().get_outputs, copy.copy(ray_bundle)))  # type: ignore[safe-super]

    def _gated(self, ray_bundle: RayBundle, keep: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Outputs with the density kept only at positions where ``keep`` of the objects' probability is true."""

        def gate(positions: Tensor) -> Tensor:
            return keep(self.masks.probability_at(positions)).float()

        return self._render_gated(ray_bundle, gate)

    def _render_gated(self, ray_bundle: RayBundle, gate: Gate) -> dict[str, Any]:
        return gated_density(gate, lambda: self._base_outputs(ray_bundle))

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
        """The object's outputs under the base model's names; its colours are not mixed with a background."""
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
            # On black, because some models composite the object with an image of the background.
            alone = on_black(lambda: self._gated(ray_bundle[passing], lambda p: p > self.mask_threshold))
            color[passing] = _first(alone, "rgb")
            accumulation[passing] = _first(alone, "accumulation").reshape(-1, 1).clamp(0, 1)
            depth[passing] = _first(alone, "depth").reshape(-1, 1)
        return color, depth, accumulation

    def _background(self, ray_bundle: RayBundle, passing: Tensor, rgb: Tensor) -> Tensor:
        color = rgb.clone()
        if passing.any():
            color[passing] = _first(self._gated(ray_bundle[passing], lambda p: p <= self.mask_threshold), "rgb")
        return color


def shape_of(camera: Cameras, pixels: Pixels | None = None) -> tuple[int, int]:
    """Height and width of a camera's image, or of the image of some of its pixels."""
    return (int(camera.height.max()), int(camera.width.max())) if pixels is None else (pixels.height, pixels.width)


def pixel_rays(camera: Cameras, pixels: Pixels | None = None) -> RayBundle:
    """Rays of all pixels of a camera of any type, in row-major order, or of some pixels."""
    if pixels is None:
        return camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
    width = shape_of(camera)[1]
    # nerfstudio's rays pass through the centres of pixels.
    coords = torch.stack([pixels.indices // width, pixels.indices % width], dim=-1).float() + 0.5
    return camera.generate_rays(camera_indices=0, coords=coords.to(camera.device)).flatten()


def camera_rays(
    camera: Cameras, shared_directions: list[Tensor] | None = None, pixels: Pixels | None = None
) -> ViewRays:
    """Rays of all pixels of a camera, in row-major order, or of some pixels, as traces hold them."""
    return view_rays(camera, pixel_rays(camera, pixels), shared_directions)


def view_rays(camera: Cameras, rays: RayBundle, shared_directions: list[Tensor] | None = None) -> ViewRays:
    """A camera's rays in the form that its traces hold."""
    device = camera.camera_to_worlds.device
    rotation = camera.camera_to_worlds[0, :, :3]
    return ViewRays.of(rays.origins.to(device), rays.directions.to(device), rotation, shared_directions)


def _first(outputs: dict[str, Tensor], name: str) -> Tensor:
    """An output by its name in models with one pass, or by the name of the finer of two passes."""
    return outputs[name] if name in outputs else outputs[f"{name}_fine"]
