"""Meshes of objects: open3d's Poisson reconstruction, nerfstudio's TSDF and its marching cubes."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import torch
import trimesh
from nerfstudio.exporter.marching_cubes import generate_mesh_with_multires_marching_cubes
from nerfstudio.exporter.tsdf_utils import export_tsdf_mesh
from nerfstudio.fields.sdf_field import SDFField
from sklearn.neighbors import NearestNeighbors
from trimesh.visual import ColorVisuals

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.boxes import Box, object_box
from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.exports.objects import ExportObject, only
from sa3d_nerfstudio.exports.points import ObjectPoints
from sa3d_nerfstudio.files import atomic_path
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.traces.nerf import DEPTH_OUTPUTS, RGB_OUTPUTS

o3d: Any = open3d  # its type stubs accept neither string paths nor arrays

MARGIN = 0.1
"""Margin of a mesh's volume on each side of the object's box, as a share of the box's longest edge."""


def poisson_mesh(points: ObjectPoints, depth: int, sparsest: float = 0.02) -> trimesh.Trimesh:
    """Reconstruct a surface from points with normals, as ``ns-export poisson`` does.

    Args:
        points: Points on the object.
        depth: Depth of the octree, which has ``2 ** depth`` cells along each axis.
        sparsest: Share of the vertices to cut away, where the points are sparsest.
    """
    cloud = points.cloud()
    mesh, densities = o3d.geometry.TriangleMesh.create_from_point_cloud_poisson(cloud, depth=depth)
    mesh.remove_vertices_by_mask(np.asarray(densities) < np.quantile(densities, sparsest))
    # Where points are missing, the surface closes far away from them.
    low, high = points.positions.min(axis=0), points.positions.max(axis=0)
    slack = MARGIN * (high - low).max()
    mesh = mesh.crop(o3d.geometry.AxisAlignedBoundingBox(low - slack, high + slack))
    return trimesh.Trimesh(
        np.asarray(mesh.vertices),
        np.asarray(mesh.triangles),
        vertex_colors=(np.asarray(mesh.vertex_colors).clip(0, 1) * 255).round().astype(np.uint8),
        process=False,
    )


def tsdf_mesh(
    pipeline: SA3DPipeline, objects: Sequence[ExportObject], resolution: int, downscale_factor: int
) -> trimesh.Trimesh:
    """Fuse depth images of the objects alone, by nerfstudio's TSDF.

    Args:
        pipeline: A loaded run of a NeRF.
        objects: The objects, which become one mesh.
        resolution: Cells of the volume along each axis.
        downscale_factor: Factor by which the depth images are smaller than the training images.

    Raises:
        SA3DError: The run is not a NeRF, or the depth images hold no surface.
    """
    model = pipeline.model
    if not model.RENDERS_RAYS:
        raise SA3DError("nerfstudio fuses depth images of NeRFs only: use --method poisson for a Gaussian run.")
    low, high = _bounds(objects, pipeline.config.threshold)
    dataset: Any = pipeline.datamanager.train_dataset
    outputs = dataset._dataparser_outputs
    names = _output_names(model, outputs.cameras)
    cameras = outputs.cameras
    outputs.cameras = copy.deepcopy(cameras)  # nerfstudio rescales them, and does not restore them
    try:
        with tempfile.TemporaryDirectory() as folder, only(model.masks, objects):
            export_tsdf_mesh(
                pipeline, Path(folder), downscale_factor, *names, resolution=resolution,
                bounding_box_min=low, bounding_box_max=high,
            )  # fmt: skip
            return _load(Path(folder) / "tsdf_mesh.ply")
    except ValueError as error:
        raise SA3DError("the depth images hold no surface of the object: use --method poisson.") from error
    finally:
        outputs.cameras = cameras


