"""What models of rays and models of splats have in common once they have masks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.base_model import Model
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.traces.base import RayTrace, ViewTrace, render_probability
from sa3d_nerfstudio.traces.window import Pixels


class LazyOutputs(dict):
    """A dictionary whose late entries are computed, a group at a time, on first reading.

    nerfstudio's image renders read all outputs; the point cloud exporter and the training viewer's rays read two. What
    takes another pass through the model should cost only those who want it.
    """

    def __init__(
        self, ready: Mapping[str, Any], later: Mapping[tuple[str, ...], Callable[[], Mapping[str, Any]]]
    ) -> None:
        super().__init__(ready)
        self._later = {name: compute for names, compute in later.items() for name in names}

    def __missing__(self, name: str) -> Any:
        compute = self._later.get(name)
        if compute is None:
            raise KeyError(name)
        for key, value in compute().items():
            self[key] = value
            self._later.pop(key, None)
        return dict.__getitem__(self, name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._later

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__(), *self._later])

    def __len__(self) -> int:
        return super().__len__() + len(self._later)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dictionary."""
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> Any:
        """Names of all outputs; computes none."""
        return list(self)

    def items(self) -> Any:
        """All outputs, computed."""
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        """All outputs, computed."""
        return [self[name] for name in self]


@dataclass
class Observation:
    """What one camera sees of some objects."""

    probability: Float[Tensor, "num_objects height width"]
    """Of each object; 0 on rays that pass through none of them."""
    rgb: Float[Tensor, "height width 3"]
    """The base model's image where a ray passes through an object; 0 elsewhere."""
    points: Float[Tensor, "height width 3"]
    """World positions of the surface there; 0 elsewhere."""
    directions: Float[Tensor, "height width 3"]
    """Unit directions of the rays, in the world."""
    passing: Bool[Tensor, "height width"]
    """Which rays were rendered: those that pass through an object, or may."""


MASK_OUTPUTS = ("mask", "mask_overlay")
OBJECT_OUTPUTS = ("object_rgb", "object_depth", "object_accumulation")
BACKGROUND_OUTPUTS = ("background_rgb",)
OF_THE_OBJECT = frozenset({"mask", "object_rgb", "object_accumulation"})
"""Outputs that are the same on all rays that pass no object."""
TINT = 0.6
"""How much of an object's colour goes into ``mask_overlay``."""
SOLID = 0.5
"""Accumulation from which a pixel of the object alone has a depth."""
RAYS_IN_VAIN = 100_000
"""Rays through the object, one after another, of which none shows it, before an exporter of points is told so."""
NO_OBJECT = "this run has no object to export: segment one first (ns-train sa3d --load-dir RUN)."

_Base = Model if TYPE_CHECKING else object


