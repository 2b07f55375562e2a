"""Scenes for tests: the demo's scene at a small size, in the formats that nerfstudio's methods read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image
from scipy.spatial.transform import Rotation

from sa3d_nerfstudio.demo import layout
from sa3d_nerfstudio.demo.options import SceneConfig
from sa3d_nerfstudio.demo.scene import cameras
from sa3d_nerfstudio.demo.tracer import trace

TINY = SceneConfig(train_views=10, test_views=2, width=32, height=24, supersample=2, surface_points=500)
"""Ten views to train on and two to test on, of 32 x 24 pixels."""

RGB = ("red", "green", "blue")


def with_points(scene: Path, folder: Path) -> Path:
    """Copy a scene with a point cloud on its surfaces, as from COLMAP, for splatfacto to start from.

    Args:
        scene: Folder of a scene.
        folder: Folder of the copy.
    """
    shutil.copytree(scene, folder)
    objects = [np.load(path)[:150] for path in sorted((scene / "points").glob("*.npy")) if "_seen" not in path.stem]
    rng = np.random.default_rng(0)
    floor = np.concatenate([rng.uniform(-0.7, 0.7, (600, 2)), np.zeros((600, 1))], axis=-1)
    points = np.concatenate([*objects, floor])
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in RGB] + ["end_header"]
    rows = [f"{x:.5f} {y:.5f} {z:.5f} 150 150 150" for x, y, z in points]
    (folder / "points.ply").write_text("\n".join([*header, *rows]) + "\n")
    transforms = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**transforms, "ply_file_path": "points.ply"}))
    return folder


def with_depths(scene: Path, folder: Path) -> Path:
    """Copy the tiny scene with exact depth images for depth-nerfacto: millimetres along the optical axis."""
    shutil.copytree(scene, folder)
    (folder / "depths").mkdir()
    transforms = json.loads((folder / "transforms.json").read_text())
    for frame, camera in zip(transforms["frames"], cameras(TINY), strict=True):
        origins, directions = camera.rays()
        distances = trace(origins, directions, layout.solids(), layout.room())[1]
        depths = distances * (directions @ -camera.pose[:3, 2])
        frame["depth_file_path"] = frame["file_path"].replace("images/", "depths/")
        millimetres = np.round(1000 * depths).astype(np.uint16).reshape(camera.height, camera.width)
        Image.fromarray(millimetres).save(folder / frame["depth_file_path"])
    (folder / "transforms.json").write_text(json.dumps(transforms))
    return folder


def _frames(scene: Path) -> tuple[list[str], list[np.ndarray], np.ndarray, dict[str, Any]]:
    """File names, poses (camera to world, OpenGL axes), intrinsics [3, 3], and the content of transforms.json."""
    transforms = json.loads((scene / "transforms.json").read_text())
    focal, cx, cy = (transforms[name] for name in ("fl_x", "cx", "cy"))
    names = [frame["file_path"] for frame in transforms["frames"]]
    poses = [np.array(frame["transform_matrix"]) for frame in transforms["frames"]]
    return names, poses, np.array([[focal, 0, cx], [0, focal, cy], [0, 0, 1]]), transforms


def as_sdfstudio(scene: Path, folder: Path, center: Sequence[float], half: float = 2.5) -> Path:
    """Copy a scene in the format of SDFStudio, which neus and neus-facto read.

    Args:
        scene: Folder of a scene.
        folder: Folder of the copy.
        center: Position of the new origin, around which signed distances are initialised as a ball.
        half: Half the side of the box around it in which signed distances are learnt.
    """
    shutil.copytree(scene, folder)
    names, poses, intrinsics, transforms = _frames(scene)
    frames = []
    for name, pose in zip(names, poses, strict=True):
        pose[:3, 3] -= center
        camera_to_world = (pose * [1, -1, -1, 1]).tolist()
        frames.append({"rgb_path": name, "camtoworld": camera_to_world, "intrinsics": intrinsics.tolist()})
    meta = {
        "camera_model": "OPENCV", "height": transforms["h"], "width": transforms["w"], "has_mono_prior": False,
        "scene_box": {"aabb": [[-half] * 3, [half] * 3], "near": 0.1, "far": 4.0, "radius": half},
        "frames": frames,
    }  # fmt: skip
    (folder / "meta_data.json").write_text(json.dumps(meta))
    return folder


def as_sitcoms(scene: Path, folder: Path) -> Path:
    """Copy a scene in the format of the sitcoms3D data set, for semantic-nerfw; its semantics are the objects."""
    shutil.copytree(scene, folder)
    shutil.copytree(scene / "instances", folder / "segmentations" / "thing")
    names, poses, intrinsics, _ = _frames(scene)
    frames = [
        {"image_name": Path(name).name, "camtoworld": pose.tolist(), "intrinsics": intrinsics.tolist()}
        for name, pose in zip(names, poses, strict=True)
    ]
    # Low and high corners after nerfstudio's rotation, which exchanges the ends of z.
    box = [[-1.0, -1.0, 1.0], [1.0, 1.0, 0.0]]
    (folder / "cameras.json").write_text(json.dumps({"frames": frames, "bbox": box}))
    things = ["room", *(solid.name for solid in layout.solids()), "person"]
    colors = np.random.default_rng(0).integers(0, 255, (len(things), 3)).tolist()
    (folder / "panoptic_classes.json").write_text(json.dumps({"thing": things, "thing_colors": colors}))
    return folder


def as_phototourism(scene: Path, folder: Path) -> Path:
    """Copy a scene as a photo collection in COLMAP's format, which phototourism reads."""
    shutil.copytree(scene, folder)
    (folder / "dense" / "sparse").mkdir(parents=True)
    shutil.copytree(scene / "images", folder / "dense" / "images")
    names, poses, intrinsics, transforms = _frames(scene)
    colmap_cameras, images = {}, {}
    for number, (name, pose) in enumerate(zip(names, poses, strict=True), start=1):
        to_camera = np.linalg.inv(pose * [1, -1, -1, 1])
        rotation = np.roll(Rotation.from_matrix(to_camera[:3, :3]).as_quat(), 1)
        parameters = intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]]
        colmap_cameras[number] = colmap.Camera(number, "PINHOLE", transforms["w"], transforms["h"], parameters)
        no_points = np.zeros((0, 2)), np.zeros(0)
        images[number] = colmap.Image(number, rotation, to_camera[:3, 3], number, Path(name).name, *no_points)
    colmap.write_cameras_binary(colmap_cameras, folder / "dense" / "sparse" / "cameras.bin")
    colmap.write_images_binary(images, folder / "dense" / "sparse" / "images.bin")
    return folder
