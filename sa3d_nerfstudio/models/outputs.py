"""Mask outputs that models of rays and models of splats have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.models.base_model import Model
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.traces.base import RayTrace, ViewTrace, render_probability
from sa3d_nerfstudio.traces.window import Pixels


class LazyOutputs(dict):
    """Dictionary whose late entries are computed on first reading, a group at a time.

    nerfstudio's image renders read all outputs; the point cloud exporter and the training viewer's rays read two.
    Outputs that take another pass through the model are computed only if they are read.
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
        """As ``dict.get``; late entries are computed."""
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
    """Image of some objects from one camera."""

    probability: Float[Tensor, "height width"]
    """Probability of the most probable object; 0 on rays that pass through no object."""
    index: Int[Tensor, "height width"]
    """Index of that object; 0 on rays that pass through no object."""
    rgb: Float[Tensor, "height width 3"]
    """The base model's image where a ray passes through an object; 0 elsewhere."""
    points: Float[Tensor, "height width 3"]
    """World positions of the surface where a ray passes through an object; 0 elsewhere."""
    directions: Float[Tensor, "height width 3"]
    """Unit directions of the rays in the world frame."""
    passing: Bool[Tensor, "height width"]
    """Mask of the rendered rays: those that pass through an object, or may."""


MASK_OUTPUTS = ("mask", "mask_overlay")
OBJECT_OUTPUTS = ("object_rgb", "object_depth", "object_accumulation")
BACKGROUND_OUTPUTS = ("background_rgb",)
OBJECT_ONLY_OUTPUTS = frozenset({"mask", "object_rgb", "object_depth", "object_accumulation"})
"""Outputs that are constant over the rays that pass through no object."""
TOGETHER = 16
"""Objects whose probabilities are rendered together; gsplat takes 32 channels at a time, and splats have two each."""
TINT = 0.6
"""Share of an object's colour in the pixels of ``mask_overlay`` that show it."""
SOLID = 0.5
"""Accumulation above which a pixel of the object alone has a depth."""
RAYS_IN_VAIN = 100_000
"""Consecutive rays through the object without one that shows it, after which an export of points ends."""
NO_OBJECT = "this run has no object to export: segment one first (ns-train sa3d --load-dir RUN)."

_Base = Model if TYPE_CHECKING else object


