"""2D accuracy of a segmenter on the shared scenes, without lifting: one row per object.

    python benchmarks/segmenters.py ../shared/scenes --segmenter grabcut [--renders FOLDER]

Each object is prompted in its reference view (``points`` and ``negative_points`` of ``prompts.json``) and in other
views (the most interior pixel of the true mask alone). ``--renders`` names a folder of ``SCENE_STEM.npz`` files with
``rgb`` [height, width, 3] and ``depth`` [height, width] as a radiance field renders them. These images then replace the
photos, and views without a file are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from sa3d_nerfstudio.prompts.prompt import CANDIDATES, Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.oracle import read_ids, resize_nearest
from sa3d_nerfstudio.segmenters.registry import make_segmenter

KINDS = ("points", "point", "box", "other", "prior")
"""Kinds of prompts: all points, the first point or the box in the reference view; one point without and with a prior
in other views."""
MIN_PIXELS = 0.001
"""Share of a view above which an object is prompted in it, as in the scenes' score.py."""


@dataclass
class Question:
    """One prompt for an object in one view, with its true mask."""

    scene: str
    name: str
    kind: str
    image: SegmenterImage
    prompt: Prompt
    truth: np.ndarray


def load_image(scene: Path, stem: str, renders: Path | None) -> SegmenterImage | None:
    """Photo of a view, or its render if ``renders`` is given; None if that folder lacks the view."""
    if renders is None:
        rgb = cv2.cvtColor(cv2.imread(str(scene / "images" / f"{stem}.jpg")), cv2.COLOR_BGR2RGB)
        return SegmenterImage(torch.from_numpy(rgb).float() / 255, f"{stem}.jpg")
    path = renders / f"{scene.name}_{stem}.npz"
    if not path.exists():
        return None
    with np.load(path) as render:
        return SegmenterImage(torch.from_numpy(render["rgb"]), f"{stem}.jpg", torch.from_numpy(render["depth"]))


def most_interior(mask: np.ndarray) -> tuple[int, int]:
    """Pixel (x, y) of a mask that is farthest from its outline."""
    distance = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(x), int(y)


