"""Panoptic quality, in unseen views, of a whole scene segmented into objects.

    python -m benchmarks.everything --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu
    python -m benchmarks.everything --balls 200

The first form segments a segmenter's proposals in some training views, renders the ids of all objects in the test
views of the run, and compares them with the true instance maps by panoptic quality. The second form segments a
generated scene of many small balls, which is traced exactly, to measure the cost of hundreds of objects.
"""

from __future__ import annotations

import io
import json
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import sa3d_nerfstudio as sa3d
from benchmarks.sam_like import FAVOURITES, sam_like
from sa3d_nerfstudio.evaluation.metrics import IdMap, PanopticScores, iou, panoptic_scores
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.segmentation.everything import SceneSegmentation, SceneSettings
from sa3d_nerfstudio.segmentation.everything_progress import print_scene_report, run_scene_with_progress
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.segmenters.oracle import resize_nearest
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability
from sa3d_nerfstudio.traces.nerf import NerfViewTrace
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.analytic import BallSegmenter, BallViews


@dataclass
class Options:
    """Segment a whole scene into objects, and score them."""

    scene: Path | None = None
    """Scene folder with instances/ and objects.json."""
    run: Path | None = None
    """Trained run on that scene."""
    balls: int | None = None
    """Number of balls on a floor, instead of a scene."""
    segmenter: Literal["oracle", "sam-like"] = "oracle"
    """Segmenter: true instances alone, or a stand-in that errs as SAM does, with parts and wholes of them."""
    seed: int = 0
    """Seed of the stand-in's errors."""
    every: int = 1
    """Use every n-th training view."""
    num_views: int = 8
    """Number of views whose masks are the proposals."""
    most_tests: int | None = None
    """Number of unseen views to score in; all by default."""
    min_share: float = 0.002
    """Share of an image's pixels that a true object must cover to be scored there."""
    max_objects: int = 300
    """Largest number of objects."""
    working_size: int = 160
    """Longer side, in pixels, of the images in which views are segmented and scored."""
    cache_dir: Path | None = None
    """Folder that keeps renders of the views for later runs."""
    cpu_time: bool = False
    """Report processor time instead of wall-clock time, for a machine that is shared with others."""
    output: Path | None = None
    """JSON file to write."""

    def now(self) -> float:
        """Seconds of the reported clock."""
        return time.process_time() if self.cpu_time else time.perf_counter()


@dataclass
class Figures:
    """Reported figures of a scene."""

    scores: PanopticScores
    objects: int
    """Objects in the cut of the tree."""
    nodes: int
    """Nodes of the tree, parts and wholes included."""
    true_objects: int
    """True objects that cover more than the smallest share of any test view."""
    found: int
    """True objects that are matched in more than half of these views."""
    seconds: float
    """Seconds to segment the scene, with all views rendered before."""
    render_seconds: float | None
    """Seconds to render all views, estimated from one of them."""
    field_megabytes: float
    checkpoint_megabytes: float
    peak_megabytes: float
    """Peak memory of the process."""


def id_map(trace: ViewTrace, scene: SceneSegmentation, names: list[str]) -> IdMap:
    """Number of the most probable object at each pixel, from 1 in the order of the names; 0 for none."""
    best = torch.full((trace.height * trace.width,), scene.settings.threshold)
    ids = torch.zeros(len(best), dtype=torch.long)
    for number, name in enumerate(names, start=1):
        probability = render_probability(trace, scene.objects[name].field)[0].cpu()
        ids = torch.where(probability > best, number, ids)
        best = torch.maximum(best, probability)
    return ids.reshape(trace.height, trace.width).numpy()