class MaskOutputs(_Base):
    """Mixin for the class of a base model: the interface of all kinds of radiance fields with masks.

    A kind of radiance field implements :meth:`new_field`, :meth:`field_with_cells` and :meth:`trace_view`, and
    ``get_outputs`` with the outputs below; the other methods have defaults that work for any kind.

    Outputs in evaluation, beside the base model's outputs, which are unchanged:

    - ``mask``: probability of the shown objects, rendered from the evidence.
    - ``mask_overlay``: the image with the objects tinted.
    - ``object_rgb``, ``object_depth``, ``object_accumulation``: the objects alone, without their occluders. Depth is 0
      on pixels that show no object.
    - ``background_rgb``: the scene without the objects.
    """

    EXPORT = "pointcloud --normal-method open3d"
    """Method and options of ``ns-export`` that export the objects' shape, for any model of this kind."""

    RENDERS_RAYS: ClassVar[bool] = False
    """Whether single rays can be rendered, at any image size; otherwise only whole images."""

    CROPS: ClassVar[bool] = False
    """Whether a camera that is cropped by :func:`~sa3d_nerfstudio.traces.window.render_window` renders that window."""

    masks: MaskObjects
    object_background: str
    wanted_outputs: Callable[[], set[str]] | None = None
    """Returns the names of the outputs that a viewer shows; groups of late outputs that it does not show are zeros."""
    for_inference: bool = False
    """Whether the pipeline was set up in the mode "inference"."""
    on_exported: Callable[[Bool[Tensor, " num_rays"]], None] | None = None
    """Callback during exports of points, with a mask of the rays of a batch that show the objects."""
    _rays_in_vain = 0

    @property
    def mask_threshold(self) -> float:
        """Probability above which a cell or pixel belongs to an object."""
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
        """Prepare the other parts of the model for masks; called once, when the model gets them."""

    def trace_view(self, camera: Cameras, lock: AbstractContextManager[Any] | None = None) -> ViewTrace:
        """Trace all pixels of one camera.

        Args:
            camera: One camera, of any type that the base model renders.
            lock: Held while the model renders, and released in between, so that other threads can use the model.
        """
        raise NotImplementedError

    def compressed_view(
        self,
        camera: Cameras,
        lock: AbstractContextManager[Any] | None = None,
        shared_directions: list[Tensor] | None = None,
        pixels: Pixels | None = None,
    ) -> ViewTrace:
        """Trace all pixels of one camera, in the most compact form available.

        Args:
            camera: One camera, of any type that the base model renders.
            lock: As in :meth:`trace_view`.
            shared_directions: Ray directions of other cameras, in the camera's frame; see :meth:`ViewRays.of`.
            pixels: Pixels to trace, as a separate image; by default all. Only for models that render rays.
        """
        assert pixels is None, "models of whole images have no single rays"
        return self.trace_view(camera, lock)

    @torch.no_grad()
    def observe(self, camera: Cameras, fields: Sequence[MaskField], threshold: float) -> Observation:
        """Render some objects as a camera sees them.

        Args:
            camera: One camera, of any size.
            fields: The objects' mask fields.
            threshold: Probability above which a cell or pixel belongs to an object.
        """
        camera = camera.to(self.device)
        directions = camera.generate_rays(camera_indices=0, keep_shape=True).directions
        trace = self.trace_view(camera)
        shape = (trace.height, trace.width)
        probability, index = self.most_probable(trace, fields)
        return Observation(
            probability.reshape(shape),
            index.reshape(shape),
            trace.rgb,
            trace.surface_points().reshape(*shape, 3),
            directions,
            torch.ones(shape, dtype=torch.bool),
        )

    @torch.no_grad()
    def render_outputs(self, camera: Cameras, names: Collection[str]) -> dict[str, Tensor]:
        """Render outputs for all pixels of a camera, including the named ones that the model has."""
        return self.get_outputs_for_camera(camera.to(self.device))

    def rays_for(self, camera: Cameras, names: Collection[str]) -> Bool[Tensor, "height width"]:
        """Mask of the rays that :meth:`render_outputs` renders for outputs of these names: all rays."""
        return torch.ones(int(camera.height.max()), int(camera.width.max()), dtype=torch.bool)

    def empty_outputs(self, names: Collection[str], height: int, width: int) -> dict[str, Tensor]:
        """Images of some outputs in :data:`OBJECT_ONLY_OUTPUTS` with the values of rays that pass through no object."""
        background = 1.0 if self.object_background == "white" else 0.0
        return {
            name: torch.full((height, width, 3), background, device=self.device)
            if name == "object_rgb"
            else torch.zeros(height, width, 1, device=self.device)
            for name in names
        }

    def with_mask(self, outputs: dict[str, Any], rgb: Tensor, trace: RayTrace) -> dict[str, Any]:
        """The base model's outputs, with the mask and its overlay in the shape of its image."""
        return {**outputs, **self.mask_outputs(rgb, trace)}

    def mask_outputs(self, rgb: Tensor, trace: RayTrace) -> dict[str, Tensor]:
        """The mask and its overlay in the shape of the base model's image."""
        mask, overlay = self.render_overlay(trace, rgb.reshape(-1, 3))
        return {"mask": mask.reshape(*rgb.shape[:-1], 1), "mask_overlay": overlay.reshape(rgb.shape)}

    def lazy_outputs(
        self, outputs: dict[str, Any], rgb: Tensor, later: dict[tuple[str, ...], Callable[[], dict[str, Tensor]]]
    ) -> LazyOutputs:
        """The base model's outputs, and late outputs, computed on reading; zeros if a viewer does not show them."""
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
        """Check that an object is shown, to be exported.

        Raises:
            SA3DError: No object is shown.
        """
        if not self.masks.shown:
            raise SA3DError(NO_OBJECT)

    def probabilities(self, trace: RayTrace, fields: Sequence[MaskField]) -> list[Float[Tensor, " num_rays"]]:
        """Probability of each of some objects along traced rays."""
        return [render_probability(trace, field)[0] for field in fields]

    def most_probable(
        self, trace: RayTrace, fields: Sequence[MaskField]
    ) -> tuple[Float[Tensor, " num_rays"], Int[Tensor, " num_rays"]]:
        """The highest probability of some objects along each traced ray, and the index of the first that has it.

        A scene may have hundreds of objects, and an image millions of pixels: only a few objects are held at a time.
        """
        highest = torch.zeros_like(trace.accumulation)
        index = torch.zeros_like(highest, dtype=torch.long)
        for start in range(0, len(fields), TOGETHER):
            for number, probability in enumerate(self.probabilities(trace, fields[start : start + TOGETHER]), start):
                index.masked_fill_(probability > highest, number)
                highest = torch.maximum(highest, probability)
        return highest, index

    def render_mask(self, trace: RayTrace) -> Float[Tensor, " num_rays"]:
        """Probability of the shown objects along traced rays."""
        return self.most_probable(trace, self.masks.shown)[0]

    def render_overlay(
        self, trace: RayTrace, rgb: Float[Tensor, "num_rays 3"]
    ) -> tuple[Float[Tensor, " num_rays"], Float[Tensor, "num_rays 3"]]:
        """Probability of the shown objects along traced rays, and the rays' colours with the objects tinted."""
        shown = self.masks.shown_colored
        if not shown:
            return torch.zeros_like(trace.accumulation), rgb
        mask, index = self.most_probable(trace, [field for field, _ in shown])
        tint = TINT * (mask > self.mask_threshold).float()[:, None]
        return mask, torch.lerp(rgb, rgb.new_tensor([color for _, color in shown])[index], tint)

    def get_rgba_image(self, outputs: dict[str, Tensor], output_name: str = "rgb") -> Tensor:
        """An output with alpha: the objects' alpha where available, so that exporters keep the objects alone.

        nerfstudio's point cloud exporter keeps pixels with alpha above a half; the mask is rescaled so that its
        threshold becomes a half. The exporter draws rays until it has enough points, and would never end if no ray
        shows the object.

        Raises:
            SA3DError: None of ``RAYS_IN_VAIN`` consecutive rays has shown the object.
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