def signed_distances(pipeline: SA3DPipeline, resolution: int) -> SDFField:
    """The model's field of signed distances, for marching cubes.

    Args:
        pipeline: A loaded run.
        resolution: Cells along each axis.

    Raises:
        SA3DError: The model has no signed distances, or the resolution is not a multiple of 512.
    """
    field = getattr(pipeline.model, "field", None)
    if not isinstance(field, SDFField):
        raise SA3DError("marching cubes need signed distances, as of neus: use --method poisson or tsdf for this run.")
    if resolution < 1 or resolution % 512:
        raise SA3DError("nerfstudio's marching cubes take a --resolution of 512 or a multiple of it.")
    return field


def marching_cubes_mesh(
    pipeline: SA3DPipeline, objects: Sequence[ExportObject], resolution: int, points: ObjectPoints | None
) -> trimesh.Trimesh:
    """Zero level of signed distances, by nerfstudio's marching cubes; vertices take the nearest points' colours.

    Args:
        pipeline: A loaded run of a model of signed distances.
        objects: The objects, which become one mesh.
        resolution: Cells along each axis; a multiple of 512.
        points: Points on the objects, for colours; None for a mesh without colours.

    Raises:
        SA3DError: See :func:`signed_distances`.
    """
    field = signed_distances(pipeline, resolution)
    low, high = _bounds(objects, pipeline.config.threshold)
    with only(pipeline.model.masks, objects), torch.no_grad():
        mesh = generate_mesh_with_multires_marching_cubes(
            lambda x: field.forward_geonetwork(x)[:, 0].contiguous(), resolution, low, high
        )
    if points is not None and len(mesh.vertices):
        neighbors = NearestNeighbors(n_neighbors=1).fit(points.positions)
        nearest = neighbors.kneighbors(np.asarray(mesh.vertices), return_distance=False)[:, 0]
        mesh.visual = ColorVisuals(mesh, vertex_colors=(points.colors[nearest] * 255).astype(np.uint8))
    return mesh


def write_mesh(path: Path, mesh: trimesh.Trimesh, frame: Frame) -> None:
    """Write a mesh as PLY or GLB, by the path's suffix.

    GLB has y upwards, whereas nerfstudio's frame and most data sets have z: it is rotated to be upright in viewers.

    Args:
        path: The file.
        mesh: Mesh in nerfstudio's frame.
        frame: Frame of the written vertices.

    Raises:
        SA3DError: The mesh is empty.
    """
    if not len(mesh.faces):
        raise SA3DError("the mesh is empty: use another --method, or more points.")
    placed = mesh.copy()
    placed.vertices = frame.points(torch.from_numpy(np.array(mesh.vertices))).numpy()
    if path.suffix == ".glb":
        placed.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
    options: dict[str, Any] = {"vertex_normal": True} if path.suffix == ".ply" else {}
    content = placed.export(file_type=path.suffix[1:], **options)
    assert isinstance(content, bytes)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _bounds(
    objects: Sequence[ExportObject], threshold: float
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Corners of an axis-aligned box around objects, with a margin."""
    corners = np.concatenate([_wider(object_box(item.field, threshold)).corners for item in objects])
    low, high = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return (low[0], low[1], low[2]), (high[0], high[1], high[2])


def _wider(box: Box) -> Box:
    return Box(box.center, box.rotation, box.scale + 2 * MARGIN * box.scale.max())


def _output_names(model: MaskOutputs, cameras: Any) -> tuple[str, str]:
    """Names of the model's depth and image outputs."""
    rays = cameras[0:1].generate_rays(camera_indices=0, keep_shape=True)[:1, :1].to(model.device)
    with torch.no_grad():
        outputs = model.get_outputs_for_camera_ray_bundle(rays)
    depth = next(name for name in DEPTH_OUTPUTS if name in outputs)
    return depth, next(name for name in RGB_OUTPUTS if name in outputs)


def _load(path: Path) -> trimesh.Trimesh:
    mesh = trimesh.load(path, process=False)
    assert isinstance(mesh, trimesh.Trimesh)
    return mesh
