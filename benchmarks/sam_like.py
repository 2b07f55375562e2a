"""A segmenter that errs on true instance maps as Segment Anything does, and the accuracy of the loop with it.

    python -m benchmarks.sam_like --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu --seeds 3

SAM answers a click with a part, the object, or more than it; the answer depends on the positions of the points, and its
sharpness on the size of the input image. :class:`SamLike` does the same, and its random choices depend on nothing but
its seed and the view's name. Each object gets one click, in the view that prompts.json names; its masks are scored in
the test views at full size.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import tyro
from jaxtyping import Bool, Float
from rich.console import Console
from rich.table import Table

import sa3d_nerfstudio as sa3d
from benchmarks.scene import SceneUnderTest
from benchmarks.variants import VARIANTS, settings_of
from sa3d_nerfstudio.exports.frames import frame_of
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, check_prompt
from sa3d_nerfstudio.segmenters.oracle import BACKGROUND, IdMap, OracleSegmenter
from sa3d_nerfstudio.segmenters.proposals import grid_proposals

PART, OBJECT, WHOLE = range(3)
FAVOURITES = {"even": (0.34, 0.33, 0.33), "2:6:2": (0.2, 0.6, 0.2)}
"""Probabilities that part, object and whole are the favourite for one point."""
FITTING = 0.8
"""Probability that the answer to several points or a box is the level that fits them."""
NEAR_OUTLINE = 1.5
"""Distance from the outline, in pixels of the input, within which a point may fall on the neighbour."""
SLIP = 0.5
"""Probability that such a point falls on the neighbour."""
INPUT_SIDE = 1024
"""Longer side of SAM's input image, in pixels."""

SettingName = Literal["even", "2:6:2"]
UserView = Literal["right", "picked", "auto"]


@dataclass
class SamLikeEmbedding:
    """Id map of an image, and the halves of its objects, at the image's size."""

    name: str
    """Stem of the image."""
    ids: IdMap
    upper: dict[int, Bool[np.ndarray, "height width"]]
    """For each object, the pixels that show the upper half of its box, split along the longest side."""


