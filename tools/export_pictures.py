"""Draw exports of ``sa3d`` with independent libraries: the pictures of docs/exports.md.

``python tools/export_pictures.py EXPORTS DOCS``, where EXPORTS holds what the commands in docs/exports.md write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import matplotlib
import numpy as np
import open3d as o3d
import trimesh
from numpy.typing import NDArray
from PIL import Image
from plyfile import PlyData
from pycocotools.coco import COCO

matplotlib.use("agg")
from matplotlib import pyplot as plt

Pixels = NDArray[np.uint8]


def ray_traced(mesh: trimesh.Trimesh, azimuth: float, size: int = 260) -> Pixels:
    """Image of a mesh with z upwards, lit from the camera: intersections by open3d, colours interpolated here."""
    scene = o3d.t.geometry.RaycastingScene()
    faces = np.asarray(mesh.faces)
    scene.add_triangles(np.asarray(mesh.vertices, np.float32), faces.astype(np.uint32))
    center, extent = mesh.bounds.mean(axis=0), float(np.linalg.norm(np.ptp(mesh.bounds, axis=0)))
    eye = center + 1.7 * extent * np.array([np.cos(azimuth), np.sin(azimuth), 0.5])
    rays = scene.create_rays_pinhole(
        fov_deg=38, center=center.tolist(), eye=eye.tolist(), up=[0, 0, -1], width_px=size, height_px=size
    )
    hits = scene.cast_rays(rays)
    on = np.isfinite(hits["t_hit"].numpy())
    triangles = faces[hits["primitive_ids"].numpy()[on]]
    u, v = np.moveaxis(hits["primitive_uvs"].numpy()[on], -1, 0)[..., None]
    colors = np.asarray(mesh.visual.vertex_colors)[:, :3][triangles].astype(float)
    color = colors[:, 0] * (1 - u - v) + colors[:, 1] * u + colors[:, 2] * v
    directions = rays.numpy()[..., 3:][on]
    cosine = np.abs((hits["primitive_normals"].numpy()[on] * directions).sum(-1)) / np.linalg.norm(directions, axis=-1)
    image = np.full((size, size, 3), 255.0)
    image[on] = color * (0.45 + 0.55 * cosine[:, None])
    return image.clip(0, 255).astype(np.uint8)


def draw_meshes(folder: Path) -> Pixels:
    """Image of the GLB of one method and the PLY of another, each from two sides."""
    poisson = trimesh.load(folder / "mesh" / "mug.glb", force="mesh")
    assert isinstance(poisson, trimesh.Trimesh)
    poisson.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, [1, 0, 0]))
    loaded = o3d.io.read_triangle_mesh(str(folder / "tsdf" / "soup_left.ply"))
    colors = (np.asarray(loaded.vertex_colors) * 255).astype(np.uint8)
    tsdf = trimesh.Trimesh(np.asarray(loaded.vertices), np.asarray(loaded.triangles), vertex_colors=colors)
    return np.concatenate([ray_traced(mesh, angle) for mesh in (poisson, tsdf) for angle in (-2.0, 0.6)], axis=1)


def draw_points(folder: Path, path: Path) -> None:
    """Draw points as open3d reads them, by their colours, normals and probability, with the boxes around them."""
    figure = plt.figure(figsize=(10, 3.6))
    boxes = json.loads((folder / "box" / "boxes.json").read_text())["objects"]
    clouds = [o3d.t.io.read_point_cloud(str(file)) for file in sorted((folder / "points").glob("*.ply"))]
    everything = np.concatenate([cloud.point.positions.numpy() for cloud in clouds])
    for column, title in enumerate(("colours, and boxes", "normals", "probability, from 0.5 to 1")):
        axes = figure.add_subplot(1, 3, column + 1, projection="3d")
        for cloud in clouds:
            positions = cloud.point.positions.numpy()[::4]
            tint = [
                cloud.point.colors.numpy()[::4] / 255,
                cloud.point.normals.numpy()[::4] / 2 + 0.5,
                plt.get_cmap("viridis")(2 * cloud.point.probability.numpy()[::4, 0] - 1),
            ][column]
            axes.scatter(*positions.T, c=tint, s=1.5, linewidths=0)
        for box in boxes if column == 0 else ():
            rotation = o3d.geometry.get_rotation_matrix_from_zyx(box["obb_rotation"][::-1])
            shape = o3d.geometry.OrientedBoundingBox(box["obb_center"], rotation, box["obb_scale"])
            lines = o3d.geometry.LineSet.create_from_oriented_bounding_box(shape)
            for start, end in np.asarray(lines.lines):
                axes.plot(*np.asarray(lines.points)[[start, end]].T, color="tab:orange", linewidth=1)
        axes.set_box_aspect(np.ptp(everything, axis=0))
        axes.view_init(28, -50)
        axes.set_axis_off()
        axes.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def draw_splats(folder: Path, path: Path) -> None:
    """Draw the splats of one object as plyfile reads them: discs by size, colour and opacity, from three sides."""
    splats = PlyData.read(str(folder / "splats" / "object.ply"))["vertex"]
    positions = np.stack([splats[axis] for axis in "xyz"], axis=-1)
    sizes = np.exp(np.stack([splats[f"scale_{axis}"] for axis in range(3)], axis=-1)).mean(axis=-1)
    degree_zero = 0.28209479  # of the spherical harmonics whose coefficients are stored as colours
    colors = 0.5 + degree_zero * np.stack([splats[f"f_dc_{channel}"] for channel in range(3)], axis=-1)
    opacities = 1 / (1 + np.exp(-np.asarray(splats["opacity"])))
    tint = np.concatenate([colors.clip(0, 1), opacities[:, None]], axis=-1)
    figure = plt.figure(figsize=(9, 3))
    extent = float(np.ptp(positions, axis=0).max())
    for column, azimuth in enumerate((-50, 70, 190)):
        axes = figure.add_subplot(1, 3, column + 1, projection="3d")
        # The object is about 130 typographic points across; the size of a marker is its diameter squared.
        axes.scatter(*positions.T, c=tint, s=(2 * sizes / extent * 130) ** 2, linewidths=0)
        axes.set_box_aspect(np.ptp(positions, axis=0))
        axes.view_init(20, azimuth)
        axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def draw_masks(folder: Path) -> Pixels:
    """Three versions of one image: its inverted PNG mask, its id map, its COCO annotations by pycocotools."""
    coco = COCO(str(folder / "coco" / "annotations.json"))
    image = coco.loadImgs(coco.getImgIds()[:1])[0]
    stem = Path(image["file_name"]).stem
    photo = np.asarray(Image.open(image["file_name"]).convert("RGB"))
    inverted = np.asarray(Image.open(folder / "inverted" / "masks" / f"{stem}.png"))
    ids = np.asarray(Image.open(folder / "ids" / "ids" / f"{stem}.png"))
    table = json.loads((folder / "ids" / "objects.json").read_text())["objects"]
    palette = np.zeros((256, 3), np.uint8)
    for entry in table:
        palette[entry["id"]] = entry["color"]
    drawn = photo.astype(float)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
        on = coco.annToMask(annotation).astype(bool)
        drawn[on] = 0.4 * drawn[on] + 0.6 * palette[annotation["category_id"]]
        x, y, width, height = (int(value) for value in annotation["bbox"])
        for rows, columns in (
            ([y, y + height - 1], slice(x, x + width)),
            (slice(y, y + height), [x, x + width - 1]),
        ):
            drawn[rows, columns] = palette[annotation["category_id"]]
    masked = np.where(inverted[..., None] > 0, photo, 0)
    return np.concatenate([masked, palette[ids], drawn.astype(np.uint8)], axis=1)


def draw_video(path: Path, columns: int = 8) -> Pixels:
    """Frames of a video, side by side."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.concatenate(frames[:: max(1, len(frames) // columns)][:columns], axis=1)


def save(pixels: Pixels, path: Path, width: int) -> None:
    """Write a JPEG of a given width in pixels."""
    image = Image.fromarray(pixels)
    image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS).save(path, quality=82)


def main() -> None:
    """Draw all pictures."""
    folder, docs = Path(sys.argv[1]), Path(sys.argv[2])
    save(draw_masks(folder), docs / "exports-masks.jpg", 960)
    draw_points(folder, docs / "exports-points.png")
    draw_splats(folder, docs / "exports-splats.png")
    save(draw_meshes(folder), docs / "exports-meshes.jpg", 960)
    save(draw_video(folder / "turntable" / "moka_pot.mp4"), docs / "exports-turntable.jpg", 960)


if __name__ == "__main__":
    main()
