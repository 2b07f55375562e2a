"""Prompts that are images: masks, scribbles, and the points drawn from scribbles."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from skimage.morphology import skeletonize

from sa3d_nerfstudio.errors import SA3DError, one_line


def read_mask(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """Read a mask image, resized to the image that it belongs to (nearest pixel); white is the object.

    Raises:
        SA3DError: The file is not an image, has another aspect ratio, or has no white pixel.
    """
    mask = white_pixels(_fitted(path, "L", height, width))
    if not mask.any():
        raise SA3DError(f"the mask {path} is empty: paint the object white.")
    return mask


def read_scribble(path: Path, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Read an image with brush strokes, and draw points on the object (white or green) and beside it (red).

    Raises:
        SA3DError: The file is not an image, has another aspect ratio, or has no stroke on the object.
    """
    pixels = np.asarray(_fitted(path, "RGBA", height, width)).astype(int)
    red, green, _, alpha = np.moveaxis(pixels, -1, 0)
    painted = alpha > 127
    on, beside = painted & (green > 127), painted & (red > 127) & (green <= 127)
    if not on.any():
        raise SA3DError(f"the scribble {path} has no stroke on the object: paint one in white or green.")
    return points_of_stroke(on, positive=True), points_of_stroke(beside, positive=False)


def _fitted(path: Path, mode: str, height: int, width: int) -> Image.Image:
    """Read an image that was painted over another, resized to that image.

    Raises:
        SA3DError: The file is not an image, or its aspect ratio is not that of the other image.
    """
    image = open_image(path)
    stretched = (image.width / image.height) / (width / height)
    # The sides of a small copy are rounded to pixels.
    rounding = 1 / min(image.width, image.height)
    # Tolerance of a tenth, for images that were cropped when undistorted.
    if abs(math.log(stretched)) > 0.1 + rounding:
        raise SA3DError(
            f"{path} is {image.width} x {image.height} pixels, and so no copy of the image of {width} x {height} "
            "at any size: paint it over that image."
        )
    return image.convert(mode).resize((width, height), Image.Resampling.NEAREST)


def white_pixels(image: Image.Image) -> NDArray[np.bool_]:
    """A mask [height, width]: pixels brighter than half of the range, or above 0 in an image of 0 and 1 only."""
    pixels = np.asarray(image.convert("L"))
    return pixels > (127 if pixels.max() > 1 else 0)


def open_image(path: Path) -> Image.Image:
    """Read an image file.

    Raises:
        SA3DError: The file is missing, or not an image.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise SA3DError(f"there is no image {path}: check the path.") from None
    except IsADirectoryError:
        raise SA3DError(f"{path} is a folder: name an image in it.") from None
    # Pillow's readers raise these for damaged files.
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SA3DError(f"{path} cannot be read as an image ({one_line(error)}): save it again as PNG.") from error
    return image


POSITIVE_SHARE = 0.02
NEGATIVE_SHARE = 0.005
"""Shares of a skeleton's pixels that are drawn as points, on the object and beside it: those of SA3D's code for NVOS
(Ren et al., CVPR 2022)."""
SEED = 777
"""Seed of the generator that draws them, as in that code."""


def draw_polyline(points: object, height: int, width: int) -> NDArray[np.bool_]:
    """Draw a polyline one pixel wide, as a mask.

    Args:
        points: (x, y) pixel indices from the top left, array-like of shape [num, 2].
        height: Height of the image.
        width: Width of the image.
    """
    canvas = np.zeros((height, width), np.uint8)
    vertices = np.asarray(points, dtype=np.float64).reshape(-1, 1, 2).round().astype(np.int32)
    return cv2.polylines(canvas, [vertices], isClosed=False, color=(1,)) > 0


def points_of_stroke(stroke: NDArray[np.bool_], positive: bool, seed: int = SEED) -> NDArray[np.float32]:
    """Draw points from the skeleton of a stroke: a fixed share of its pixels, at least one, the same each time.

    Args:
        stroke: Painted pixels, [height, width].
        positive: Whether the stroke lies on the object; a smaller share is drawn from strokes beside it.
        seed: Seed of the random generator.

    Returns:
        (x, y) of each point, [num, 2]; none for an empty stroke.
    """
    y, x = np.nonzero(skeletonize(stroke)) if stroke.any() else (np.zeros(0), np.zeros(0))
    if len(x) == 0:
        # The skeleton of a single dot is empty in some versions of scikit-image.
        y, x = np.nonzero(stroke)
    share = POSITIVE_SHARE if positive else NEGATIVE_SHARE
    generator = np.random.default_rng(seed)
    keep = generator.random(len(x)) < share
    if len(x) and not keep.any():
        keep[len(x) // 2] = True
    return np.stack([x[keep], y[keep]], axis=-1).astype(np.float32)
