"""A kind of radiance field from outside the package: rays end on the solids of the demo's scene.

Its trace, its model and its mixin follow docs/extending.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from torch import Tensor

from sa3d_nerfstudio.demo import layout, tracer
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.traces.base import PickedRows


@dataclass
class SurfaceTrace:
    """Trace with one sample per ray, of weight 1: the point where the ray ends."""

    points: Float[Tensor, "num_rays 3"]

    @property
    def accumulation(self) -> Float[Tensor, " num_rays"]:
        """Accumulation of each ray: 1."""
        return torch.ones_like(self.points[:, 0])

    def render(
        self, field: MaskGrid, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """``A x``: read the grid at the points."""
        return field.gather(values, self.points)

    def backproject(
        self, field: MaskGrid, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: spread the rays' values over the grid at the points."""
        return field.scatter(image, self.points)

    def rows(self, field: MaskGrid, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of ``A`` of some rays."""
        return PickedRows(self, field, rays)


@dataclass
class SurfaceView(SurfaceTrace):
    """The trace of all pixels of one view."""

    rgb: Float[Tensor, "height width 3"]
    depth: Float[Tensor, "height width 1"]

    @property
    def height(self) -> int:
        """Height of the image in pixels."""
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        """Width of the image in pixels."""
        return self.rgb.shape[1]

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position at the rendered depth of each pixel."""
        return self.points


@dataclass
class SolidModelConfig(ModelConfig):
    """Configuration of :class:`SolidModel`."""

    _target: type = field(default_factory=lambda: SolidModel)


class SolidModel(Model):
    """A nerfstudio model without parameters: its image is ray-traced."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """Colour and distance of the first surface on each ray."""
        origins, directions = ray_bundle.origins.double().numpy(), ray_bundle.directions.double().numpy()
        _, distances = tracer.trace(origins, directions, layout.solids(), layout.room())
        rgb = tracer.shade(origins, directions, layout.solids(), layout.room())
        depth = torch.from_numpy(distances).float()[:, None]
        return {"rgb": torch.from_numpy(rgb).float(), "depth": depth, "accumulation": torch.ones_like(depth)}

    def get_param_groups(self) -> dict[str, Any]:
        """No parameters: the model is not trained."""
        return {}

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """No losses."""
        return {}

    def get_image_metrics_and_images(self, outputs: Any, batch: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
        """No metrics and no images."""
        return {}, {}


class MaskedSolids(MaskOutputs):
    """Mixin of :class:`SolidModel`: mask field, trace and outputs."""

    def new_field(self, resolution: int) -> MaskGrid:
        """An empty grid."""
        return MaskGrid(resolution).to(self.device)

    def field_with_cells(self, num_cells: int) -> MaskGrid:
        """An empty grid to restore from a checkpoint."""
        return MaskGrid(round(num_cells ** (1 / 3))).to(self.device)

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Any]:  # type: ignore[override]
        """The base model's outputs, with the mask."""
        outputs: dict[str, Any] = super().get_outputs(ray_bundle)  # type: ignore[safe-super]
        trace = SurfaceTrace(ray_bundle.origins + ray_bundle.directions * outputs["depth"])
        return self.with_mask(outputs, outputs["rgb"], trace)

    def trace_view(self, camera: Cameras, lock: AbstractContextManager[Any] | None = None) -> SurfaceView:
        """Trace all pixels of one camera."""
        rays = camera.to(self.device).generate_rays(camera_indices=0, keep_shape=True)
        outputs: dict[str, Any] = super().get_outputs(rays.flatten())  # type: ignore[safe-super]
        points = rays.origins.reshape(-1, 3) + rays.directions.reshape(-1, 3) * outputs["depth"]
        return SurfaceView(points, outputs["rgb"].reshape(*rays.shape, 3), outputs["depth"].reshape(*rays.shape, 1))


def save_solid_run(folder: Path, scene: Path) -> Path:
    """Write a run of the model, as ns-train would.

    Args:
        folder: The run's folder.
        scene: Folder of the demo's scene.
    """
    parser = NerfstudioDataParserConfig(
        data=scene, orientation_method="none", center_method="none", auto_scale_poses=False
    )
    manager = VanillaDataManagerConfig(data=scene, dataparser=parser)
    config = TrainerConfig(
        method_name="solids", data=scene, pipeline=VanillaPipelineConfig(datamanager=manager, model=SolidModelConfig())
    )
    (folder / "nerfstudio_models").mkdir(parents=True)
    (folder / "config.yml").write_text(yaml.dump(config))
    state = {"_model.device_indicator_param": torch.empty(0)}
    torch.save({"step": 0, "pipeline": state}, folder / "nerfstudio_models" / "step-000000000.ckpt")
    return folder
