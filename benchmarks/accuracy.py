"""How well objects are lifted: IoU in unseen views, and which share of the exported points lies in the true box.

    python benchmarks/accuracy.py --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

For every object and every segmenter, liftings and prompts as chosen, one session on the run; its masks rendered in the
test views at full size, and scored against the scene's exact instance maps. Views are traced once and shared, so times
per object are those of a second object. The row "ceiling" lifts the true masks of all training views at once: what the
field can hold at all.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting
from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmentation.surface import pixel_spacing
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.views import trace_camera

MIN_FRACTION = 0.001
"""Test views in which the object covers less than this are not scored, as in the scenes' score.py."""


@dataclass
class Options:
    """Score lifted objects against exact truth."""

    scene: Path
    """Scene folder with transforms.json, instances/, prompts.json and objects.json."""
    run: Path
    """Trained run on that scene."""
    segmenters: tuple[str, ...] = ("oracle", "grabcut")
    """2D segmenters."""
    liftings: tuple[Literal["evidence", "gradient"], ...] = ("evidence",)
    """Evidence sums, or the published gradient steps (one pass, views in file order)."""
    prompts: tuple[Literal["point", "points", "box"], ...] = ("point",)
    """One click, all points and negative points, or the box of prompts.json."""
    objects: tuple[str, ...] = ()
    """Names of objects; all by default."""
    ceiling: bool = True
    """Add the row that lifts the true masks."""
    export: bool = False
    """Also run ns-export pointcloud, and score its points against the object's true box."""
    working_size: int | None = None
    """Longer side of the images in which views are segmented; the run's default if not given."""
    sam_checkpoint: Path | None = None
    """Weights for the sam segmenters."""
    masks: Path | None = None
    """Folder to write the masks of the test views to, as the scenes' score.py reads them."""
    output: Path | None = None
    """JSON file to write."""


@dataclass
class Row:
    """One object segmented one way."""

    object: str
    segmenter: str
    lifting: str
    prompt: str
    iou: float
    worst_iou: float
    accuracy: float
    seconds: float
    views: dict[str, int] = field(default_factory=dict)
    prompt_iou: float | None = None
    """IoU of the 2D mask in the prompted view."""
    inside: dict[str, float] = field(default_factory=dict)
    """Share of exported points in the true box, grown by so many metres."""


