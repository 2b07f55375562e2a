"""Quick pictures of Gaussians without a rasteriser of them: for the folder of a data set that has no photos."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians

SHRUNK = 4
"""Pictures are drawn so many times as small as they become."""
MANY = 150_000
"""No more Gaussians than so many are drawn."""
LARGEST = 4
"""Half of the side of the largest square, in pixels of what is drawn."""


class Preview:
    """Draws each Gaussian as a square of one colour, nearest last.

    Args:
        gaussians: The scene; those that can hardly be seen are left out.
    """

    def __init__(self, gaussians: Gaussians) -> None:
        rows = np.flatnonzero(gaussians.alphas > 0.2)
        share = 1.0
        if len(rows) > MANY:
            share = MANY / len(rows)
            rows = np.sort(np.random.default_rng(0).choice(rows, MANY, replace=False))
        self.means = gaussians.means[rows].astype(np.float64)
        # Those that are drawn cover for those that are not.
        self.sizes = np.exp(np.minimum(gaussians.scales[rows], 80).mean(axis=1)) / np.sqrt(share)
        self.colors = (255 * gaussians[rows].colors).round().astype(np.uint8)

    def draw(self, camera: SplatCamera) -> UInt8[ndarray, "height width 3"]:
        """The picture of a camera, at its full size, without lens distortion."""
        height, width = max(camera.height // SHRUNK, 1), max(camera.width // SHRUNK, 1)
        local = (self.means - camera.pose[:3, 3]) @ camera.pose[:3, :3]
        depth = np.negative(local[:, 2])
        rows = np.flatnonzero(depth > 1e-6)
        rows = rows[np.argsort(depth[rows])[::-1]]
        scale = width / camera.width / depth[rows]
        x = np.floor(camera.fx * local[rows, 0] * scale + camera.cx * width / camera.width)
        y = np.floor(-camera.fy * local[rows, 1] * scale + camera.cy * height / camera.height)
        half = np.clip(np.round(1.5 * self.sizes[rows] * camera.fx * scale), 0, LARGEST)
        near = (np.abs(x - width / 2) < width) & (np.abs(y - height / 2) < height)
        rows, x, y, half = rows[near], x[near].astype(int), y[near].astype(int), half[near].astype(int)
        # Square by square in the order of depth: of pixels that are written to twice, the last value stays.
        offsets = np.stack(np.meshgrid(*[np.arange(-LARGEST, LARGEST + 1)] * 2), axis=-1).reshape(-1, 2)
        covered = np.abs(offsets).max(axis=1)[None] <= half[:, None]
        which, offset = np.nonzero(covered)
        across, down = x[which] + offsets[offset, 0], y[which] + offsets[offset, 1]
        fits = (across >= 0) & (across < width) & (down >= 0) & (down < height)
        image = np.full((height, width, 3), 255, np.uint8)
        image[down[fits], across[fits]] = self.colors[rows[which[fits]]]
        return cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
