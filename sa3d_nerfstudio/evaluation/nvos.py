"""NVOS: scribbles on one image, scored in one other image (Ren et al., CVPR 2022, jason718.github.io/nvos).

The data set's folder holds, for each scene, ``reference_image/SCENE/NAME.*``, ``scribbles/SCENE/pos_*`` and ``neg_*``,
and ``masks/SCENE/NAME_mask.png``. Its images are those of LLFF without lens distortion.

The prompt is that of SA3D's loader: both scribbles are thinned to a width of one pixel, and each remaining pixel is
kept with a fixed probability. The loader draws from numpy's global generator, so that its points depend on earlier
draws; here they depend on the seed alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.task import Target, Task, chosen_scenes, images_in, only, read_stroke
from sa3d_nerfstudio.prompts.images import NEGATIVE_SHARE, POSITIVE_SHARE, points_of_stroke
from sa3d_nerfstudio.prompts.prompt import Prompt

SCENES = ("fern", "flower", "fortress", "horns_center", "horns_left", "leaves", "orchids", "trex")
"""The eight tasks of the published tables; two of them are in the same scene."""
RULES = (
    f"prompt: the skeleton of the scribbles, each positive pixel kept with p = {POSITIVE_SHARE}, each negative one "
    f"with p = {NEGATIVE_SHARE}, at least one of each",
    "scored: the one target image of each scene, at the size of its mask",
)


def nvos_tasks(data: Path, scenes: Sequence[str], seed: int) -> list[Task]:
    """Read the tasks from the data set's folder.

    Args:
        data: The folder with masks, reference_image and scribbles.
        scenes: Some of :data:`SCENES`; all if empty.
        seed: Seed of the generator that draws the prompts' points from the scribbles.

    Raises:
        SA3DError: A scene is unknown, or a file is missing or damaged.
    """
    return [_task(data, scene, seed) for scene in chosen_scenes(scenes, SCENES)]


def _task(data: Path, scene: str, seed: int) -> Task:
    masks, references, scribbles = (data / folder / scene for folder in ("masks", "reference_image", "scribbles"))
    truth = only((path for path in images_in(masks) if path.stem.endswith("_mask")), "*_mask.png", masks)
    reference = only(images_in(references), "reference image", references)
    strokes = images_in(scribbles)
    foreground, background = (
        read_stroke(only((path for path in strokes if path.stem.startswith(prefix)), f"{prefix}*.png", scribbles))
        for prefix in ("pos", "neg")
    )
    if foreground.shape != background.shape:
        raise SA3DError(
            f"the scribbles in {scribbles} differ in size ({_size(foreground.shape)} and {_size(background.shape)}): "
            "download the data set again."
        )
    height, width = foreground.shape
    positive, negative = (
        points_of_stroke(foreground, positive=True, seed=seed),
        points_of_stroke(background, False, seed),
    )
    prompt = Prompt.from_points(height, width, positive, negative)
    base = scene.split("_")[0]
    return Task(
        scene,
        (scene, base, f"{scene}_undistort", f"{base}_undistort"),
        reference.stem,
        prompt,
        [Target(truth.stem.removesuffix("_mask"), truth)],
    )


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
