"""What a camera sees of each object, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.chunks import map_chunks
from sa3d_nerfstudio.exports.selection import ExportObject
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.mask_outputs import MaskOutputs
from sa3d_nerfstudio.model import MaskedModel
from sa3d_nerfstudio.splat_model import MaskedSplatModel
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.nerf import RGB_OUTPUTS, NerfTrace


@dataclass
class ObjectView:
    """Some objects in one image."""

    objects: Sequence[ExportObject]
    probability: Float[Tensor, "num_objects height width"]
    """Of each object; 0 where no part of any object lies on the ray."""
    rgb: Float[Tensor, "height width 3"]
    """The base model's image, where there is a probability."""
    points: Float[Tensor, "height width 3"]
    """World positions of what is seen there."""
    directions: Float[Tensor, "height width 3"]
    """Where the rays go."""
    passing: Bool[Tensor, "height width"]
    """Which rays were looked at: those that pass through an object."""

    def ids(self, threshold: float) -> Int[Tensor, "height width"]:
        """Per pixel the id of the most probable object, or 0 where none exceeds the threshold."""
        best, index = self.probability.max(dim=0)
        ids = torch.tensor([one.id for one in self.objects])[index.cpu()]
        return torch.where(best.cpu() > threshold, ids, 0)


@torch.no_grad()
def look(model: MaskOutputs, camera: Cameras, objects: Sequence[ExportObject], threshold: float) -> ObjectView:
    """See what of some objects is visible to a camera.

    Of a NeRF, only the rays are rendered that pass through an object, which are few: all others are not on it. A cell
    that hardly any view has seen does not make a ray pass, though it may have a probability.

    Args:
        model: The base model with masks.
        camera: One camera, of any size.
        objects: The objects.
        threshold: Probability above which something is on an object.
    """
    camera = camera.to(model.device)
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    directions = rays.directions
    height, width = directions.shape[:2]
    if isinstance(model, MaskedSplatModel):
        trace = model.trace_view(camera)
        probability = torch.stack([render_probability(trace, one.field)[0] for one in objects])
        return ObjectView(
            objects,
            probability.reshape(-1, height, width),
            trace.rgb,
            trace.surface_points().reshape(height, width, 3),
            directions,
            torch.ones(height, width, dtype=torch.bool),
        )
    assert isinstance(model, MaskedModel)
    rays = rays.flatten()
    passing = passing_rays(objects, rays.origins, rays.directions, threshold)
    chosen = rays[passing]

    def see(part: slice) -> tuple[Tensor, Tensor, Tensor]:
        chunk = chosen[part]
        if model.collider is not None:
            chunk = model.collider(chunk)
        model.eval()
        outputs, samples = model.trace(chunk)
        assert samples.depth is not None
        trace = NerfTrace(samples.pruned())
        probability = torch.stack([render_probability(trace, one.field)[0] for one in objects], dim=-1)
        color = outputs[next(name for name in RGB_OUTPUTS if name in outputs)]
        return probability, color, chunk.origins + chunk.directions * samples.depth

    parts = map_chunks(model.config, len(chosen), see)
    images = [directions.new_zeros(height * width, channels) for channels in (len(objects), 3, 3)]
    for index, image in enumerate(images):
        if parts:
            image[passing] = torch.cat([part[index] for part in parts])
    probability, rgb, points = (image.reshape(height, width, -1) for image in images)
    return ObjectView(objects, probability.permute(2, 0, 1), rgb, points, directions, passing.reshape(height, width))


def passing_rays(
    objects: Sequence[ExportObject],
    origins: Float[Tensor, "num_rays 3"],
    directions: Float[Tensor, "num_rays 3"],
    threshold: float,
) -> Bool[Tensor, " num_rays"]:
    """Which rays pass through any of the objects, whose fields must be grids."""
    passing = torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
    for one in objects:
        assert isinstance(one.field, MaskGrid)
        passing |= one.field.hits(origins, directions, threshold)
    return passing
