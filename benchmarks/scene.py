"""A scene with exact masks, and a run trained on it: the input of accuracy benchmarks, traced once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.progress import track

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.evaluation.metrics import Mask, boundary_iou, iou, pixel_accuracy, point_scores
from sa3d_nerfstudio.prompts.images import draw_polyline, points_of_stroke
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.lifting import Lifting
from sa3d_nerfstudio.segmenters.oracle import read_ids, resize_nearest
from sa3d_nerfstudio.traces.base import ViewTrace

MIN_FRACTION = 0.001
"""Share of a test view above which an object is scored in it, as in the scenes' score.py."""
PromptKind = Literal["point", "points", "box", "scribble"]


@dataclass
class MaskScores:
    """Scores of one object's masks over the test views."""

    iou: float
    worst_iou: float
    boundary_iou: float
    accuracy: float
    worst_view: str
    """Stem of the test view with the lowest IoU."""


class SceneUnderTest:
    """A folder with transforms.json, instances/, prompts.json and objects.json, and a run.

    Args:
        folder: Folder of the scene.
        run: Run trained on the scene.
        most_tests: Number of unseen views to score in; all if None.
        trace_all: Render all training views in advance, before measurements.
        options: Options of ``sa3d.load``.
    """

    def __init__(
        self, folder: Path, run: Path, most_tests: int | None = None, trace_all: bool = True, **options: Any
    ) -> None:
        self.folder = folder
        self.entries: list[dict[str, Any]] = json.loads((folder / "objects.json").read_text())["objects"]
        self.prompts = {entry["name"]: entry for entry in json.loads((folder / "prompts.json").read_text())["objects"]}
        self.run = sa3d.load(run, oracle_instances=folder / "instances", **options)
        self.pipeline = self.run.pipeline
        self.views = self.pipeline.views
        for view in track(range(len(self.views) if trace_all else 0), "tracing training views"):
            self.views.trace(view)
        self.views.cache.flush()
        dataset = self.pipeline.datamanager.eval_dataset
        assert dataset is not None
        self.tests: dict[str, ViewTrace] = {}
        count = len(dataset) if most_tests is None else min(most_tests, len(dataset))
        for index in track([i * len(dataset) // count for i in range(count)], "tracing test views"):
            camera = dataset.cameras[index : index + 1].to(self.pipeline.device)
            self.tests[dataset.image_filenames[index].stem] = self.pipeline.model.trace_view(camera)

    def truth(self, stem: str, number: int, shape: tuple[int, int] | None = None) -> Mask:
        """Exact mask of an object in one image, at the image's size or at ``shape``."""
        ids = read_ids(self.folder / "instances" / f"{stem}.png")
        return (ids if shape is None else resize_nearest(ids, *shape)) == number

    def prompt(self, name: str, kind: PromptKind) -> tuple[int, Prompt]:
        """View that prompts.json names for an object, and the prompt of that kind in it."""
        entry = self.prompts[name]
        view = self.views.find(Path(entry["frame"]).name)
        height, width = self.views.image_size(view)
        if kind == "point":
            return view, Prompt.from_points(height, width, entry["points"][:1])
        if kind == "points":
            return view, Prompt.from_points(height, width, entry["points"], entry["negative_points"])
        if kind == "box":
            return view, Prompt.from_points(height, width, box=entry["box"])
        on = points_of_stroke(draw_polyline(entry["scribble"], height, width), positive=True)
        off = points_of_stroke(draw_polyline(entry["background_scribble"], height, width), positive=False)
        return view, Prompt.from_points(height, width, on, off)

    def masks(self, lifting: Lifting, number: int) -> dict[str, tuple[Mask, Mask]]:
        """Rendered and true masks of every test view that shows the object, by stem."""
        pairs = {}
        for stem, trace in self.tests.items():
            truth = self.truth(stem, number)
            if truth.mean() > MIN_FRACTION:
                mask = lifting.render(trace)[0].cpu() > self.pipeline.config.threshold
                pairs[stem] = (mask.reshape(trace.height, trace.width).numpy(), truth)
        return pairs

    def score(self, lifting: Lifting, number: int, folder: Path | None = None) -> MaskScores:
        """Score masks over the test views that show the object; if a folder is given, write the masks to it."""
        ious, boundaries, accuracies = [], [], []
        pairs = self.masks(lifting, number)
        for stem, (predicted, truth) in pairs.items():
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(predicted.astype(np.uint8) * 255).save(folder / f"{stem}.png")
            ious.append(iou(predicted, truth))
            boundaries.append(boundary_iou(predicted, truth))
            accuracies.append(pixel_accuracy(predicted, truth))
        worst = int(np.argmin(ious))
        mean_iou, boundary, accuracy = (float(np.mean(figures)) for figures in (ious, boundaries, accuracies))
        return MaskScores(mean_iou, ious[worst], boundary, accuracy, list(pairs)[worst])

    def exported(self, entry: dict[str, Any], num_points: int, tolerances: tuple[float, ...]) -> dict[str, float]:
        """Save the object alone, export its points by ns-export, and compare them with the true surface.

        Returns:
            ``precision`` and ``recall`` at each tolerance in metres: the share of exported points near the object's
            outer surface, and the share of that surface, as far as any camera has seen it, near an exported point.
        """
        import open3d

        masks = self.pipeline.model.masks
        masks.hidden = {name for name in masks.names if name != entry["name"]}
        with tempfile.TemporaryDirectory() as folder:
            saved = self.run.save(Path(folder))
            command = [
                Path(sys.executable).parent / "ns-export", "pointcloud", "--load-config", saved, "--output-dir", folder,
                "--num-points", num_points, "--num-rays-per-batch", "2048", "--normal-method", "open3d",
                "--save-world-frame", "True",
            ]  # fmt: skip
            subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
            points = np.asarray(open3d.io.read_point_cloud(Path(folder) / "point_cloud.ply").points)
        masks.hidden = set()
        surface = np.load(self.folder / entry["points"])
        seen = np.load(self.folder / entry["points_seen"]) > 0
        result = {}
        for tolerance in tolerances:
            result[f"precision {tolerance:g}"] = point_scores(points, surface, tolerance).precision
            result[f"recall {tolerance:g}"] = point_scores(points, surface[seen], tolerance).recall
        return result
