"""Accuracy of lifted objects, and the contribution of each part of the loop.

    python -m benchmarks.accuracy --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

One session is run for each object and each chosen segmenter, variant and prompt. Its masks are rendered in the test
views at full size, and scored against the scene's exact instance maps. Views are traced once and shared, so the time of
each object is that of a second object. The row "ceiling" lifts the true masks of all training views at once, which is
the best that the field can hold; "ceiling of averages" is the same without the likelihood.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

import sa3d_nerfstudio as sa3d
from benchmarks.failures import Failure, draw
from benchmarks.noisy_oracle import Noise, NoisyOracle
from benchmarks.scene import PromptKind, SceneUnderTest
from benchmarks.train_like import main as train_like
from benchmarks.variants import VARIANTS, settings_of
from sa3d_nerfstudio.evaluation.metrics import iou
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.segmentation.likelihood import MaskedView, MaskLikelihood
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing
from sa3d_nerfstudio.segmenters.base import Segmenter

VariantName = Literal[tuple(VARIANTS)]  # type: ignore[valid-type]
PERFECT = "none"


@dataclass
class Options:
    """Score lifted objects against exact masks."""

    scene: Path
    """Scene folder with transforms.json, instances/, prompts.json and objects.json."""
    run: Path | None = None
    """Trained run on that scene."""
    train_like: Path | None = None
    """config.yml of another scene's run: without --run, a run is trained with the same configuration, in outputs/."""
    segmenters: tuple[str, ...] = ("oracle",)
    """2D segmenters."""
    variants: tuple[VariantName, ...] = ("default",)  # type: ignore[valid-type]
    """Variants of the loop, as named in benchmarks.variants."""
    noises: tuple[Literal["none", "eroded", "dilated", "wobbling", "wrong", "corrupted"], ...] = (PERFECT,)
    """Errors added to the oracle's masks; other segmenters run without them."""
    prompts: tuple[PromptKind, ...] = ("point",)
    """One click, all points and negative points, the box or the scribbles of prompts.json."""
    objects: tuple[str, ...] = ()
    """Names of objects; all by default."""
    ceiling: bool = True
    """Add the rows that lift the true masks."""
    export: bool = False
    """Also run ns-export pointcloud, and score its points against the object's true surface."""
    working_size: int | None = None
    """Longer side, in pixels, of the images in which views are segmented; the run's default if not given."""
    sam_checkpoint: Path | None = None
    """Weights for the sam segmenters."""
    most_tests: int | None = None
    """Number of unseen views to score in; all by default."""
    cache_dir: Path | None = None
    """Folder that keeps renders of the training views for later runs."""
    seed: int = 0
    """Seed that decides which views the noise spoils."""
    share: float = 0.2
    """Share of the views that the noises wrong and corrupted spoil."""
    masks: Path | None = None
    """Folder to write the masks of the test views to, as the scenes' score.py reads them."""
    failures: Path | None = None
    """PNG file to draw the worst masks in."""
    output: Path | None = None
    """JSON file to write."""


@dataclass
class Row:
    """Scores of one object, segmented with one segmenter, noise, variant and prompt."""

    object: str
    segmenter: str
    noise: str
    variant: str
    prompt: str
    iou: float = 0.0
    worst_iou: float = 0.0
    boundary_iou: float = 0.0
    accuracy: float = 0.0
    worst_view: str = ""
    seconds: float = 0.0
    views: dict[str, int] = field(default_factory=dict)
    passes: int = 0
    prompt_iou: float | None = None
    """IoU of the 2D mask in the prompted view."""
    points: dict[str, float] = field(default_factory=dict)
    """Precision and recall of the exported points, by tolerance in metres."""

    @property
    def way(self) -> tuple[str, str, str, str]:
        """Segmenter, noise, variant and prompt."""
        return self.segmenter, self.noise, self.variant, self.prompt


