"""One scene of a benchmark: the prompt in one image, and the images to score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.metrics import Mask
from sa3d_nerfstudio.prompts.images import open_image, white_pixels
from sa3d_nerfstudio.prompts.prompt import Prompt

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Target:
    """The true mask of one image."""

    name: str
    """The image's name without its suffix, as the annotation has it."""
    path: Path
    """The mask's file."""
    size: tuple[int, int] | None = None
    """Height and width to which the protocol brings the mask, by nearest pixel; None for the file's size."""

    def mask(self) -> Mask:
        """Read the true mask.

        Raises:
            SA3DError: The file is missing or not an image.
        """
        mask = white_pixels(open_image(self.path))
        return mask if self.size is None else resized(mask, *self.size)


@dataclass(frozen=True)
class Task:
    """One object to segment in one scene."""

    scene: str
    """Name in the published tables."""
    run_names: tuple[str, ...]
    """Possible names of the folder of the scene's trained runs."""
    reference: str
    """The prompted image's name without its suffix, as the annotation has it."""
    prompt: Prompt
    """The prompt, in pixels of the annotation."""
    targets: list[Target] = field(default_factory=list)
    """Images to score."""
    num_images: int | None = None
    """Number of images in the scene, where annotations are named by position among them ("image007")."""


def read_stroke(path: Path) -> Mask:
    """The painted pixels of a scribble: all that are not black.

    Raises:
        SA3DError: The file is missing, not an image, or all black.
    """
    pixels = np.asarray(open_image(path).convert("RGB")).any(axis=-1)
    if not pixels.any():
        raise SA3DError(f"the scribble {path} is all black: download the data set again.")
    return pixels


def resized(mask: Mask, height: int, width: int) -> Mask:
    """A mask at another size: each pixel takes the value of the pixel under its centre."""
    if mask.shape == (height, width):
        return mask
    image = Image.fromarray(mask.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image).astype(bool)


def images_in(folder: Path) -> list[Path]:
    """Images in a folder, sorted by name, without hidden files.

    Raises:
        SA3DError: There is no such folder.
    """
    if not folder.is_dir():
        raise SA3DError(f"there is no folder {folder}: complete the data set, or leave the scene out with --scenes.")
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def only(paths: Iterable[Path], what: str, folder: Path) -> Path:
    """The single path of an iterable, as the data set's layout requires.

    Raises:
        SA3DError: There is no path, or there are several.
    """
    matches = list(paths)
    if not matches:
        raise SA3DError(f"there is no {what} in {folder}: complete the data set, or leave the scene out with --scenes.")
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        raise SA3DError(f"{folder} has more than one {what} ({names}): keep the published one.")
    return matches[0]


def chosen_scenes(scenes: Sequence[str], published: Sequence[str]) -> list[str]:
    """The requested scenes, in the published order; all scenes if none is requested.

    Raises:
        SA3DError: There is no scene of that name.
    """
    for scene in scenes:
        if scene not in published:
            raise SA3DError(f"there is no scene {scene!r} in this benchmark: choose from {', '.join(published)}.")
    return [scene for scene in published if not scenes or scene in scenes]
