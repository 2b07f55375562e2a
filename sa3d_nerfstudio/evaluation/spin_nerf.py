"""SPIn-NeRF's multi-view segmentation: prompted by the true mask of one image, scored in all (arXiv 2211.12254).

The data set ("Multiview-Segmentation-Data") has one folder per scene with ``NAME.png`` for each annotated image;
``NAME_cutout.png``, ``NAME_pseudo.png`` and ``annotations.json`` are not used. The images come with other data sets:
LLFF, nerf_real_360, Tanks and Temples, nerf-supervision and lego_real_night_radial.

As SA3D's authors describe their evaluation (github.com/Jumpat/SegmentAnythingin3D, issues 34 and 78): the reference is
the first of the sorted images, all images are segmented, and all that are annotated are scored, the reference included.
Other evaluations leave the reference out; both scores are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.task import Target, Task, chosen_scenes, images_in
from sa3d_nerfstudio.prompts.prompt import Prompt

FOLDERS = {
    "orchids": "orchids (llff)",
    "leaves": "leaves (llff)",
    "fern": "fern (llff)",
    "room": "room (llff)",
    "horns": "horns (llff)",
    "fortress": "fortress (llff)",
    "fork": "fork (nerf_supervision)",
    "pinecone": "pinecone (nerf_real_360)",
    "truck": "Truck (Tanks & Temples)",
    "lego": "lego_real_night_radial",
}
"""The ten scenes of the published tables, and the published names of their folders."""
SCENES = tuple(FOLDERS)
NUM_IMAGES = {"orchids": 25, "leaves": 26, "fern": 20, "fortress": 42}
"""Number of images of each scene whose annotations are named imageNNN, by position among all images."""
RESIZED = {"lego": (768, 1020)}
"""Height and width of the images, to which a scene's masks are brought first, as in SA3D's loader; by nearest pixel."""
RULES = (
    "prompt: the true mask of the reference, the first of the sorted annotated images",
    "scored: all annotated images at the size of their masks; mean over the images of a scene, then over scenes; "
    "with the reference, as SA3D does, and without it",
    "masks of lego are brought to 1020 x 768 pixels first",
)


def spin_nerf_tasks(data: Path, scenes: Sequence[str]) -> list[Task]:
    """Read the tasks from the data set's folder.

    Args:
        data: Folder with one folder per scene, under its published name or the scene's name.
        scenes: Some of :data:`SCENES`; all if empty.

    Raises:
        SA3DError: A scene is unknown, or a file is missing or damaged.
    """
    return [_task(data, scene) for scene in chosen_scenes(scenes, SCENES)]


def _task(data: Path, scene: str) -> Task:
    folder = next((data / name for name in (FOLDERS[scene], scene) if (data / name).is_dir()), None)
    if folder is None:
        raise SA3DError(
            f"there is neither {FOLDERS[scene]!r} nor {scene!r} in {data}: complete the data set, "
            "or leave the scene out with --scenes."
        )
    masks = [
        path
        for path in images_in(folder)
        if path.suffix.lower() == ".png" and not path.stem.endswith(("_cutout", "_pseudo"))
    ]
    if not masks:
        raise SA3DError(f"there is no annotation (*.png) in {folder}: complete the data set, or choose other --scenes.")
    targets = [Target(path.stem, path, RESIZED.get(scene)) for path in masks]
    prompted = targets[0].mask()
    if not prompted.any():
        raise SA3DError(f"the reference mask {masks[0]} is empty: download the data set again.")
    height, width = prompted.shape
    names = (scene, FOLDERS[scene], FOLDERS[scene].split(" (")[0], f"{scene}_undistort")
    prompt = Prompt(height, width, mask=torch.from_numpy(prompted))
    return Task(scene, names, targets[0].name, prompt, targets, NUM_IMAGES.get(scene))