class SamLike(OracleSegmenter):
    """Segmenter that answers with three masks of an instance, as SAM does.

    *Part* is the instance within the prompted half of its box, split along the longest side; *object* is the instance;
    *whole* is the instance with all that touch it in the image. One of them is the favourite, with the highest
    predicted IoU. For one point, it is drawn for the view; for several points, it is the smallest that contains all of
    them, and for a box the one that fills it best, or at random a neighbouring level. The single-mask answer is the
    favourite again, with a different outline.

    A point near the outline may fall on the neighbour. Outlines wobble by up to a pixel of the input image.

    Args:
        folder: Folder of the id maps.
        objects: For each id, the corners of the object's box in the data set's frame.
        surface: Function from the name of an image to the surface point of each pixel in that frame, at any size.
        favourites: Probabilities that part, object and whole are the favourite for one point.
        seed: Seed of the random choices, which depend on it and the views' names, not on the order of calls.
        sure: Fixed favourite level of some images, by their stems.
        stubborn: Whether the predicted IoUs keep to the level drawn for the view for any number of points; only the
            single-mask answer follows the points in that case.
    """

    input_side = INPUT_SIDE

    def __init__(
        self,
        folder: Path,
        objects: dict[int, tuple[Sequence[float], Sequence[float]]],
        surface: Callable[[str], Float[np.ndarray, "height width 3"]],
        favourites: Sequence[float] = FAVOURITES["even"],
        seed: int = 0,
        sure: dict[str, int] | None = None,
        stubborn: bool = False,
    ) -> None:
        super().__init__(folder)
        self.objects, self.surface, self.favourites = objects, surface, favourites
        self.seed, self.sure, self.stubborn = seed, sure or {}, stubborn
        self.asked: list[tuple[str, Prompt]] = []
        """Stem of the image and prompt of each prediction."""

    def embed(self, image: SegmenterImage) -> SamLikeEmbedding:  # type: ignore[override]
        """Id map at the image's size, and halves of all objects."""
        name = Path(image.name).stem
        ids = super().embed(image)
        points = self.surface(image.name)
        y0, x0, y1, x1 = image.window or (0.0, 0.0, 1.0, 1.0)
        rows = (y0 + (np.arange(image.height) + 0.5) * (y1 - y0) / image.height) * points.shape[0]
        columns = (x0 + (np.arange(image.width) + 0.5) * (x1 - x0) / image.width) * points.shape[1]
        rows, columns = rows.astype(int), columns.astype(int)
        points = points[rows[:, None], columns[None]]
        upper = {}
        for number in np.unique(ids).tolist():
            if number != BACKGROUND:
                low, high = (np.asarray(corner) for corner in self.objects[number])
                axis = int((high - low).argmax())
                upper[number] = points[..., axis] > (low[axis] + high[axis]) / 2
        return SamLikeEmbedding(name, ids, upper)

    def predict(self, embedding: SamLikeEmbedding, prompt: Prompt) -> Candidates:  # type: ignore[override]
        """Part, object and whole, with predicted IoUs; for several points or a box, the single-mask answer as well."""
        check_prompt(prompt, *embedding.ids.shape)
        self.asked.append((embedding.name, prompt))
        chance = self._chance(embedding)
        drawn = int(chance.choice(3, p=self.favourites))
        fits, step = chance.random() < FITTING, int(chance.choice([-1, 1]))
        scores = chance.uniform(0.6, 0.88, 3)
        best, single = chance.uniform(0.9, 0.97, 2)

        positive = self._placed(embedding, prompt.positive, 1)
        negative = self._placed(embedding, prompt.negative, 2)
        levels = self._levels(embedding, prompt, positive)
        sure = self.sure.get(embedding.name)
        several = len(positive) + len(negative) > 1 or prompt.box is not None
        fitting = _fitting(levels, positive, negative, prompt)
        if not fits:
            fitting = fitting + step if 0 <= fitting + step <= WHOLE else fitting - step
        answered = fitting if several else drawn
        favourite = drawn if self.stubborn else answered
        if sure is not None:
            answered = favourite = sure
        scores[favourite] = best
        masks = [self._wobbled(embedding, levels[level], level) for level in (PART, OBJECT, WHOLE)]
        if not several:
            return Candidates(torch.from_numpy(np.stack(masks)), torch.from_numpy(scores).float())
        masks.append(self._wobbled(embedding, levels[answered], 3))
        return Candidates(
            torch.from_numpy(np.stack(masks)), torch.from_numpy(np.append(scores, single)).float(), single=3
        )

    def propose(self, embedding: SamLikeEmbedding) -> Candidates:  # type: ignore[override]
        """Answers to a grid of points: parts, objects, wholes, and the background."""
        return grid_proposals(self, embedding, *embedding.ids.shape)

    def _chance(self, embedding: SamLikeEmbedding, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(embedding.name.encode()), *more])

    def _placed(self, embedding: SamLikeEmbedding, points: torch.Tensor, kind: int) -> list[tuple[int, int]]:
        """Pixel (y, x) of each point; some points near an outline are moved across it."""
        ids, positions = embedding.ids, []
        for number, (x, y) in enumerate(points.round().long().tolist()):
            reach = int(NEAR_OUTLINE) + 1
            top, left = max(y - reach, 0), max(x - reach, 0)
            around = ids[top : y + reach + 1, left : x + reach + 1]
            neighbours = np.argwhere(around != ids[y, x]) + np.array([top, left])
            position = (y, x)
            if len(neighbours):
                distances = np.linalg.norm(neighbours - position, axis=1)
                # The outline lies between two pixels.
                near = distances.min() - 0.5 <= NEAR_OUTLINE
                if near and self._chance(embedding, kind, number).random() < SLIP:
                    position = tuple(neighbours[distances.argmin()].tolist())
            positions.append(position)
        return positions

    def _levels(
        self, embedding: SamLikeEmbedding, prompt: Prompt, positive: list[tuple[int, int]]
    ) -> list[Bool[np.ndarray, "height width"]]:
        """Masks of part, object and whole for the prompted instance."""
        ids = embedding.ids
        if positive:
            votes = [int(ids[position]) for position in positive]
            number = max(dict.fromkeys(votes), key=votes.count)
            first = positive[votes.index(number)]
        else:
            assert prompt.box is not None  # check_prompt: no positive point means a box
            mask = super().predict(ids, Prompt(prompt.height, prompt.width, box=prompt.box)).masks[0].numpy()
            number = int(ids[mask][0]) if mask.any() else BACKGROUND
            first = None
        instance = ids == number
        if number == BACKGROUND:
            return [instance] * 3
        upper = embedding.upper[number]
        side = bool(upper[first]) if first is not None else bool((upper & instance).sum() * 2 > instance.sum())
        around = cv2.dilate(instance.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        touching = np.setdiff1d(ids[around], [BACKGROUND])
        return [instance & (upper == side), instance, np.isin(ids, touching)]

    def _wobbled(
        self, embedding: SamLikeEmbedding, mask: Bool[np.ndarray, "height width"], level: int
    ) -> Bool[np.ndarray, "height width"]:
        """Mask with its outline moved in and out by up to a pixel."""
        if not mask.any() or mask.all():
            return mask
        inside, outside = (cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 5) for side in (mask, ~mask))
        distance = np.where(mask, inside - 0.5, 0.5 - outside)
        noise = self._chance(embedding, 3, level).normal(size=mask.shape).astype(np.float32)
        noise = cv2.GaussianBlur(noise, (0, 0), 3.0)
        return distance + np.clip(noise / (2 * noise.std()), -1, 1) > 0