class MaskOutputs(_Base):
    """To be mixed into the class of a base model: what the rest of the program asks of any kind of radiance field.

    A kind of radiance field implements :meth:`new_field`, :meth:`field_with_cells` and :meth:`trace_view`, and
    ``get_outputs`` with the outputs below; the other methods have defaults that work for any.

    Outputs in evaluation, beside the base model's own, which stay as they are:

    - ``mask``: probability of the shown objects, as rendered from the evidence.
    - ``mask_overlay``: the image with the objects tinted.
    - ``object_rgb``, ``object_depth``, ``object_accumulation``: the objects alone, what stood in front gone. Depth is 0
      where there is none.
    - ``background_rgb``: the scene without the objects.
    """

    EXPORT = "pointcloud --normal-method open3d"
    """What of ``ns-export`` gives the objects' shape, for any model of this kind."""

    RENDERS_RAYS: ClassVar[bool] = False
    """Whether single rays can be rendered, at any image size; else whole images."""

    CROPS: ClassVar[bool] = False
    """Whether a camera that shows a part of an image is rendered as that part of the image would be."""

    masks: MaskObjects
    object_background: str
    wanted_outputs: Callable[[], set[str]] | None = None
    """What a viewer shows of the outputs; it renders all, but those that take a pass of their own are not filled in."""
    for_inference: bool = False
    """Whether the pipeline was set up in the mode "inference"."""
    on_exported: Callable[[Bool[Tensor, " num_rays"]], None] | None = None
    """Called with which rays of a batch show the objects, when an exporter of points asks for them."""
    _rays_in_vain = 0

    @property
    def mask_threshold(self) -> float:
        """Probability above which something is on an object."""
        return self.masks.threshold

    @mask_threshold.setter
    def mask_threshold(self, threshold: float) -> None:
        self.masks.threshold = threshold

    def new_field(self, resolution: int) -> MaskField:
        """An empty mask field of the kind that fits this model.

        Args:
            resolution: Cells along each axis, if the field is a grid.
        """
        raise NotImplementedError

    def field_with_cells(self, num_cells: int) -> MaskField:
        """An empty mask field to restore from a checkpoint, on the model's device."""
        raise NotImplementedError

    def prepare_masks(self) -> None:
        """Change what else of the model must know of the masks; called once, when it has been given them."""

    def trace_view(self, camera: Cameras, lock: AbstractContextManager[Any] | None = None) -> ViewTrace:
        """Trace all pixels of one camera.

        Args:
            camera: One camera, of any type that the base model renders.
            lock: Held while the model renders, and free in between, so that others get their turn with the model.
        """
        raise NotImplementedError

    def compressed_view(
        self,
        camera: Cameras,
        lock: AbstractContextManager[Any] | None = None,
        shared_directions: list[Tensor] | None = None,
        pixels: Pixels | None = None,
    ) -> ViewTrace:
        """The trace of all pixels of one camera in the smallest form that there is of it.

        Args:
            camera: One camera, of any type that the base model renders.
            lock: As in :meth:`trace_view`.
            shared_directions: Ray directions of other cameras, in the camera's frame; see :meth:`ViewRays.of`.
            pixels: The only ones to trace, as an image of their own; for models that render rays.
        """
        assert pixels is None, "models of whole images have no single rays"
        return self.trace_view(camera, lock)

    @torch.no_grad()
    def observe(self, camera: Cameras, fields: Sequence[MaskField], threshold: float) -> Observation:
        """See what of some objects is visible to a camera.

        Args:
            camera: One camera, of any size.
            fields: The objects' mask fields.
            threshold: Probability above which something is on an object.
        """
        camera = camera.to(self.device)
        directions = camera.generate_rays(camera_indices=0, keep_shape=True).directions
        trace = self.trace_view(camera)
        shape = (trace.height, trace.width)
        probability = torch.stack(self.probabilities(trace, fields))
        return Observation(
            probability.reshape(-1, *shape),
            trace.rgb,
            trace.surface_points().reshape(*shape, 3),
            directions,
            torch.ones(shape, dtype=torch.bool),
        )

    @torch.no_grad()
    def render_outputs(self, camera: Cameras, names: Collection[str]) -> dict[str, Tensor]:
        """Outputs for all pixels of a camera, among them those of these names, where the model has them."""
        return self.get_outputs_for_camera(camera.to(self.device))

    def rays_for(self, camera: Cameras, names: Collection[str]) -> Bool[Tensor, "height width"]:
        """Which rays of a camera :meth:`render_outputs` renders for outputs of these names: all of them."""
        return torch.ones(int(camera.height.max()), int(camera.width.max()), dtype=torch.bool)

    def outputs_without_object(self, names: Collection[str], height: int, width: int) -> dict[str, Tensor]:
        """What some of the outputs in :data:`OF_THE_OBJECT` are on rays that pass no object."""
        behind = 1.0 if self.object_background == "white" else 0.0
        return {
            name: torch.full((height, width, 3), behind, device=self.device)
            if name == "object_rgb"
            else torch.zeros(height, width, 1, device=self.device)
            for name in names
        }

    def with_mask(self, outputs: dict[str, Any], rgb: Tensor, trace: RayTrace) -> dict[str, Any]:
        """The base model's outputs, with the mask and its overlay in the form of its image."""
        return {**outputs, **self.mask_outputs(rgb, trace)}

    def mask_outputs(self, rgb: Tensor, trace: RayTrace) -> dict[str, Tensor]:
        """The mask and its overlay in the form of the base model's image."""
        mask, overlay = self.render_overlay(trace, rgb.reshape(-1, 3))
        return {"mask": mask.reshape(*rgb.shape[:-1], 1), "mask_overlay": overlay.reshape(rgb.shape)}

    def lazy_outputs(
        self, outputs: dict[str, Any], rgb: Tensor, later: dict[tuple[str, ...], Callable[[], dict[str, Tensor]]]
    ) -> LazyOutputs:
        """The base model's outputs, and others, computed when they are read; zeros if a viewer does not show them."""
        ready = dict(outputs)
        if self.wanted_outputs is not None:
            wanted = self.wanted_outputs()
            for names in [names for names in later if wanted.isdisjoint(names)]:
                ready |= {
                    name: torch.zeros_like(rgb if name.endswith(("rgb", "overlay")) else rgb[..., :1]) for name in names
                }
                del later[names]
        return LazyOutputs(ready, later)

    def require_object(self) -> None:
        """Check that there is an object to export.

        Raises:
            SA3DError: There is none.
        """
        if not self.masks.shown:
            raise SA3DError(NO_OBJECT)

    def probabilities(self, trace: RayTrace, fields: Sequence[MaskField]) -> list[Float[Tensor, " num_rays"]]:
        """Probability of each of some objects along rays that have been traced."""
        return [render_probability(trace, field)[0] for field in fields]

    def render_mask(self, trace: RayTrace) -> Float[Tensor, " num_rays"]:
        """Probability of the shown objects along rays that have been traced."""
        mask = torch.zeros_like(trace.accumulation)
        for probability in self.probabilities(trace, self.masks.shown):
            mask = torch.maximum(mask, probability)
        return mask

    def render_overlay(
        self, trace: RayTrace, rgb: Float[Tensor, "num_rays 3"]
    ) -> tuple[Float[Tensor, " num_rays"], Float[Tensor, "num_rays 3"]]:
        """Probability of the shown objects along rays that have been traced, and their colours tinted by it."""
        mask, color = torch.zeros_like(trace.accumulation), torch.zeros_like(rgb)
        shown = self.masks.shown_colored
        probabilities = self.probabilities(trace, [field for field, _ in shown])
        for probability, (_, its_color) in zip(probabilities, shown, strict=True):
            color = torch.where((probability > mask)[:, None], rgb.new_tensor(its_color), color)
            mask = torch.maximum(mask, probability)
        tint = TINT * (mask > self.mask_threshold).float()[:, None]
        return mask, rgb * (1 - tint) + color * tint

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """An output with alpha: the object's where it can be told, so that exporters keep the object alone.

        nerfstudio's point cloud exporter keeps a pixel where alpha exceeds a half; a mask at its threshold
        becomes that. It draws rays until it has its points, and would never end where none shows the object.

        Raises:
            SA3DError: None of ``RAYS_IN_VAIN`` rays in a row has shown the object.
        """
        if output_name == "object_rgb":
            return torch.cat([outputs[output_name], outputs["object_accumulation"]], dim=-1)
        if output_name == "background_rgb" or not self.masks.shown:
            return super().get_rgba_image(outputs, output_name)
        mask, threshold = outputs["mask"], self.mask_threshold
        if mask.dim() == 2:
            shown = mask[:, 0] > threshold
            if self.on_exported is not None:
                self.on_exported(shown)
            self._rays_in_vain = 0 if bool(shown.any()) else self._rays_in_vain + len(mask)
            if self._rays_in_vain > RAYS_IN_VAIN:
                raise SA3DError(
                    f"the object's mask lies above the threshold of {threshold:g} in no training view: "
                    "segment it again, with another prompt or a smaller --pipeline.threshold."
                )
        low, high = 0.5 * mask / threshold, 0.5 + 0.5 * (mask - threshold) / (1 - threshold)
        return torch.cat([outputs[output_name][..., :3], torch.where(mask > threshold, high, low)], dim=-1)
