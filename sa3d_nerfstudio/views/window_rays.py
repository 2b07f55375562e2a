"""The rays of windows of views, picked from those of their lens, which are computed once."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from sa3d_nerfstudio.models.rays import camera_rays
from sa3d_nerfstudio.traces.view_rays import ViewRays
from sa3d_nerfstudio.traces.window import Window

FEWEST_VIEWS = 4
"""Smallest number of views with the same lens for which the rays of all its pixels are held."""
MOST_PIXELS = 1 << 22
"""Pixels of the largest images whose rays are held: 50 MB."""
ONE_ORIGIN = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)
"""Camera types whose rays have one origin, and the same directions in the camera's frame for the same lens."""


class WindowRays:
    """The rays of windows of views at one size.

    nerfstudio generates rays on the host here, since it reads many properties of its cameras, each of which would be a
    wait for a GPU. That takes some 30 ms per view for a window of 300 x 300 pixels on one core. Where views have the
    same lens, a window's rays are instead picked from those of all its pixels, on the model's device.

    Args:
        cameras: Cameras of all views, at any size.
    """

    def __init__(self, cameras: Cameras) -> None:
        self._lens, self._num_views = _lenses(cameras)
        self._known: dict[int, ViewRays] = {}
        """Rays of all pixels of each lens, by its number, from one of its views."""

    def of(self, view: int, camera: Cameras, window: Window, device: torch.device) -> ViewRays:
        """The rays of a window's pixels, row by row.

        Args:
            view: Index of the view.
            camera: Camera of the view at this size, on the host.
            window: Window of its image.
            device: Device of the rays.
        """
        lens_rays = self._of_lens(view, camera, device)
        if lens_rays is None:
            rays = camera_rays(camera, pixels=window.pixels()).to(device)
            rays.shared = False
            return rays
        pose = camera.camera_to_worlds[0].to(lens_rays.local)
        return ViewRays(pose[None, :, 3], lens_rays.local[window.pixels(device).indices], pose[:, :3], shared=False)

    def _of_lens(self, view: int, camera: Cameras, device: torch.device) -> ViewRays | None:
        """The rays of all pixels of a view with the same lens; None if views do not share them."""
        lens, num_pixels = self._lens[view], int(camera.height) * int(camera.width)
        if self._num_views[lens] < FEWEST_VIEWS or num_pixels > MOST_PIXELS:
            return None
        # Without a rotation, directions are held in the world's frame, where views do not share them.
        rotation = camera.camera_to_worlds[0, :, :3]
        if int(camera.camera_type) not in ONE_ORIGIN or not _is_rotation(rotation):
            return None
        if lens not in self._known:
            rays = camera_rays(camera)
            if not torch.equal(rays.rotation, rotation):
                return None
            self._known[lens] = rays.to(device)
        return self._known[lens]


def _is_rotation(matrix: torch.Tensor) -> bool:
    # Poses of real photos, in single precision, deviate from rotations by a millionth.
    return torch.allclose(matrix @ matrix.T, torch.eye(3), atol=5e-6)


def _lenses(cameras: Cameras) -> tuple[list[int], list[int]]:
    """The number of each camera's lens, and the number of cameras with each lens."""
    properties = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.height, cameras.width, cameras.camera_type]
    if cameras.distortion_params is not None:
        properties.append(cameras.distortion_params)
    rows = torch.cat([values.reshape(len(cameras), -1).double().cpu() for values in properties], dim=-1)
    _, lens, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return lens.tolist(), counts.tolist()
