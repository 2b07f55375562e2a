"""Points on the surfaces of objects in the training views, with normals, probability and id."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import open3d
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from rich.progress import track
from torch import Tensor

from sa3d_nerfstudio.datamanager import Filtered
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.exports.object_view import RenderedRays, view_objects
from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.files import write_ply
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.traces.base import render_probability

o3d: Any = open3d  # its type stubs accept neither string paths nor arrays

RAYS_PER_POINT = 2.3
"""Rays through an object's cells that it takes for one point of its surface, rounded up."""
MAX_SCALE = 4.0
"""Largest magnification of the training images."""
NEIGHBORS = 20
"""Number of neighbours in the outlier test of a point."""


@dataclass
class ObjectPoints:
    """Points of one object or several, in nerfstudio's frame."""

    positions: Float[np.ndarray, "num 3"]
    normals: Float[np.ndarray, "num 3"]
    """Unit normals, towards the cameras that saw the points."""
    colors: Float[np.ndarray, "num 3"]
    """Colours in [0, 1]."""
    probability: Float[np.ndarray, " num"]
    """Probability of the object, rendered along the point's ray; for id 0, of no object."""
    object_id: Int[np.ndarray, " num"]

    @classmethod
    def joined(cls, parts: Sequence[ObjectPoints]) -> ObjectPoints:
        """The points of all parts, concatenated."""
        names = ("positions", "normals", "colors", "probability", "object_id")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def cloud(self) -> Any:
        """Positions, normals and colours as a point cloud of open3d."""
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(self.positions))
        cloud.normals = o3d.utility.Vector3dVector(self.normals)
        cloud.colors = o3d.utility.Vector3dVector(self.colors)
        return cloud


def object_points(
    pipeline: SA3DPipeline, item: ExportObject, others: Sequence[ExportObject], num_points: int
) -> ObjectPoints:
    """Points on an object's surface, from all training views, under a progress bar.

    Args:
        pipeline: A loaded run.
        item: The object.
        others: Objects that compete for its pixels; the object itself may be among them.
        num_points: Number of points before outliers are removed; fewer where the largest images show fewer.

    Raises:
        SA3DError: No training view sees the object.
    """
    objects = [item, *(other for other in others if other.id != item.id)]
    scale = _scale(pipeline, item, num_points)
    samples = _seen(pipeline, objects, scale, f"points of {item.name}")
    # Splats are rendered at their training size. The share of rays through a NeRF's cells that end on the object is
    # known only after rendering: if it is small, larger images are rendered.
    while pipeline.model.RENDERS_RAYS and 0 < len(samples) < num_points and scale < MAX_SCALE:
        scale = min(MAX_SCALE, scale * math.sqrt(1.1 * num_points / len(samples)))
        samples = _seen(pipeline, objects, scale, f"more points of {item.name}")
    if len(samples) <= NEIGHBORS:
        raise SA3DError(f"no training view sees the object {item.name!r}: segment it again with another prompt.")
    return _without_outliers(samples, torch.full((len(samples),), item.id), num_points)


@torch.no_grad()
def scene_points(pipeline: SA3DPipeline, objects: Sequence[ExportObject], num_points: int) -> ObjectPoints:
    """Points on all surfaces in the training views, under a progress bar; the id is 0 off the objects.

    Args:
        pipeline: A loaded run.
        objects: The objects; where two overlap, the point is on the more probable one.
        num_points: Number of points before outliers are removed.

    Raises:
        SA3DError: The training views show no surface.
    """
    model, threshold, cameras = pipeline.model, pipeline.config.threshold, _training_cameras(pipeline)
    pixels = sum(int(camera.height.max()) * int(camera.width.max()) for camera in cameras)
    scale = min(MAX_SCALE, math.sqrt(1.2 * num_points / pixels)) if model.RENDERS_RAYS else 1.0
    object_ids, batches, ids = torch.tensor([item.id for item in objects]), [], []
    for camera in track(cameras, "points of the scene", console=CONSOLE):
        camera.rescale_output_resolution(scale)
        trace = model.trace_view(camera)
        directions = camera.generate_rays(camera_indices=0, keep_shape=True).directions.reshape(-1, 3)
        probability = torch.stack([render_probability(trace, item.field)[0] for item in objects])
        best, index = probability.max(dim=0)
        on = best > threshold
        label_probability = torch.where(on, best, 1 - best)[:, None]
        columns = (trace.surface_points(), directions, trace.rgb.reshape(-1, 3), label_probability)
        solid = (trace.accumulation > 0.5).cpu()
        batches.append(torch.cat(columns, dim=-1).double().cpu()[solid])
        ids.append(torch.where(on.cpu(), object_ids[index.cpu()], 0)[solid])
    samples, labels = torch.cat(batches), torch.cat(ids)
    finite = torch.isfinite(samples).all(-1)
    if int(finite.sum()) <= NEIGHBORS:
        raise SA3DError("the training views see nothing solid: train the base model for longer.")
    return _without_outliers(samples[finite], labels[finite], num_points)