class Benchmark:
    """One scene with one run, its views traced once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.entries = json.loads((options.scene / "objects.json").read_text())["objects"]
        self.prompts = {
            entry["name"]: entry for entry in json.loads((options.scene / "prompts.json").read_text())["objects"]
        }
        self.run = sa3d.load(
            options.run,
            oracle_instances=options.scene / "instances",
            working_size=options.working_size,
            sam_checkpoint=options.sam_checkpoint,
        )
        self.pipeline = self.run.pipeline
        views = self.pipeline.views
        for view in track(range(len(views)), "tracing training views"):
            views.trace(view)
        dataset = self.pipeline.datamanager.eval_dataset
        assert dataset is not None
        self.tests: dict[str, ViewTrace] = {}
        for index in track(range(len(dataset)), "tracing test views"):
            camera = dataset.cameras[index : index + 1].to(self.pipeline.device)
            self.tests[dataset.image_filenames[index].stem] = trace_camera(self.pipeline.model, camera)

    def truth(self, stem: str, number: int, shape: tuple[int, int] | None = None) -> torch.Tensor:
        """The exact mask of an object in one image."""
        image = Image.open(self.options.scene / "instances" / f"{stem}.png")
        if shape is not None:
            image = image.resize((shape[1], shape[0]), Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(image) == number)

    def score(self, lifting: Lifting, number: int, folder: Path | None = None) -> tuple[list[float], list[float]]:
        """IoU and pixel accuracy in each test view that shows the object; the masks go to a folder, if one is given."""
        ious, accuracies = [], []
        for stem, trace in self.tests.items():
            truth = self.truth(stem, number).reshape(-1)
            if truth.float().mean() <= MIN_FRACTION:
                continue
            mask = lifting.render(trace)[0].cpu() > self.pipeline.config.threshold
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                pixels = mask.reshape(trace.height, trace.width).numpy().astype(np.uint8) * 255
                Image.fromarray(pixels).save(folder / f"{stem}.png")
            ious.append(float((mask & truth).sum() / (mask | truth).sum()))
            accuracies.append(float((mask == truth).float().mean()))
        return ious, accuracies

    def segment(self, entry: dict[str, Any], segmenter: str, lifting_name: str, kind: str) -> Row:
        """Run one session and score it."""
        config, prompts = self.pipeline.config, self.prompts[entry["name"]]
        published = lifting_name == "gradient"
        config.segmenter, config.lifting = segmenter, lifting_name  # type: ignore[assignment]
        config.view_order, config.max_passes = ("file", 1) if published else ("overlap", 4)
        session = self.pipeline.session(entry["name"])
        view = self.pipeline.views.find(Path(prompts["frame"]).name)
        height, width = self.pipeline.views.image_size(view)
        given = {
            "point": Prompt.from_points(height, width, prompts["points"][:1]),
            "points": Prompt.from_points(height, width, prompts["points"], prompts["negative_points"]),
            "box": Prompt.from_points(height, width, box=prompts["box"]),
        }[kind]
        session.prompt(view, given)
        truth = self.truth(Path(prompts["frame"]).stem, entry["id"], tuple(session.mask_of(view).shape))  # type: ignore[arg-type]
        mask = session.mask_of(view).cpu()
        report = session.run()
        assert session.lifting is not None
        masks = self.options.masks
        folder = None if masks is None else masks / f"{segmenter}-{lifting_name}-{kind}" / entry["name"]
        ious, accuracies = self.score(session.lifting, entry["id"], folder)
        states = [record.state for record in report.last().values()]
        row = Row(
            object=entry["name"],
            segmenter=segmenter,
            lifting=lifting_name,
            prompt=kind,
            iou=float(np.mean(ious)),
            worst_iou=float(np.min(ious)),
            accuracy=float(np.mean(accuracies)),
            seconds=sum(report.seconds.values()),
            views={state: states.count(state) for state in sorted(set(states))},
            prompt_iou=float((mask & truth).sum() / (mask | truth).sum()),
        )
        if self.options.export:
            row.inside = self.export(entry)
        return row

    def ceiling(self, entry: dict[str, Any]) -> Row:
        """Lift the true masks of all training views at once."""
        views = self.pipeline.views
        masks, spacings, points = {}, [], []
        for view in range(len(views)):
            trace = views.trace(view)
            mask = self.truth(Path(views.name(view)).stem, entry["id"], (trace.height, trace.width))
            masks[view] = mask.reshape(-1)
            if mask.any():
                spacings.append(pixel_spacing(trace, mask))
                points.append(trace.surface_points()[mask.reshape(-1)])
        grid = MaskGrid(self.pipeline.config.resolution).to(self.pipeline.device)
        grid.place_around(torch.cat(points), spacing=float(np.median(spacings)))
        for _ in range(2):
            lifting = EvidenceLifting(grid)
            for view, mask in masks.items():
                lifting.add(views.trace(view), mask)
            ious, accuracies = self.score(lifting, entry["id"])
            inside, weights = grid.object_points()
            grid = grid.fresh()
            grid.place_around(inside, weights, float(np.median(spacings)))
        worst = float(np.min(ious))
        return Row(
            entry["name"], "truth", "ceiling", "all", float(np.mean(ious)), worst, float(np.mean(accuracies)), 0.0
        )

    def export(self, entry: dict[str, Any]) -> dict[str, float]:
        """Save the object alone, export its points by ns-export, and see which lie in the true box."""
        import open3d

        masks = self.pipeline.model.masks
        masks.hidden = {name for name in masks.names if name != entry["name"]}
        with tempfile.TemporaryDirectory() as folder:
            saved = self.run.save(Path(folder))
            command = [
                Path(sys.executable).parent / "ns-export", "pointcloud", "--load-config", saved, "--output-dir", folder,
                "--num-points", "5000", "--num-rays-per-batch", "2048", "--normal-method", "open3d",
                "--save-world-frame", "True",
            ]  # fmt: skip
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
            cloud = open3d.io.read_point_cloud(Path(folder) / "point_cloud.ply")
        points = np.asarray(cloud.points)
        masks.hidden = set()
        low, high = np.array(entry["aabb_min"]), np.array(entry["aabb_max"])
        return {
            f"{grown:g}": float(((points >= low - grown) & (points <= high + grown)).all(-1).mean())
            for grown in (0.0, 0.005, 0.01)
        }


def main(options: Options) -> None:
    """Run the benchmark, print its table, and write JSON."""
    benchmark, rows, console = Benchmark(options), [], Console(width=150)
    for entry in benchmark.entries:
        if options.objects and entry["name"] not in options.objects:
            continue
        if options.ceiling:
            rows.append(benchmark.ceiling(entry))
        for segmenter in options.segmenters:
            for lifting in options.liftings:
                for prompt in options.prompts:
                    try:
                        rows.append(benchmark.segment(entry, segmenter, lifting, prompt))
                    except sa3d.SA3DError as error:
                        console.print(f"{entry['name']}, {segmenter}: {error}")
                        rows.append(Row(entry["name"], segmenter, lifting, prompt, 0.0, 0.0, 0.0, 0.0))
                    console.print(rows[-1])
    table = Table(
        "object", "segmenter", "lifting", "prompt", "mIoU", "worst", "accuracy", "2D IoU", "views", "in box +5 mm"
    )
    for row in rows:
        inside = f"{row.inside['0.005']:.3f}" if row.inside else ""
        prompt_iou = "" if row.prompt_iou is None else f"{row.prompt_iou:.2f}"
        scores = (f"{row.iou:.3f}", f"{row.worst_iou:.3f}", f"{row.accuracy:.4f}", prompt_iou)
        states = " ".join(f"{number} {state}" for state, number in row.views.items())
        table.add_row(row.object, row.segmenter, row.lifting, row.prompt, *scores, states, inside)
    groups: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row.segmenter, row.lifting, row.prompt), []).append(row.iou)
    for key, ious in groups.items():
        table.add_row("mean", *key, f"{np.mean(ious):.3f}", f"{np.min(ious):.3f}", "", "", "", "")
    console.print(table)
    if options.output is not None:
        versions = {name: __import__(name).__version__ for name in ("torch", "numpy")} | {
            "python": platform.python_version()
        }
        result = {"command": sys.argv, "versions": versions, "rows": [asdict(row) for row in rows]}
        options.output.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