def _fitting(
    levels: list[Bool[np.ndarray, "height width"]],
    positive: list[tuple[int, int]],
    negative: list[tuple[int, int]],
    prompt: Prompt,
) -> int:
    """Smallest level that contains all points and no negative one; for a box alone, the level that fills it best."""
    if not positive and prompt.box is not None:
        return int(np.argmax([_box_iou(mask, prompt.box.numpy()) for mask in levels]))
    allowed = [level for level in range(3) if not any(levels[level][position] for position in negative)] or [PART]
    return next((level for level in allowed if all(levels[level][position] for position in positive)), allowed[-1])


def _box_iou(mask: Bool[np.ndarray, "height width"], box: Float[np.ndarray, "4"]) -> float:
    """IoU of a mask's bounding box with a box."""
    if not mask.any():
        return 0.0
    pixels = np.argwhere(mask)[:, ::-1]
    low, high = pixels.min(axis=0), pixels.max(axis=0) + 1
    shared = np.prod(np.clip(np.minimum(high, box[2:]) - np.maximum(low, box[:2]), 0, None))
    return float(shared / (np.prod(high - low) + np.prod(box[2:] - box[:2]) - shared))


def sam_like(scene: SceneUnderTest, **options: object) -> SamLike:
    """Make the stand-in for a scene, from the traces of its views.

    Args:
        scene: The scene, with its run.
        options: Options of :class:`SamLike`.
    """
    frame = frame_of(scene.pipeline, world=True)
    points: dict[str, Float[np.ndarray, "height width 3"]] = {}

    def surface(name: str) -> Float[np.ndarray, "height width 3"]:
        if name not in points:
            trace = scene.views.trace(scene.views.find(name))
            points[name] = frame.points(trace.surface_points()).reshape(trace.height, trace.width, 3).cpu().numpy()
        return points[name]

    boxes = {entry["id"]: (entry["aabb_min"], entry["aabb_max"]) for entry in scene.entries}
    return SamLike(scene.folder / "instances", boxes, surface, **options)  # type: ignore[arg-type]


@dataclass
class Outcome:
    """Figures of one object, segmented once."""

    iou: float = 0.0
    """Mean over the test views; 0 where the object is lost."""
    first: float = float("nan")
    """Depth of a self-prompted view's first point in the object: distance to the outline over the inradius, in the
    median view."""
    near: float = float("nan")
    """Share of the points within two pixels of the outline, in views where the object is wider than eight pixels."""
    near_wide: float = float("nan")
    """Share of the points that are so near although the object is wider than eight pixels at the point: a disc of that
    diameter fits into the object there."""


@dataclass
class Options:
    """Segment each object of a scene by one click, with a segmenter that errs as SAM does."""

    scene: Path
    """Scene folder with transforms.json, instances/, prompts.json and objects.json."""
    run: Path
    """Trained run on that scene."""
    seeds: int = 3
    """Number of stand-ins, with different seeds."""
    settings: tuple[SettingName, ...] = ("2:6:2", "even")
    """Probabilities that part, object and whole are the favourite for one point."""
    variants: tuple[str, ...] = ("default",)
    """Variants of the loop, as named in benchmarks.variants."""
    user: UserView = "right"
    """Favourite in the user's view: the object (right), another level while the user picks the object (picked), or the
    level drawn for the view (auto)."""
    stubborn: bool = False
    """Whether the predicted IoUs favour the level drawn for a view when there are several points, too."""
    objects: tuple[str, ...] = ()
    """Names of objects; all by default."""
    working_size: int = 160
    """Longer side, in pixels, of the images in which views are segmented."""
    cache_dir: Path | None = None
    """Folder that keeps renders of the training views for later runs."""
    num_views: int | None = None
    """Number of views beside the prompted one; all by default."""
    most_tests: int | None = None
    """Number of unseen views to score in; all by default."""
    input_side: int = INPUT_SIDE
    """Longer side of the stand-in's input, in pixels: below the photos' size, they are to it as large photos to SAM."""
    output: Path | None = None
    """JSON file to write."""


