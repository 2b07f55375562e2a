"""Cameras that come with splat files: Inria's cameras.json, nerfstudio's transforms.json, a COLMAP model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from nerfstudio.process_data.colmap_utils import parse_colmap_camera_params
from numpy import ndarray
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError, one_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp")
"""Suffixes of photos, for cameras that are named without one."""
DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
"""nerfstudio's names of lens distortion parameters."""


@dataclass
class SplatCamera:
    """A camera in the frame of the splats."""

    name: str
    """File name of its image, with or without a suffix."""
    pose: Float[ndarray, "4 4"]
    """Camera to world; the camera's x points right, y up, z backwards."""
    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: dict[str, float] = field(default_factory=dict)
    """Lens distortion by the names in ``DISTORTION``."""
    model: str = "OPENCV"
    """nerfstudio's name of the lens model."""
    photo: Path | None = None
    """Its image, if it exists."""


def read_cameras(path: Path, images: Path | None = None, beside: Path | None = None) -> list[SplatCamera]:
    """Read cameras, and find their photos.

    Args:
        path: Inria's ``cameras.json``, nerfstudio's ``transforms.json``, or a COLMAP folder.
        images: Folder of the photos; by default those usual for such files.
        beside: Folder of the splats, which may hold the ``dataparser_transforms.json`` of their nerfstudio run.

    Raises:
        SA3DError: The path holds no cameras, or they are of no known form.
    """
    if not path.exists():
        raise SA3DError(f"there are no cameras {path}: check the path, or leave out --cameras.")
    try:
        cameras, folders = _read(path, [path.parent, *([] if beside is None else [beside])])
    except SA3DError:
        raise
    except Exception as error:  # any part of the three formats may be damaged
        raise SA3DError(
            f"{path} cannot be read as a cameras.json, transforms.json or COLMAP model "
            f"({type(error).__name__}: {one_line(error)}): write it again, or leave out --cameras."
        ) from error
    if not cameras:
        raise SA3DError(f"there are no cameras in {path}: give another --cameras, or leave it out.")
    if len({camera.model for camera in cameras}) > 1:
        raise SA3DError(f"the cameras in {path} have different kinds of lenses: give those of one kind.")
    if images is not None and not images.is_dir():
        raise SA3DError(f"there is no folder of photos {images}: check the path, or leave out --images.")
    look = _photos_in([images] if images is not None else folders)
    return [_fitted(camera, camera.photo or look(camera.name)) for camera in cameras]


def _read(path: Path, beside: list[Path]) -> tuple[list[SplatCamera], list[Path]]:
    """Cameras, and folders that may hold their photos."""
    if path.is_dir():
        model = next(
            (path / sub for sub in ("", "sparse/0", "sparse", "colmap/sparse/0") if _has_model(path / sub)), None
        )
        if model is None:
            raise SA3DError(f"there is no COLMAP model (cameras.bin or cameras.txt) in {path}: give its folder.")
        parents = [path, *path.parents[:3]]
        return _colmap(model), [parent / "images" for parent in parents]
    content = json.loads(path.read_text("utf8"))
    folders = [path.parent / "images", path.parent]
    if isinstance(content, list):
        return [_inria(entry) for entry in content], folders
    if isinstance(content, dict) and "frames" in content:
        return _nerfstudio(content, path.parent, _to_run(beside, content)), folders
    raise SA3DError(f"{path} is neither a cameras.json nor a transforms.json: give one of these, or a COLMAP folder.")


def _inria(entry: dict[str, Any]) -> SplatCamera:
    pose = np.eye(4)
    pose[:3, :3] = np.array(entry["rotation"], np.float64) * [1, -1, -1]
    pose[:3, 3] = entry["position"]
    width, height = int(entry["width"]), int(entry["height"])
    focal = float(entry["fx"]), float(entry["fy"])
    return SplatCamera(str(entry["img_name"]), pose, width, height, *focal, width / 2, height / 2)


