"""The rays of windows of views: those of a lens are computed once."""

from __future__ import annotations

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from sa3d_nerfstudio.models.rays import camera_rays
from sa3d_nerfstudio.traces.view_rays import ViewRays
from sa3d_nerfstudio.traces.window import Window

FEWEST_VIEWS = 4
"""Views that must have the same lens for the rays of all its pixels to be held."""
MOST_PIXELS = 1 << 22
"""Of the largest images of which they are held: 50 MB."""
ONE_ORIGIN = (CameraType.PERSPECTIVE.value, CameraType.FISHEYE.value)
"""Cameras whose rays begin in one place, and have the same directions in the camera's frame for the same lens."""


class WindowRays:
    """The rays of windows of views at one size.

    nerfstudio makes rays on the host here: it asks its cameras many things, each of which a GPU would have to be waited
    for. That takes some 30 ms for a window of 300 x 300 pixels on one core, in each view that is looked at; where views
    have the same lens, a window's rays are instead picked from those of all pixels of it, wherever the model is.

    Args:
        cameras: Of all views, of any size.
    """

    def __init__(self, cameras: Cameras) -> None:
        self._lens, self._num_views = _lenses(cameras)
        self._known: dict[int, ViewRays] = {}
        """Of lenses, those of all pixels, as one of the views has them."""

    def of(self, view: int, camera: Cameras, window: Window, device: torch.device) -> ViewRays:
        """The rays of a window's pixels, row by row.

        Args:
            view: Index of the view.
            camera: Of the view at this size, on the host.
            window: Of its image.
            device: Where the rays are wanted.
        """
        known = self._of_lens(view, camera, device)
        if known is None:
            rays = camera_rays(camera, pixels=window.pixels()).to(device)
            rays.shared = False
            return rays
        pose = camera.camera_to_worlds[0].to(known.local)
        return ViewRays(pose[None, :, 3], known.local[window.pixels(device).indices], pose[:, :3], shared=False)

    def _of_lens(self, view: int, camera: Cameras, device: torch.device) -> ViewRays | None:
        """The rays of all pixels of a view with the same lens; None where there are none to be shared."""
        lens, num_pixels = self._lens[view], int(camera.height) * int(camera.width)
        if self._num_views[lens] < FEWEST_VIEWS or num_pixels > MOST_PIXELS:
            return None
        # Rays that no rotation brings into the camera's frame are held in the world's.
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
    # Poses of real photos, in single precision, are off by a millionth.
    return torch.allclose(matrix @ matrix.T, torch.eye(3), atol=5e-6)


def _lenses(cameras: Cameras) -> tuple[list[int], list[int]]:
    """The number of each camera's lens, and for each lens how many cameras have it."""
    parts = [cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.height, cameras.width, cameras.camera_type]
    if cameras.distortion_params is not None:
        parts.append(cameras.distortion_params)
    rows = torch.cat([part.reshape(len(cameras), -1).double().cpu() for part in parts], dim=-1)
    _, lens, counts = rows.unique(dim=0, return_inverse=True, return_counts=True)
    return lens.tolist(), counts.tolist()