class Benchmark:
    """Sessions on one scene."""

    def __init__(self, options: Options) -> None:
        self.options = options
        run = options.run
        if run is None:
            if options.train_like is None:
                raise sa3d.SA3DError("there is no run: give --run, or --train-like to have one trained.")
            run = train_like(options.train_like, options.scene, Path("outputs"))
        self.scene = SceneUnderTest(
            options.scene,
            run,
            most_tests=options.most_tests,
            working_size=options.working_size,
            sam_checkpoint=options.sam_checkpoint,
            cache_dir=options.cache_dir,
            trace_all=options.ceiling,
        )
        self.failures: list[Failure] = []

    def segment(self, entry: dict[str, Any], row: Row) -> Row:
        """Run one session as the row specifies, and fill in the row's figures."""
        scene, options, variant = self.scene, self.options, VARIANTS[row.variant]
        pipeline, name = scene.pipeline, entry["name"]
        view, prompt = scene.prompt(name, row.prompt)  # type: ignore[arg-type]
        pipeline.config.segmenter = row.segmenter
        segmenter: Segmenter = pipeline.make_segmenter()
        stem = Path(scene.views.name(view)).stem
        if row.noise != PERFECT:
            noise: Noise = row.noise  # type: ignore[assignment]
            segmenter = NoisyOracle(options.scene / "instances", noise, options.share, seed=options.seed, spared=stem)
        grid = variant.grid(pipeline.model.new_field(pipeline.config.resolution), pipeline.model.scene_box.aabb)
        # As in the pipeline, small objects get larger images unless a working size was given.
        sized = partial(pipeline.sized, segmenter) if options.working_size is None else None
        settings = settings_of(pipeline.config, variant)
        session = variant.session(scene.views, segmenter, grid, settings, sized=sized)
        pipeline.model.masks[name] = grid
        session.prompt(view, prompt)
        mask = session.mask_of(view).cpu().numpy()
        row.prompt_iou = iou(mask, scene.truth(stem, entry["id"], (mask.shape[0], mask.shape[1])))
        report = session.run()
        assert session.lifting is not None
        folder = None if options.masks is None else options.masks / "-".join(row.way) / name
        for figure, value in asdict(scene.score(session.lifting, entry["id"], folder)).items():
            setattr(row, figure, value)
        predicted, truth = scene.masks(session.lifting, entry["id"])[row.worst_view]
        title = f"{name} ({' '.join(row.way)})"
        rgb = scene.tests[row.worst_view].rgb.cpu().numpy()
        self.failures.append(Failure(title, row.worst_iou, rgb, predicted, truth))
        states = [record.state for record in report.last().values()]
        row.views = {state: states.count(state) for state in sorted(set(states))}
        row.passes = max(record.number_of_pass for record in report.records)
        row.seconds = sum(report.seconds.values())
        if options.export:
            row.points = scene.exported(entry, num_points=5000, tolerances=(0.005, 0.01))
        return row

    def ceilings(self, entry: dict[str, Any]) -> list[Row]:
        """Lift the true masks of all training views at once: as averages, and fitted by likelihood."""
        scene, views = self.scene, self.scene.views
        masks, spacings, points = {}, [], []
        for view in range(len(views)):
            trace = views.trace(view)
            truth = scene.truth(Path(views.name(view)).stem, entry["id"], (trace.height, trace.width))
            mask = torch.from_numpy(truth)
            masks[view] = mask.reshape(-1)
            if mask.any():
                spacings.append(pixel_spacing(trace, mask))
                points.append(trace.surface_points()[mask.reshape(-1)])
        grid = scene.pipeline.model.new_field(scene.pipeline.config.resolution)
        grid.prepare(torch.cat(points), float(np.median(spacings)))
        for number in range(2):
            # The grid is placed around the masks' surface points first, and then around the object.
            grid = grid.placed_again(float(np.median(spacings))) if number else grid
            lifting = EvidenceLifting(grid)
            for view, mask in masks.items():
                lifting.add(views.trace(view), mask.to(grid.hit.device))
        averages = scene.score(lifting, entry["id"])
        masked = (MaskedView(views.trace(view), mask.to(grid.hit.device)) for view, mask in masks.items())
        MaskLikelihood(grid, masked).fit(scene.pipeline.config.likelihood_steps)
        scores = {"ceiling of averages": averages, "ceiling": scene.score(lifting, entry["id"])}
        return [
            Row(entry["name"], "true masks", PERFECT, name, "all", **asdict(figures))
            for name, figures in scores.items()
        ]


def main(options: Options) -> None:
    """Run the benchmark, print its table, and write JSON."""
    benchmark, rows, console = Benchmark(options), [], Console(width=170)
    for entry in benchmark.scene.entries:
        if options.objects and entry["name"] not in options.objects:
            continue
        if options.ceiling:
            rows.extend(benchmark.ceilings(entry))
        for row in _ways(entry["name"], options):
            try:
                rows.append(benchmark.segment(entry, row))
            except sa3d.SA3DError as error:
                # A lost object counts as zero.
                console.print(f"{row.object}, {row.segmenter}: {error}")
                rows.append(row)
            console.print(f"{row.object} {' '.join(row.way)}: {row.iou:.3f}")
    console.print(_table(rows))
    if options.failures is not None:
        draw(benchmark.failures, options.failures)
    if options.output is not None:
        versions = {name: version(name) for name in ("torch", "numpy", "nerfstudio", "sa3d-nerfstudio")}
        result = {
            "command": sys.argv,
            "seed": options.seed,
            "versions": versions,
            "rows": [asdict(row) for row in rows],
        }
        options.output.write_text(json.dumps(result, indent=1, default=str) + "\n")


def _ways(name: str, options: Options) -> list[Row]:
    return [
        Row(name, segmenter, noise, variant, prompt)
        for segmenter in options.segmenters
        for noise in (options.noises if segmenter == "oracle" else (PERFECT,))
        for variant in options.variants
        for prompt in options.prompts
    ]


def _table(rows: list[Row]) -> Table:
    columns = ("mIoU", "worst", "boundary", "accuracy", "2D IoU", "passes", "views", "points")
    table = Table("object", "segmenter", "noise", "variant", "prompt", *columns)
    for row in rows:
        states = " ".join(f"{number} {state}" for state, number in row.views.items())
        points = " ".join(f"{name} {share:.2f}" for name, share in row.points.items())
        prompt_iou = "" if row.prompt_iou is None else f"{row.prompt_iou:.2f}"
        figures = (f"{row.iou:.3f}", f"{row.worst_iou:.3f}", f"{row.boundary_iou:.3f}", f"{row.accuracy:.4f}")
        table.add_row(row.object, *row.way, *figures, prompt_iou, str(row.passes or ""), states, points)
    for way in dict.fromkeys(row.way for row in rows):
        group = [row for row in rows if row.way == way]
        means = (np.mean([getattr(row, name) for row in group]) for name in ("iou", "boundary_iou", "accuracy"))
        mean, boundary, accuracy = means
        worst = min(row.iou for row in group)
        table.add_row("mean", *way, f"{mean:.3f}", f"{worst:.3f}", f"{boundary:.3f}", f"{accuracy:.4f}")
    return table


if __name__ == "__main__":
    main(tyro.cli(Options))