def _nerfstudio(content: dict[str, Any], folder: Path, to_run: tuple[ndarray, float] | None) -> list[SplatCamera]:
    cameras = []
    for frame in content["frames"]:
        values = {**content, **frame}
        pose = np.array(values["transform_matrix"], np.float64)
        pose = np.concatenate([pose[:3], [[0, 0, 0, 1]]])
        if to_run is not None:
            matrix, scale = to_run
            pose = matrix @ pose
            pose[:3, 3] *= scale
        width, height = int(values["w"]), int(values["h"])
        focal = float(values["fl_x"]), float(values.get("fl_y", values["fl_x"]))
        middle = float(values.get("cx", width / 2)), float(values.get("cy", height / 2))
        photo = folder / values["file_path"]
        cameras.append(
            SplatCamera(
                Path(values["file_path"]).name, pose, width, height, *focal, *middle,
                {name: float(values[name]) for name in DISTORTION if values.get(name)},
                str(values.get("camera_model", "OPENCV")), photo if photo.is_file() else None,
            )
        )  # fmt: skip
    return cameras


def _to_run(folders: list[Path], content: dict[str, Any]) -> tuple[ndarray, float] | None:
    """Rigid transform, then scale, from the frame of a transforms.json to that of the run trained on it, if saved."""
    path = next((path for folder in folders if (path := folder / "dataparser_transforms.json").is_file()), None)
    if path is None:
        return None
    saved = json.loads(path.read_text("utf8"))
    matrix = np.concatenate([np.array(saved["transform"], np.float64)[:3], [[0, 0, 0, 1]]])
    # The saved transform starts from the frame before ``applied_transform``, which is in the transforms.json.
    applied = np.eye(4)
    applied[:3] = np.array(content.get("applied_transform", np.eye(4)[:3]))[:3]
    return matrix @ np.linalg.inv(applied), float(saved["scale"])


def _has_model(folder: Path) -> bool:
    return any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt"))


def _colmap(folder: Path) -> list[SplatCamera]:
    if (folder / "cameras.bin").is_file():
        devices = colmap.read_cameras_binary(folder / "cameras.bin")
        views = colmap.read_images_binary(folder / "images.bin")
    else:
        devices = colmap.read_cameras_text(folder / "cameras.txt")
        views = colmap.read_images_text(folder / "images.txt")
    lenses = {number: parse_colmap_camera_params(device) for number, device in devices.items()}
    cameras = []
    for view in views.values():
        lens = lenses[view.camera_id]
        pose = np.eye(4)
        rotation = colmap.qvec2rotmat(view.qvec)
        pose[:3, :3] = rotation.T * [1, -1, -1]
        pose[:3, 3] = -rotation.T @ view.tvec
        cameras.append(
            SplatCamera(
                view.name, pose, int(lens["w"]), int(lens["h"]), lens["fl_x"], lens["fl_y"], lens["cx"], lens["cy"],
                {name: float(lens[name]) for name in DISTORTION if lens.get(name)}, str(lens["camera_model"]),
            )
        )  # fmt: skip
    return cameras


def _photos_in(folders: list[Path]) -> Callable[[str], Path | None]:
    def look(name: str) -> Path | None:
        for folder in folders:
            for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in IMAGE_SUFFIXES)):
                if path.is_file():
                    return path
        return None

    return look


def _fitted(camera: SplatCamera, photo: Path | None) -> SplatCamera:
    """The camera at the size of its photo, which may have been resized."""
    if photo is None:
        return camera
    try:
        with Image.open(photo) as image:
            width, height = image.size
    except OSError as error:
        raise SA3DError(f"the photo {photo} cannot be read ({one_line(error)}): restore it.") from error
    x, y = width / camera.width, height / camera.height
    if abs(x - y) > 0.02 * max(x, y):
        raise SA3DError(
            f"the photo {photo} has {width} x {height} pixels, which is another shape than the {camera.width} x "
            f"{camera.height} of its camera: give the photos that the cameras are of with --images."
        )
    return replace(
        camera, width=width, height=height, fx=camera.fx * x, fy=camera.fy * y, cx=camera.cx * x, cy=camera.cy * y,
        photo=photo,
    )  # fmt: skip
