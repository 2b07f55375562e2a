"""Virtual cameras: what they see of scenes whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.occupancy import OccupancyGrid, dense_part
from sa3d_nerfstudio.splat_files.virtual_cameras import FEWEST, MAX_CAMERAS, look_at, place_cameras
from tests.splat_scenes import SCENES, flat_gaussians, single_object

UP = np.array([0.0, 0.0, 1.0])


@pytest.mark.parametrize("name", SCENES)
def test_nearly_all_splats_are_seen_by_several_cameras(name: str):
    scene = SCENES[name]()
    placed = place_cameras(scene.gaussians, UP)
    views = np.sum([scene.seen(camera) for camera in placed.cameras], axis=0)[scene.seeable()]
    assert (views > 0).mean() >= 0.99
    assert (views >= 3).mean() >= 0.95
    assert FEWEST <= len(placed.cameras) <= MAX_CAMERAS
    assert placed.inside == (name == "room")
    assert not any(scene.within_solid(camera.pose[:3, 3]) for camera in placed.cameras)
    # Upright, and named by number.
    assert all(camera.pose[:3, 1] @ UP > -1e-6 for camera in placed.cameras)
    assert [camera.name for camera in placed.cameras] == [f"{index:03d}" for index in range(len(placed.cameras))]


@pytest.mark.parametrize("up", [[0, -1.0, 0], [0.6, 0, 0.8]])
def test_all_is_seen_whichever_way_is_up(up: list[float]):
    scene = single_object()
    placed = place_cameras(scene.gaussians, np.array(up))
    views = np.sum([scene.seen(camera) for camera in placed.cameras], axis=0)[scene.seeable()]
    assert (views > 0).mean() >= 0.99
    assert all(camera.pose[:3, 1] @ np.array(up) > -1e-6 for camera in placed.cameras)


def test_neither_stray_splats_nor_a_distant_background_lead_the_cameras_away():
    scene = single_object()
    rng = np.random.default_rng(0)
    far = rng.normal(size=(len(scene.gaussians) // 2, 3))
    far *= rng.uniform(20, 60, (len(far), 1)) / np.linalg.norm(far, axis=1, keepdims=True)
    background = flat_gaussians(far, far / np.linalg.norm(far, axis=1, keepdims=True), 2.0, 1, rng)
    names = Gaussians.__dataclass_fields__
    both = Gaussians(*(np.concatenate([getattr(scene.gaussians, name), getattr(background, name)]) for name in names))
    assert dense_part(both).max() < len(scene.gaussians)
    placed = place_cameras(both, UP)
    assert not placed.inside
    assert max(np.linalg.norm(camera.pose[:3, 3]) for camera in placed.cameras) < 6


def test_a_wall_hides_what_is_behind_it():
    y, z = np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60))
    wall = np.stack([np.zeros(y.size), y.ravel(), z.ravel()], axis=1)
    posts = np.array([[x, y, 0.0] for x in (-1.0, 1.0) for y in np.linspace(-1, 1, 60)])
    points = np.concatenate([wall, posts])
    normals = np.tile([1.0, 0, 0], (len(points), 1))
    grid = OccupancyGrid(flat_gaussians(points, normals, 0.03, 0, np.random.default_rng(0)))
    seen = grid.visible(np.array([3.0, 0, 0]), np.array([[1.0, 0.5, 0], [0, 0.5, 0.5], [-1, 0.2, 0], [3.5, 0, 0]]))
    assert seen.tolist() == [True, True, False, True]
    assert grid.clearance(np.array([[0.5, 0, 0.5]]))[0] == pytest.approx(0.5, abs=2 * grid.cell)
    assert grid.clearance(np.array([[0.0, 0.3, 0.3]]))[0] <= grid.cell


def test_a_handful_of_splats_gets_cameras_too():
    scene = single_object().gaussians[:3]
    for gaussians in (scene, scene[:1], replace(scene, opacities=np.full(3, -9, np.float32))):
        placed = place_cameras(gaussians, UP)
        assert placed.cameras
        assert np.isfinite([camera.pose for camera in placed.cameras]).all()


def test_a_camera_may_look_straight_up():
    pose = look_at(np.zeros(3), UP, UP)
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3))
    assert np.allclose(pose[:3, 2], -UP)
