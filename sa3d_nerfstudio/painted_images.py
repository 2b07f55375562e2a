"""Images that were painted over others: masks and scribbles."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.segmentation.scribbles import points_of_stroke

MAX_STRETCH = 0.1
"""How much wider or narrower than its image a mask may be: a tenth, for images that were cropped when undistorted."""


def read_mask(path: Path, height: int, width: int) -> NDArray[np.bool_]:
    """A mask image at the size of the image it belongs to (nearest pixel); white is the object.

    Raises:
        SA3DError: The file is no image, has another shape, or nothing in it is white.
    """
    pixels = np.asarray(_fitted(path, "L", height, width))
    mask = pixels > (127 if pixels.max() > 1 else 0)
    if not mask.any():
        raise SA3DError(f"the mask {path} is empty: paint the object white.")
    return mask


def read_scribble(path: Path, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points on and beside the object, from an image with brush strokes: white or green, and red.

    Raises:
        SA3DError: The file is no image, has another shape, or there is no stroke on the object.
    """
    pixels = np.asarray(_fitted(path, "RGBA", height, width)).astype(int)
    red, green, _, alpha = np.moveaxis(pixels, -1, 0)
    painted = alpha > 127
    on, beside = painted & (green > 127), painted & (red > 127) & (green <= 127)
    if not on.any():
        raise SA3DError(f"the scribble {path} has no stroke on the object: paint one in white or green.")
    return points_of_stroke(on, positive=True), points_of_stroke(beside, positive=False)


def _fitted(path: Path, mode: str, height: int, width: int) -> Image.Image:
    """An image that was painted over another, at the size of that.

    Raises:
        SA3DError: It is no image, or cannot have been painted over that one.
    """
    image = open_image(path)
    stretched = (image.width / image.height) / (width / height)
    # The sides of a small copy are rounded to pixels.
    rounding = 1 / min(image.width, image.height)
    if abs(math.log(stretched)) > MAX_STRETCH + rounding:
        raise SA3DError(
            f"{path} is {image.width} x {image.height} pixels, and so no copy of the image of {width} x {height} "
            "at any size: paint it over that image."
        )
    return image.convert(mode).resize((width, height), Image.Resampling.NEAREST)


def open_image(path: Path) -> Image.Image:
    """Read an image file.

    Raises:
        SA3DError: It is not there, or no image.
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
