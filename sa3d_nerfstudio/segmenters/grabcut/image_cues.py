"""Cues of an image that depend on no prompt: edges, and codes of colour and depth that distinguish regions."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int

NUM_COLORS = 32
"""Number of typical colours that an image is reduced to."""
COLOR_KINSHIP = 6.0
"""Lab distance at which two colours still partly count as each other, because of noise, shading and blur."""
DEPTH_BIN = 0.04
"""Width of a depth bin: 4 % of the distance."""
MAX_DEPTH_BINS = 96
MIN_CONTRAST = 3.0
"""Lower bound on the gradient of an image's strongest edges, in Lab units per pixel."""
CREASE = 0.02
"""Curvature of inverse depth, per pixel and relative to the inverse depth, that counts as a full edge."""

Map = Float[np.ndarray, "height width"]


@dataclass
class Codes:
    """A property of the pixels, quantised to n codes."""

    index: Int[np.ndarray, "height width"]
    """The code of each pixel."""
    kinship: Float[np.ndarray, "n n"]
    """Weight with which each code counts as each other."""

    def histogram(self, weight: Map) -> Float[np.ndarray, " n"]:
        """Weighted distribution of the codes; sums to 1."""
        counts = self.kinship @ np.bincount(self.index.ravel(), weight.ravel(), minlength=len(self.kinship))
        return counts / max(counts.sum(), 1e-12)


@dataclass
class Cues:
    """Cues of an image at one size."""

    edges: Map
    """Strength of edges; around 1 for strong ones."""
    codes: list[Codes]
    """Colour, and depth where it is known."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return self.edges.shape[0], self.edges.shape[1]


def see(rgb: Float[np.ndarray, "height width 3"], depth: Map | None) -> Cues:
    """Compute the cues of an image.

    Args:
        rgb: Colours in [0, 1].
        depth: Distance along each ray, if it is known; infinite, NaN or 0 for rays that hit nothing.
    """
    lab = cv2.cvtColor(np.ascontiguousarray(rgb, dtype=np.float32), cv2.COLOR_RGB2LAB)
    lab = cv2.bilateralFilter(lab, 5, 10, 2)
    edges, codes = color_edges(lab), [color_codes(lab)]
    if depth is not None:
        inverse = cv2.medianBlur(inverse_depth(depth), 3)
        edges = edges + depth_edges(inverse)
        codes.append(depth_codes(inverse))
    return Cues(edges, codes)


def inverse_depth(depth: Map) -> Map:
    """One over the distance. Rays that hit nothing get a distance behind all others."""
    valid = np.isfinite(depth) & (depth > 0)
    behind = 2 * depth[valid].max() if valid.any() else 1.0
    return (1 / np.where(valid, depth, behind)).astype(np.float32)


def color_edges(lab: Float[np.ndarray, "height width 3"]) -> Map:
    """Gradient of the colour, relative to the strongest in the image; at most 1.5."""
    # Scharr's kernel sums to 32 on a unit ramp.
    x, y = (cv2.Scharr(lab, cv2.CV_32F, *order) / 32 for order in ((1, 0), (0, 1)))
    gradient = np.sqrt((x * x + y * y).sum(axis=2))
    return np.minimum(gradient / max(float(np.percentile(gradient, 95)), MIN_CONTRAST), 1.5)


def depth_edges(inverse: Map) -> Map:
    """Edges where one surface occludes another, or stands on it; at most 1.5.

    Inverse depth is linear in the pixel coordinates over any plane, so its second derivative vanishes on planes. It is
    positive just outside an occluding border and in a concave crease, as where an object meets the table, and negative
    on convex edges, which belong to the object itself.
    """
    smooth = cv2.GaussianBlur(inverse, (0, 0), 1.0)
    xx, yy, xy = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3) / 4 for order in ((2, 0), (0, 2), (1, 1)))
    largest = (xx + yy) / 2 + np.sqrt(((xx - yy) / 2) ** 2 + xy * xy)
    return np.minimum(np.maximum(largest, 0) / np.maximum(smooth, 1e-9) / CREASE, 1.5)


def color_codes(lab: Float[np.ndarray, "height width 3"]) -> Codes:
    """Codes of the image's typical colours, by k-means with a fixed seed."""
    pixels = lab.reshape(-1, 3)
    sample = pixels[:: max(1, len(pixels) // 4000)]
    # At least two rows: OpenCV takes a single row for a column.
    sample = np.resize(sample, (max(2, len(sample)), 3))
    number = min(NUM_COLORS, len(sample))
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 10, 0.5)
    _, _, centers = cv2.kmeans(sample, number, np.empty(0), criteria, 1, cv2.KMEANS_PP_CENTERS)
    # |p - c|^2 without its |p|^2, which every c shares.
    index = ((centers * centers).sum(axis=1) - 2 * pixels @ centers.T).argmin(axis=1).reshape(lab.shape[:2])
    squares = ((centers[:, None] - centers[None]) ** 2).sum(axis=2)
    return Codes(index, np.exp(-squares / (2 * COLOR_KINSHIP**2)))


def depth_codes(inverse: Map) -> Codes:
    """Codes of depth in logarithmic bins; neighbouring bins are kin."""
    log_depth = -np.log(inverse)
    near = float(np.percentile(log_depth, 0.5))
    index = np.clip(((log_depth - near) / DEPTH_BIN).astype(int), 0, MAX_DEPTH_BINS - 1)
    difference = np.abs(np.arange(MAX_DEPTH_BINS)[:, None] - np.arange(MAX_DEPTH_BINS)[None])
    return Codes(index, np.where(difference == 0, 0.5, np.where(difference == 1, 0.25, 0.0)))