def figures(
    scene: SceneSegmentation,
    tests: list[tuple[IdMap, IdMap]],
    seconds: float,
    render_seconds: float | None,
    share: float,
) -> Figures:
    """All figures of a scene that has been segmented into objects."""
    matched: dict[int, list[bool]] = {}
    for predicted, truth in tests:
        for number in np.unique(truth[truth > 0]).tolist():
            mask = truth == number
            if mask.mean() > share:
                ious = [iou(predicted == rival, mask) for rival in np.unique(predicted[mask]) if rival > 0]
                matched.setdefault(number, []).append(max(ious, default=0.0) > 0.5)
    masks = MaskObjects(lambda cells: MaskGrid(round(cells ** (1 / 3))))
    for name, item in scene.objects.items():
        masks[name] = item.field
    written = io.BytesIO()
    torch.save(masks.state_dict(), written)
    return Figures(
        scores=panoptic_scores(tests, share),
        objects=len(scene.cut),
        nodes=len(scene.objects),
        true_objects=len(matched),
        found=sum(sum(matches) > len(matches) / 2 for matches in matched.values()),
        seconds=seconds,
        render_seconds=render_seconds,
        field_megabytes=sum(item.field.num_bytes for item in scene.objects.values()) / 1e6,
        checkpoint_megabytes=len(written.getvalue()) / 1e6,
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    )


def segment_scene(scene: SceneSegmentation, options: Options, console: Console) -> float:
    """Segment a whole scene into objects, and return the seconds taken."""
    begun = options.now()
    run_scene_with_progress(scene, console, lambda found: None)
    print_scene_report(scene, console)
    return options.now() - begun