class Benchmark:
    """Sessions on one scene with the stand-in."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.scene = SceneUnderTest(
            options.scene,
            options.run,
            most_tests=options.most_tests,
            trace_all=options.num_views is None,
            working_size=options.working_size,
            cache_dir=options.cache_dir,
            num_views=options.num_views,
        )

    def run(self, name: str, setting: str, variant_name: str, seed: int) -> Outcome:
        """Segment an object once, and score it."""
        scene, options, variant = self.scene, self.options, VARIANTS[variant_name]
        pipeline, number = scene.pipeline, scene.prompts[name]["id"]
        view, prompt = scene.prompt(name, "point")
        stem = Path(scene.views.name(view)).stem
        sure = {"right": {stem: OBJECT}, "picked": {stem: (PART, WHOLE)[seed % 2]}, "auto": {}}[options.user]
        stand_in = sam_like(scene, favourites=FAVOURITES[setting], seed=seed, sure=sure, stubborn=options.stubborn)
        stand_in.input_side = options.input_side
        segmenter = variant.segmenter(stand_in)
        grid = variant.grid(pipeline.model.new_field(pipeline.config.resolution), pipeline.model.scene_box.aabb)
        session = variant.session(scene.views, segmenter, grid, settings_of(pipeline.config, variant))
        try:
            session.prompt(view, prompt)
            if options.user == "picked":
                session.choose(view, OBJECT)
            session.run()
        except sa3d.SA3DError as error:
            print(f"{name}: {error}")
            return Outcome()
        assert session.lifting is not None
        return Outcome(scene.score(session.lifting, number).iou, *self._points(stand_in, number, stem))

    def _points(self, stand_in: SamLike, number: int, prompted: str) -> tuple[float, float, float]:
        """``first``, ``near`` and ``near_wide`` of :class:`Outcome`, in pixels of the working size."""
        depths, near, wide = [], [], []
        for stem, prompt in stand_in.asked:
            truth = self.scene.truth(stem, number, (prompt.height, prompt.width))
            if stem == prompted or not truth.any():
                continue
            pixel = prompt.width / self.options.working_size
            distance = cv2.distanceTransform(np.pad(truth, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1] - 0.5
            x, y = prompt.positive.round().long().T.numpy()
            depths.append(max(float(distance[y[0], x[0]] / distance.max()), 0.0))
            if distance.max() > 4 * pixel:
                near += (distance[y, x] < 2 * pixel).tolist()
                middles = np.pad(distance <= 4 * pixel, 1, constant_values=True).astype(np.uint8)
                away = cv2.distanceTransform(middles, cv2.DIST_L2, 5)[1:-1, 1:-1]
                # A point beside the object is wide where the object next to it is wide.
                wide += (away <= np.where(truth, 4, 6) * pixel)[y, x].tolist()
        both = np.logical_and(near, wide).mean() if near else 0.0
        return float(np.median(depths)), float(np.mean(near)) if near else 0.0, float(both)


def main(options: Options) -> None:
    """Print a row for each variant, setting and object, and the means."""
    benchmark, console, rows = Benchmark(options), Console(width=150), []
    for variant in options.variants:
        for setting in options.settings:
            for entry in benchmark.scene.entries:
                if options.objects and entry["name"] not in options.objects:
                    continue
                outcomes = [benchmark.run(entry["name"], setting, variant, seed) for seed in range(options.seeds)]
                rows.append((variant, setting, entry["name"], outcomes))
                figures = " ".join(f"{outcome.iou:.3f}" for outcome in outcomes)
                console.print(f"{variant} {setting} {entry['name']}: {figures}", highlight=False, soft_wrap=True)
    columns = ("mean IoU", "worst seed", "first point", "near the outline", "wide there")
    table = Table("variant", "setting", "object", *columns)
    for variant, setting, name, outcomes in rows:
        table.add_row(variant, setting, name, *_figures([outcomes]))
    for way in dict.fromkeys(row[:2] for row in rows):
        table.add_row(*way, "mean", *_figures([row[3] for row in rows if row[:2] == way]))
    console.print(table)
    if options.output is not None:
        keys = ("variant", "setting", "object", "outcomes")
        result = [dict(zip(keys, (*row[:3], [vars(outcome) for outcome in row[3]]), strict=True)) for row in rows]
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"mean IoU {np.mean([outcome.iou for row in rows for outcome in row[3]]):.3f}")


def _figures(objects: list[list[Outcome]]) -> list[str]:
    """Columns of the table: means over objects and seeds; the second column is the lowest IoU."""
    every = [outcome for outcomes in objects for outcome in outcomes]
    worst = min(outcome.iou for outcome in every)
    points = [[outcome.first, outcome.near, outcome.near_wide] for outcome in every]
    first, near, wide = np.nanmean(points, axis=0)
    mean = np.mean([outcome.iou for outcome in every])
    return [f"{mean:.3f}", f"{worst:.3f}", f"{first:.2f}", f"{near:.3f}", f"{wide:.3f}"]


if __name__ == "__main__":
    main(tyro.cli(Options))
