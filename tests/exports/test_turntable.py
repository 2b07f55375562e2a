"""A camera that goes round an object keeps it in the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nerfstudio.cameras.camera_paths import get_path_from_json

from sa3d_nerfstudio.exports.boxes import Box, box_around
from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.exports.turntable import camera_path, orbit


def turned(yaw: float) -> np.ndarray:
    return np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1.0]])


def cameras_around(radius: float, height: float) -> torch.Tensor:
    """Poses that look at the origin, z up."""
    poses = []
    for angle in torch.linspace(0, 4, 7).double():
        position = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.tensor(height).double()])
        back = position / position.norm()
        right = torch.linalg.cross(torch.tensor([0.0, 0, 1]).double(), back)
        right = right / right.norm()
        poses.append(torch.stack([right, torch.linalg.cross(back, right), back, position], dim=-1))
    return torch.stack(poses).float()


@pytest.mark.parametrize("size", [(200, 200), (300, 100), (100, 300)])
def test_the_box_fills_the_image_and_stays_inside(size: tuple[int, int]):
    box = Box(np.array([0.3, -0.2, 0.1]), turned(0.4), np.array([0.4, 0.1, 0.2]))
    poses = orbit([box], cameras_around(3, 2), 12, None)
    cameras = get_path_from_json(camera_path(poses, *size, 24))
    largest = 0.0
    for index in range(12):
        pose = cameras.camera_to_worlds[index].double()
        corners = (torch.from_numpy(box.corners) - pose[:, 3]) @ pose[:, :3]
        assert (corners[:, 2] < 0).all()
        pixels = corners[:, :2] / -corners[:, 2:] * float(cameras.fx[index])
        extent = pixels.abs().amax(0) / torch.tensor([size[0] / 2, size[1] / 2])
        assert float(extent.max()) < 1
        largest = max(largest, float((pixels.abs().amax(0) / (min(size) / 2)).max()))
    assert largest > 0.85


def test_the_camera_is_upright_and_as_high_as_the_others():
    box = Box(np.zeros(3), np.eye(3), np.ones(3))
    poses = orbit([box], cameras_around(3, 3), 8, None)
    assert torch.linalg.det(poses[:, :3, :3]).allclose(torch.ones(8).double())
    assert (poses[:, 2, 1] > 0.5).all()
    assert poses[:, 2, 0].abs().max() < 1e-6
    directions = torch.nn.functional.normalize(poses[:, :3, 3], dim=-1)
    assert abs(float(torch.rad2deg(directions[0, 2].asin())) - 45) < 5
    level = orbit([box], cameras_around(3, 3), 8, 0.0)
    assert level[:, 2, 3].abs().max() < 0.3


def test_a_box_is_found_again_however_it_is_turned():
    rng = np.random.default_rng(0)
    for yaw in (0.0, 0.5, -1.2, 1.5):
        inside = rng.uniform(-0.5, 0.5, (4000, 3)) * [0.4, 0.2, 0.7] @ turned(yaw).T + [1, 2, 3]
        for tilted in (False, True):
            box = box_around(inside, tilted=tilted)
            assert np.allclose(np.sort(box.scale), [0.2, 0.4, 0.7], atol=0.03)
            assert np.allclose(box.center, [1, 2, 3], atol=0.02)
            local = (inside - box.center) @ box.rotation
            assert (np.abs(local) <= box.scale / 2 + 1e-6).all()
            assert np.isclose(np.linalg.det(box.rotation), 1)
        assert np.allclose(box_around(inside, pad=0.1).scale, box_around(inside).scale + 0.2)


def test_points_in_a_plane_have_a_box_too():
    flat = np.random.default_rng(0).uniform(-1, 1, (100, 3)) * [1, 1, 0]
    for tilted in (False, True):
        assert np.allclose(np.sort(box_around(flat, 0.01, tilted).scale), [0.02, 2, 2], atol=0.1)


def test_the_frame_of_the_data_set_is_where_the_data_came_from():
    rotation = torch.from_numpy(turned(0.7)).float()
    transform = torch.cat([rotation, torch.tensor([[0.1], [0.2], [0.3]])], dim=-1)
    world = torch.rand(5, 3)
    nerfstudio = (world @ rotation.T + transform[:, 3]) * 2.5
    frame = Frame(transform, 2.5, True)
    assert torch.allclose(frame.points(nerfstudio), world, atol=1e-5)
    assert torch.allclose(frame.directions(world @ rotation.T), world, atol=1e-5)
    box = box_around(nerfstudio.numpy()).moved(frame)
    assert (np.abs((world.numpy() - box.center) @ box.rotation) <= box.scale / 2 + 1e-4).all()
    assert torch.equal(Frame(transform, 2.5, False).points(nerfstudio), nerfstudio)