def run_scene(options: Options, console: Console) -> Figures:
    """Segment and score the scene of a trained run."""
    assert options.scene is not None
    assert options.run is not None
    run = sa3d.load(
        options.run,
        segmenter="oracle",
        oracle_instances=options.scene / "instances",
        working_size=options.working_size,
        cache_dir=options.cache_dir,
        everything_views=options.num_views,
        everything_max_objects=options.max_objects,
    )
    pipeline, views = run.pipeline, run.pipeline.views
    indices = list(range(0, len(views), options.every))
    views.cameras, views.filenames = views.cameras[torch.tensor(indices)], [views.filenames[view] for view in indices]
    for view in track(range(len(views)), "tracing training views", console=console):
        views.trace(view)
    dataset = pipeline.datamanager.eval_dataset
    assert dataset is not None
    tests = TrainingViews(
        pipeline.model, dataset.cameras, dataset.image_filenames, options.working_size, cache=views.cache
    )
    count = len(tests) if options.most_tests is None else min(options.most_tests, len(tests))
    chosen = [index * len(tests) // count for index in range(count)]
    for index in track(chosen, "tracing test views", console=console):
        tests.trace(index)
    views.cache.flush()
    begun = options.now()
    views.render(views.camera(0))
    render_seconds = (options.now() - begun) * len(views)
    segmenter = None
    if options.segmenter == "sam-like":
        entries = json.loads((options.scene / "objects.json").read_text())["objects"]
        namespace: Any = SimpleNamespace(pipeline=pipeline, views=views, folder=options.scene, entries=entries)
        segmenter = sam_like(namespace, favourites=FAVOURITES["2:6:2"], seed=options.seed)
    scene = pipeline.scene(segmenter)
    seconds = segment_scene(scene, options, console)
    pairs = []
    for index in chosen:
        trace = tests.trace(index)
        truth = np.asarray(Image.open(options.scene / "instances" / f"{tests.filenames[index].stem}.png"))
        truth = resize_nearest(truth.astype(np.int32), trace.height, trace.width)
        pairs.append((id_map(trace, scene, scene.cut), truth))
    return figures(scene, pairs, seconds, render_seconds, options.min_share)


class TracedBalls(BallViews):
    """Balls whose views are traced once, like those of a run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._traces: dict[int, NerfViewTrace] = {}
        self._ids: dict[int, Tensor] = {}

    def trace(self, view: int) -> NerfViewTrace:
        """Trace of a view, made once."""
        if view not in self._traces:
            self._traces[view] = super().trace(view)
        return self._traces[view]

    def ids(self, view: int) -> Tensor:
        """Ids of the balls in a view, made once."""
        if view not in self._ids:
            self._ids[view] = super().ids(view)
        return self._ids[view]


class BallProposals(BallSegmenter):
    """Segmenter that proposes every ball of a view."""

    def propose(self, embedding: int) -> Candidates:
        """Mask of the visible part of each ball."""
        ids = self.views.ids(embedding)
        masks = [ids == number for number in ids.unique().tolist() if number > 0]
        return Candidates(torch.stack(masks), torch.ones(len(masks)))


def run_balls(options: Options, console: Console) -> Figures:
    """Segment and score balls on a floor, on a slightly irregular square lattice."""
    assert options.balls is not None
    side = int(np.ceil(options.balls**0.5))
    generator = torch.Generator().manual_seed(0)
    lattice = torch.cartesian_prod(torch.arange(side), torch.arange(side))[: options.balls].float()
    step = 2.4 / side
    centers = (lattice - (side - 1) / 2) * step + 0.1 * step * (torch.rand(options.balls, 2, generator=generator) - 0.5)
    radius = step * (0.25 + 0.15 * torch.rand(options.balls, 1, generator=generator))
    balls = torch.cat([centers, radius, radius], dim=1)
    width, height = options.working_size, 3 * options.working_size // 4
    views = TracedBalls(count=24 // options.every, height=height, width=width, balls=balls)
    segmenter = BallProposals.of(views)
    predictor = MaskPredictor(segmenter, SessionViews(views, {}, SessionReport()))
    # A ball of so fine a lattice covers less of an image than the smallest object sought in a scene of eight objects.
    settings = SceneSettings(options.num_views, min_share=8 / (width * height), max_objects=options.max_objects)

    def new_session() -> SegmentationSession:
        return SegmentationSession(views, segmenter, MaskGrid(), SessionSettings())

    scene = SceneSegmentation(views, predictor, new_session, settings)
    seconds = segment_scene(scene, options, console)
    unseen = BallViews(count=7, height=height, width=width, balls=balls, distance=2.8)
    tests = [1, 4] if options.most_tests is None else range(options.most_tests)
    pairs = [(id_map(unseen.trace(view), scene, scene.cut), unseen.ids(view).numpy()) for view in tests]
    return figures(scene, pairs, seconds, None, settings.min_share)


def main(options: Options) -> None:
    """Score a scene or balls, and print a table and the panoptic quality."""
    console = Console(width=110)
    if options.balls is None and (options.scene is None or options.run is None):
        raise SystemExit("give --scene and --run, or --balls")
    result = run_scene(options, console) if options.balls is None else run_balls(options, console)
    scores = result.scores
    table = Table(show_header=False)
    table.add_row("objects, and nodes of the tree", f"{result.objects}, {result.nodes}")
    table.add_row("true objects found", f"{result.found} of {result.true_objects}")
    table.add_row("segments matched, missed, wrong", f"{scores.matched}, {scores.missed}, {scores.wrong}")
    table.add_row("segmentation, recognition quality", f"{scores.segmentation:.3f}, {scores.recognition:.3f}")
    table.add_row("seconds, views rendered before", f"{result.seconds:.1f}")
    if result.render_seconds is not None:
        table.add_row("seconds to render all views, about", f"{result.render_seconds:.1f}")
        ratio = 1 + result.seconds / result.render_seconds
        table.add_row("all in all, over the bare renders", f"{ratio:.2f}")
    table.add_row(
        "masks, their checkpoint, process, MB",
        f"{result.field_megabytes:.1f}, {result.checkpoint_megabytes:.1f}, {result.peak_megabytes:.0f}",
    )
    console.print(table)
    if options.output is not None:
        content: dict[str, Any] = asdict(result) | {"quality": scores.quality}
        options.output.write_text(json.dumps(content, indent=1, default=str) + "\n")
    print(f"PQ {scores.quality:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
