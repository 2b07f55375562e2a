"""Quick pictures of Gaussians, drawn without a splat rasteriser, for data sets without photos."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians

SCALE = 4
"""Factor by which pictures are enlarged after drawing."""
MAX_GAUSSIANS = 150_000
"""Largest number of Gaussians drawn."""
MAX_HALF_SIZE = 4
"""Half of the side of the largest square, in pixels before the enlargement."""


class Preview:
    """Drawings of a scene: each Gaussian is a square of one colour, nearest last.

    Args:
        gaussians: The scene; nearly transparent ones are left out.
    """

    def __init__(self, gaussians: Gaussians) -> None:
        rows = np.flatnonzero(gaussians.alphas > 0.2)
        share = 1.0
        if len(rows) > MAX_GAUSSIANS:
            share = MAX_GAUSSIANS / len(rows)
            rows = np.sort(np.random.default_rng(0).choice(rows, MAX_GAUSSIANS, replace=False))
        self.means = gaussians.means[rows].astype(np.float64)
        # Larger squares make up for the Gaussians that are not drawn.
        self.sizes = np.exp(np.minimum(gaussians.scales[rows], 80).mean(axis=1)) / np.sqrt(share)
        self.colors = (255 * gaussians[rows].colors).round().astype(np.uint8)

    def draw(self, camera: SplatCamera) -> UInt8[ndarray, "height width 3"]:
        """Draw the picture of a camera, at its full size, without lens distortion."""
        height, width = max(camera.height // SCALE, 1), max(camera.width // SCALE, 1)
        local = (self.means - camera.pose[:3, 3]) @ camera.pose[:3, :3]
        depth = np.negative(local[:, 2])
        rows = np.flatnonzero(depth > 1e-6)
        rows = rows[np.argsort(depth[rows])[::-1]]
        scale = width / camera.width / depth[rows]
        x = np.floor(camera.fx * local[rows, 0] * scale + camera.cx * width / camera.width)
        y = np.floor(-camera.fy * local[rows, 1] * scale + camera.cy * height / camera.height)
        half = np.clip(np.round(1.5 * self.sizes[rows] * camera.fx * scale), 0, MAX_HALF_SIZE)
        near = (np.abs(x - width / 2) < width) & (np.abs(y - height / 2) < height)
        rows, x, y, half = rows[near], x[near].astype(int), y[near].astype(int), half[near].astype(int)
        # Square by square in the order of depth: pixels that are written to twice keep the last value.
        offsets = np.stack(np.meshgrid(*[np.arange(-MAX_HALF_SIZE, MAX_HALF_SIZE + 1)] * 2), axis=-1).reshape(-1, 2)
        covered = np.abs(offsets).max(axis=1)[None] <= half[:, None]
        square, offset = np.nonzero(covered)
        columns, lines = x[square] + offsets[offset, 0], y[square] + offsets[offset, 1]
        fits = (columns >= 0) & (columns < width) & (lines >= 0) & (lines < height)
        image = np.full((height, width, 3), 255, np.uint8)
        image[lines[fits], columns[fits]] = self.colors[rows[square[fits]]]
        return cv2.resize(image, (camera.width, camera.height), interpolation=cv2.INTER_LINEAR)