def _without_outliers(seen: Float[Tensor, "num 10"], ids: Int[Tensor, " num"], num_points: int) -> ObjectPoints:
    """Random subset of the points, without outliers, with normals."""
    drawn = torch.randperm(len(seen), generator=torch.Generator().manual_seed(0))[:num_points]
    seen, ids = seen[drawn], ids[drawn]
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(seen[:, :3].numpy()))
    _, inliers = cloud.remove_statistical_outlier(NEIGHBORS, std_ratio=3.0)
    seen, ids, cloud = seen[inliers], ids[inliers], cloud.select_by_index(inliers)
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(knn=50))
    normals = np.asarray(cloud.normals)
    away = (normals * seen[:, 3:6].numpy()).sum(axis=-1, keepdims=True) > 0
    return ObjectPoints(
        seen[:, :3].numpy(),
        np.where(away, -normals, normals),
        seen[:, 6:9].clamp(0, 1).numpy(),
        seen[:, 9].numpy(),
        ids.numpy().astype(np.int32),
    )


def _training_cameras(pipeline: SA3DPipeline) -> list[Cameras]:
    cameras = cast(Filtered, pipeline.datamanager).training_cameras()
    return [copy.deepcopy(cameras[index : index + 1]).to(pipeline.device) for index in range(len(cameras))]


def _scale(pipeline: SA3DPipeline, item: ExportObject, num_points: int) -> float:
    """Magnification at which about ``num_points`` pixels of all training images show the object."""
    if not pipeline.model.RENDERS_RAYS:
        return 1.0
    pixels = 0.0
    for camera in _training_cameras(pipeline):
        scale = min(1.0, 160 / max(int(camera.height.max()), int(camera.width.max())))
        camera.rescale_output_resolution(scale)
        rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
        pixels += float(item.field.hits(rays.origins, rays.directions, pipeline.config.threshold).sum()) / scale**2
    return min(MAX_SCALE, math.sqrt(RAYS_PER_POINT * num_points / max(pixels, 1.0)))


def _seen(pipeline: SA3DPipeline, objects: Sequence[ExportObject], scale: float, label: str) -> Float[Tensor, "num 10"]:
    """Points on the first object, with ray directions, colours and probabilities, under a progress bar."""
    item, threshold, rays = objects[0], pipeline.config.threshold, RenderedRays()
    batches = []
    for camera in track(_training_cameras(pipeline), label, console=CONSOLE):
        camera.rescale_output_resolution(scale)
        view = view_objects(pipeline.model, camera, objects, threshold)
        seen = view.seen
        rays.add(seen.passing)
        on = (view.ids(threshold) == item.id).to(seen.points.device)
        columns = (seen.points[on], seen.directions[on], seen.rgb[on], seen.probability[on][:, None])
        batches.append(torch.cat(columns, dim=-1).double().cpu())
    rays.tell()
    points = torch.cat(batches)
    seen = points[torch.isfinite(points).all(-1)]
    # At an outline, the rendered depth may lie anywhere between the object and the surface behind it.
    inside = item.field.contains(seen[:, :3].float().to(item.field.hit.device), threshold)
    return seen[inside.cpu()]


def write_points(path: Path, points: ObjectPoints, frame: Frame) -> None:
    """Write a binary PLY: x y z, nx ny nz, red green blue, probability, object_id.

    Args:
        path: The file.
        points: The points.
        frame: Frame of the written points.
    """
    positions = frame.points(torch.from_numpy(points.positions)).numpy().astype(np.float32)
    normals = frame.directions(torch.from_numpy(points.normals)).numpy().astype(np.float32)
    colors = (points.colors * 255).round().astype(np.uint8)
    columns: dict[str, np.ndarray] = dict(zip(("x", "y", "z"), positions.T, strict=True))
    columns |= dict(zip(("nx", "ny", "nz"), normals.T, strict=True))
    columns |= dict(zip(("red", "green", "blue"), colors.T, strict=True))
    columns["probability"] = points.probability.astype(np.float32)
    columns["object_id"] = points.object_id.astype(np.int32)
    write_ply(path, columns)
