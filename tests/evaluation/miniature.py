"""Data sets in the published layouts, as small as a test can bear: the demo's scene in their clothes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from sa3d_nerfstudio.evaluation.metrics import Mask
from sa3d_nerfstudio.prompts.images import draw_polyline

SCALE = 4
"""How much larger the annotations are than the scene's images."""


def write_mask(path: Path, mask: Mask) -> Path:
    """Write a mask as a PNG of 0 and 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def read(path: Path) -> Mask:
    """Read such a mask."""
    return np.asarray(Image.open(path)) == 255


def true_mask(scene: Path, frame: str, number: int) -> Mask:
    """An object's true mask in a frame, enlarged."""
    ids = np.asarray(Image.open(scene / "instances" / f"{frame}.png"))
    return (ids == number).repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def stroke(line: list[list[float]], height: int, width: int) -> Mask:
    """A brush stroke along a polyline in the scene's pixels, enlarged."""
    points = (np.asarray(line) + 0.5) * SCALE
    thin = draw_polyline(points, height * SCALE, width * SCALE).astype(np.uint8)
    return cv2.dilate(thin, np.ones((5, 5), np.uint8)) > 0


def write_nvos(folder: Path, name: str, scene: Path, prompt: dict[str, Any], target: str) -> Path:
    """A data set like NVOS with one scene.

    Args:
        folder: Where to put it.
        name: What the scene is called there.
        scene: The demo's scene.
        prompt: Its entry in prompts.json.
        target: The frame to score.
    """
    width, height = json.loads((scene / "prompts.json").read_text())["image_size"]
    write_mask(folder / "masks" / name / f"{target}_mask.png", true_mask(scene, target, prompt["id"]))
    reference = Path(prompt["frame"]).stem
    for part, frame in (("masks", target), ("reference_image", reference)):
        (folder / part / name).mkdir(parents=True, exist_ok=True)
        image = next((scene / "images").glob(f"{frame}.*"))
        Image.open(image).save(folder / part / name / f"{frame}.png")
    for kind, line in (("pos", prompt["scribble"]), ("neg", prompt["background_scribble"])):
        path = folder / "scribbles" / name / f"{kind}_0_{reference}.png"
        write_mask(path, stroke(line, height, width))
    write_mask(folder / "scribbles" / name / f"vis_0_{reference}.png", stroke(prompt["scribble"], height, width))
    return folder


def write_spin_nerf(folder: Path, name: str, scene: Path, number: int, frames: list[str]) -> Path:
    """A data set like SPIn-NeRF's with one scene.

    Args:
        folder: Where to put it.
        name: What the scene's folder is called there.
        scene: The demo's scene.
        number: The object's id.
        frames: Those that are annotated.
    """
    for frame in frames:
        mask = true_mask(scene, frame, number)
        for suffix, content in (("", mask), ("_cutout", ~mask), ("_pseudo", ~mask)):
            write_mask(folder / name / f"{frame}{suffix}.png", content)
    (folder / name / "annotations.json").write_text("{}")
    return folder


def link_run(folder: Path, scene: str, run: Path) -> Path:
    """A folder of runs in which a scene has one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / scene).symlink_to(run.parents[1], target_is_directory=True)
    return folder
