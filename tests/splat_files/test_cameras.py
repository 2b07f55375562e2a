"""Cameras that come with splats, in three formats, and their photos."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nerfstudio.data.utils import colmap_parsing_utils as colmap
from PIL import Image
from scipy.spatial.transform import Rotation

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.splat_files.cameras import read_cameras
from sa3d_nerfstudio.splat_files.load import check_cameras, up_of
from sa3d_nerfstudio.splat_files.ply import write_ply
from sa3d_nerfstudio.splat_files.virtual_cameras import look_at
from tests.splat_scenes import desk, flat_gaussians

UP = np.array([0.0, 0.0, 1.0])
POSES = [look_at(np.array([x, -3.0, 1.5]), np.array([-x, 3.0, -1.2]), UP) for x in (-1.0, 0.2, 1.0)]
WIDTH, HEIGHT, FOCAL = 400, 300, 350.0


def write_inria(path: Path) -> Path:
    entries = []
    for index, pose in enumerate(POSES):
        rotation = pose[:3, :3] * [1, -1, -1]
        entries.append(
            {
                "id": index, "img_name": f"{index:05d}", "width": WIDTH, "height": HEIGHT,
                "position": pose[:3, 3].tolist(), "rotation": rotation.tolist(), "fx": FOCAL, "fy": FOCAL,
            }
        )  # fmt: skip
    path.write_text(json.dumps(entries))
    return path


def write_transforms(path: Path, **more: object) -> Path:
    frames = [
        {"file_path": f"images/{index:05d}.png", "transform_matrix": pose.tolist()} for index, pose in enumerate(POSES)
    ]
    content = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL, "fl_y": FOCAL, "cx": 200, "cy": 150, **more, "frames": frames}
    path.write_text(json.dumps(content))
    return path


def write_colmap(folder: Path, suffix: str) -> Path:
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    devices = {1: colmap.Camera(1, "PINHOLE", WIDTH, HEIGHT, np.array([FOCAL, FOCAL, 200, 150]))}
    images = {}
    for index, pose in enumerate(POSES, start=1):
        to_camera = np.linalg.inv(pose @ np.diag([1, -1, -1, 1]))
        quat = np.roll(Rotation.from_matrix(to_camera[:3, :3]).as_quat(), 1)
        nothing = np.zeros((0, 2)), np.zeros(0)
        images[index] = colmap.Image(index, quat, to_camera[:3, 3], 1, f"{index - 1:05d}.png", *nothing)
    if suffix == ".bin":
        colmap.write_cameras_binary(devices, model / "cameras.bin")
        colmap.write_images_binary(images, model / "images.bin")
    else:
        colmap.write_cameras_text(devices, model / "cameras.txt")
        colmap.write_images_text(images, model / "images.txt")
    return folder


@pytest.mark.parametrize("kind", ["inria", "transforms", ".bin", ".txt"])
def test_the_same_cameras_are_read_from_any_format(kind: str, tmp_path: Path):
    if kind == "inria":
        path = write_inria(tmp_path / "cameras.json")
    elif kind == "transforms":
        path = write_transforms(tmp_path / "transforms.json")
    else:
        path = write_colmap(tmp_path, kind)
    cameras = read_cameras(path)
    assert np.allclose([camera.pose for camera in cameras], POSES, atol=1e-6)
    assert [(camera.width, camera.height, camera.fx, camera.fy) for camera in cameras] == [(400, 300, 350, 350)] * 3
    assert all(camera.photo is None for camera in cameras)
    # Photos, made smaller by half, are found by their names.
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (200, 150)).save(tmp_path / "images" / f"{index:05d}.png")
    cameras = read_cameras(path)
    assert [camera.photo for camera in cameras] == [tmp_path / "images" / f"{index:05d}.png" for index in range(3)]
    assert [(camera.width, camera.height, camera.fx, camera.cx) for camera in cameras] == [(200, 150, 175, 100)] * 3
    assert check_cameras(path, cameras, desk().gaussians) > 0.5
    write_ply(tmp_path / "s.ply", desk().gaussians)
    assert up_of(tmp_path / "s.ply", desk().gaussians, cameras, "auto") @ UP > 0.9


def test_the_frame_of_a_nerfstudio_run_is_gone_into(tmp_path: Path):
    """nerfstudio turns, moves and scales a data set, and its splats are in the frame that comes of it."""
    turn = Rotation.from_euler("xyz", [0.3, 0.2, 1.0]).as_matrix()
    applied = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0]])
    shift, scale = np.array([0.5, -1.0, 2.0]), 0.25
    saved = np.concatenate([turn, shift[:, None]], axis=1)
    full = saved @ np.concatenate([applied, [[0, 0, 0, 1]]])
    path = write_transforms(tmp_path / "transforms.json", applied_transform=applied.tolist())
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({"transform": full.tolist(), "scale": scale}))
    for camera, pose in zip(read_cameras(path), POSES, strict=True):
        assert np.allclose(camera.pose[:3, :3], turn @ pose[:3, :3])
        assert np.allclose(camera.pose[:3, 3], scale * (turn @ pose[:3, 3] + shift))


def test_what_are_no_cameras(tmp_path: Path):
    with pytest.raises(SA3DError, match="there are no cameras"):
        read_cameras(tmp_path / "absent.json")
    with pytest.raises(SA3DError, match="no COLMAP model"):
        read_cameras(tmp_path)
    path = tmp_path / "cameras.json"
    for content, sentence in (
        ("{", "cannot be read"),
        ("[]", "no cameras in"),
        ('[{"id": 1}]', "cannot be read"),
        ("{}", "neither"),
    ):
        path.write_text(content)
        with pytest.raises(SA3DError, match=sentence):
            read_cameras(path)
    write_inria(path)
    with pytest.raises(SA3DError, match="no folder of photos"):
        read_cameras(path, tmp_path / "photos")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (200, 200)).save(tmp_path / "images" / "00000.jpg")
    with pytest.raises(SA3DError, match="another shape"):
        read_cameras(path)


def test_cameras_of_another_frame_are_refused(tmp_path: Path):
    cameras = read_cameras(write_inria(tmp_path / "cameras.json"))
    gaussians = desk().gaussians
    gaussians.means += 100
    with pytest.raises(SA3DError, match="of another frame"):
        check_cameras(tmp_path / "cameras.json", cameras, gaussians)


def test_up_is_what_the_file_says_or_what_splats_lie_across(tmp_path: Path):
    path = tmp_path / "s.ply"
    rng = np.random.default_rng(0)
    for axis, direction in ((1, [0, -1, 0]), (2, [0, 0, 1])):
        points = rng.uniform(-1, 1, (4000, 3))
        points[:, axis] *= 0.01
        floor = flat_gaussians(points, np.tile(np.eye(3)[axis], (4000, 1)), 0.03, 0, rng)
        write_ply(path, floor)
        assert up_of(path, floor, [], "auto").tolist() == direction
        assert up_of(path, floor, [], "-x").tolist() == [-1, 0, 0]
        write_ply(path, floor, comments=["Vertical Axis: z"])
        assert up_of(path, floor, [], "auto").tolist() == [0, 0, 1]