def rendered_like(truth: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Prior like that of an unfinished mask field: soft at the rim, shifted, and unknown for a third of the object."""
    shift = generator.integers(-2, 3, 2)
    soft = cv2.GaussianBlur(np.roll(truth.astype(np.float32), tuple(shift), (0, 1)), (0, 0), max(truth.shape) / 160)
    y, x = np.nonzero(truth)
    angle = generator.uniform(0, 2 * np.pi)
    grid_y, grid_x = np.indices(truth.shape)
    far = np.quantile(x * np.cos(angle) + y * np.sin(angle), 2 / 3)
    soft[grid_x * np.cos(angle) + grid_y * np.sin(angle) > far] = np.nan
    return torch.from_numpy(soft)


def questions(scene: Path, renders: Path | None, every: int) -> Iterator[Question]:
    """All prompts of one scene; other views are every ``every``-th training view, or all with renders."""
    objects = json.loads((scene / "prompts.json").read_text())["objects"]
    train = json.loads((scene / "transforms.json").read_text())["train_filenames"]
    stems = [Path(name).stem for name in train]
    other_stems = stems[::every] if renders is None else stems
    generator = np.random.default_rng(0)
    for entry in objects:
        for stem in sorted({Path(entry["frame"]).stem, *other_stems}):
            image = load_image(scene, stem, renders)
            if image is None:
                continue
            ids = read_ids(scene / "instances" / f"{stem}.png")
            truth = resize_nearest(ids, image.height, image.width) == entry["id"]
            if truth.sum() <= MIN_PIXELS * truth.size:
                continue

            for kind, prompt in prompts(entry, stem, ids.shape, truth, generator):
                small = prompt.resized(image.height, image.width)
                yield Question(scene.name, entry["name"], kind, image, small, truth)


def prompts(
    entry: dict, stem: str, size: tuple[int, ...], truth: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[str, Prompt]]:
    """Prompts of one object in one view, by kind."""
    if stem == Path(entry["frame"]).stem:
        points, off = entry["points"], entry["negative_points"]
        yield "points", Prompt.from_points(size[0], size[1], points, off)
        yield "point", Prompt.from_points(size[0], size[1], points[:1])
        yield "box", Prompt.from_points(size[0], size[1], box=entry["box"])
    else:
        point = [most_interior(truth)]
        yield "other", Prompt.from_points(truth.shape[0], truth.shape[1], point)
        prior = rendered_like(truth, generator)
        yield "prior", Prompt.from_points(truth.shape[0], truth.shape[1], point, prior=prior)


def ious(answer: Candidates, truth: np.ndarray) -> np.ndarray:
    """IoU of each candidate with the true mask."""
    masks = answer.masks.cpu().numpy()
    return (masks & truth).sum((1, 2)) / np.maximum((masks | truth).sum((1, 2)), 1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path, help="folder that holds the scenes")
    parser.add_argument("--only", nargs="*", default=["desk", "toys", "shelf"], help="names of the scenes")
    parser.add_argument("--segmenter", default="grabcut")
    parser.add_argument("--sam-checkpoint", type=Path)
    parser.add_argument("--dense-prompts", action="store_true", help="show SAM the priors")
    parser.add_argument("--renders", type=Path, help="folder of rendered rgb and depth")
    parser.add_argument("--every", type=int, default=8, help="take every n-th training photograph as another view")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS, help="which prompts to ask")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()

    rows: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    spent = {"embed": 0.0, "predict": 0.0}
    answered = 0
    sized: dict[str, list[list[float]]] = {kind: [] for kind in args.kinds}
    for name in args.only:
        scene = args.scenes / name
        options = SegmenterOptions(
            device=args.device,
            sam_checkpoint=args.sam_checkpoint,
            sam_dense_prompts=args.dense_prompts,
            oracle_instances=scene / "instances",
        )
        segmenter = make_segmenter(args.segmenter, options)
        for question in questions(scene, args.renders, args.every):
            if question.kind not in args.kinds:
                continue
            start = time.perf_counter()
            embedding = segmenter.embed(question.image)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            spent["embed"] += time.perf_counter() - start
            start = time.perf_counter()
            answer = segmenter.predict(embedding, question.prompt)
            spent["predict"] += time.perf_counter() - start
            answered += 1
            candidate_ious = ious(answer, question.truth)
            kinds = rows.setdefault((question.scene, question.name), {kind: [] for kind in KINDS})
            kinds[question.kind].append((float(candidate_ious[answer.favourite]), float(candidate_ious.max())))
            sized[question.kind].append([float(candidate_ious[answer.of_size(size)]) for size in CANDIDATES])

    print("| scene | object | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS))
    for (scene_name, name), kinds in rows.items():
        cells = [_cell(kinds[kind]) for kind in KINDS]
        print(f"| {scene_name} | {name} | " + " | ".join(cells) + " |")
    cells = [_cell([pair for kinds in rows.values() for pair in _mean(kinds[kind])]) for kind in KINDS]
    print("| all | mean over objects | " + " | ".join(cells) + " |")
    print("\nBy the candidate that is taken, mean over all questions:\n")
    print("| candidate | " + " | ".join(args.kinds) + " |\n|---|" + "---|" * len(args.kinds))
    for index, size in enumerate(CANDIDATES):
        means = [np.mean([ious_of_one[index] for ious_of_one in sized[kind]]) for kind in args.kinds]
        print(f"| {size} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")
    print(
        f"\nIoU of the segmenter's own choice (of the best candidate). {answered} questions; seconds per image: "
        + ", ".join(f"{what} {seconds / answered:.3f}" for what, seconds in spent.items())
    )


def _mean(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Mean of the pairs, as a list of one; empty for no pairs."""
    return [(float(np.mean([a for a, _ in pairs])), float(np.mean([b for _, b in pairs])))] if pairs else []


def _cell(pairs: list[tuple[float, float]]) -> str:
    return f"{_mean(pairs)[0][0]:.2f} ({_mean(pairs)[0][1]:.2f})" if pairs else "-"


if __name__ == "__main__":
    main()
