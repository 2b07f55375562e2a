"""Rays of windows: equal to nerfstudio's, whether picked from those of the lens or generated for the window."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from sa3d_nerfstudio.models.rays import camera_rays
from sa3d_nerfstudio.traces.window import Window
from sa3d_nerfstudio.views import window_rays
from sa3d_nerfstudio.views.window_rays import WindowRays

HEIGHT, WIDTH = 40, 56
DISTORTION = torch.tensor([[0.1, 0.02, 0.0, 0.0, 0.01, 0.0]])
WINDOW = Window.whole((HEIGHT, WIDTH), WIDTH, 1.0).snapped((8, 16, 30, 50))


def cameras(kind: CameraType = CameraType.PERSPECTIVE, num: int = 6, distorted: bool = False) -> Cameras:
    """Cameras of one lens, except the last two, which have other lenses."""
    poses = torch.eye(4)[None, :3].repeat(num, 1, 1)
    chance = torch.Generator().manual_seed(0)
    poses[:, :, :3] = torch.linalg.qr(torch.randn(num, 3, 3, generator=chance))[0]
    # As far from rotations as the poses of real photos are in single precision.
    poses[:, :, :3] += 1e-6 * torch.randn(num, 3, 3, generator=chance)
    poses[:, :, 3] = torch.randn(num, 3, generator=chance)
    focal = torch.full((num, 1), 50.0)
    focal[-1], focal[-2] = 60.0, 70.0
    distortion = DISTORTION.repeat(num, 1) if distorted else None
    return Cameras(
        poses, focal, focal, WIDTH / 2 + 0.7, HEIGHT / 2, WIDTH, HEIGHT, distortion_params=distortion, camera_type=kind
    )


@pytest.mark.parametrize("distorted", [False, True])
@pytest.mark.parametrize("kind", [CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_they_are_those_that_nerfstudio_makes(kind: CameraType, distorted: bool):
    all_cameras = cameras(kind, distorted=distorted)
    rays, made = WindowRays(all_cameras), []
    with mock.patch.object(window_rays, "camera_rays", lambda *args, **kw: made.append(1) or camera_rays(*args, **kw)):
        for view in range(len(all_cameras)):
            camera = all_cameras[view : view + 1]
            actual = rays.of(view, camera, WINDOW, torch.device("cpu"))
            expected = camera_rays(camera, pixels=WINDOW.pixels())
            all_rays = slice(None)
            assert torch.allclose(actual.directions_of(all_rays), expected.directions_of(all_rays), atol=1e-5)
            assert torch.equal(actual.origins_of(all_rays), expected.origins_of(all_rays))
            assert not actual.shared and actual.num_bytes == actual.local.numel() * 4
    # Once for the lens of four views and for each view with another lens, or for each view of a panorama.
    assert len(made) == (6 if kind is CameraType.EQUIRECTANGULAR else 3)


def test_what_is_no_pose_and_what_is_large_has_rays_of_its_own(monkeypatch: pytest.MonkeyPatch):
    all_cameras = cameras()
    all_cameras.camera_to_worlds[2, :, :3] *= 1.5
    rays = WindowRays(all_cameras)
    for view in (0, 2):
        camera = all_cameras[view : view + 1]
        actual = rays.of(view, camera, WINDOW, torch.device("cpu"))
        expected = camera_rays(camera, pixels=WINDOW.pixels())
        assert torch.allclose(actual.directions_of(slice(None)), expected.directions_of(slice(None)), atol=1e-5)
    monkeypatch.setattr(window_rays, "MOST_PIXELS", HEIGHT * WIDTH - 1)
    assert WindowRays(all_cameras)._of_lens(0, all_cameras[:1], torch.device("cpu")) is None
