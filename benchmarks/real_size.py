"""Time and memory of a run without true masks at full size: renders, a first and a second object, a correction.

    python -m benchmarks.real_size --run outputs/fern/nerfacto/T --encoders vit_b vit_h

True masks are made from the run: an object is the part of the rendered surface within a ball around a surface point of
the first view, so it is the same in 3D in all views. The oracle answers with these masks, so all time is that of
lifting. The additional time of a network is measured with random weights, on which it does not depend.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from segment_anything import sam_model_registry
from torch import Tensor

import sa3d_nerfstudio as sa3d
from benchmarks.speed import Clock
from sa3d_nerfstudio.evaluation.metrics import iou
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.sam import SamSegmenter

PLACES = ((0.5, 0.5), (0.3, 0.4))
"""Centres (x, y) of the objects in the first view, as shares of width and height."""
BATCH = 4
"""Images per batch of an encoder."""


@dataclass
class Options:
    """Time a run at its full size."""

    run: Path
    """Trained run."""
    working_size: int | None = None
    """Longer side of the images, in pixels; the device's default if not given."""
    radius: float = 0.12
    """Radius of the objects in the first view, as a share of the image's width."""
    encoders: tuple[str, ...] = ()
    """SAM's encoders to time: any of vit_b, vit_l and vit_h."""
    output: Path | None = None
    """JSON file to write."""


class Scene:
    """A run, and true masks made from it."""

    def __init__(self, options: Options, folder: Path) -> None:
        settings: dict[str, Any] = {"segmenter": "oracle", "oracle_instances": folder, "keep_cache": False}
        if options.working_size is not None:
            settings["working_size"] = options.working_size
        self.run = sa3d.load(options.run, **settings)
        self.pipeline = self.run.pipeline
        self.views = self.pipeline.views
        self.timer = Clock(self.pipeline.device).once
        self.folder = folder
        first = self.surface(0)
        rows, columns = first.shape[:2]
        height, width = self.views.image_size(0)
        self.points = [(int(x * width), int(y * height)) for x, y in PLACES]
        middles = [first[y * rows // height, x * columns // width] for x, y in self.points]
        camera = self.views.cameras[0]
        eye = camera.camera_to_worlds[:, 3].to(first.device)
        per_distance = options.radius * width / float(camera.fx)
        self.balls = [(middle, per_distance * float((middle - eye).norm())) for middle in middles]
        for view, path in enumerate(self.views.filenames):
            Image.fromarray(self.ids(first if view == 0 else self.surface(view))).save(folder / f"{path.stem}.png")

    def surface(self, view: int) -> Float[Tensor, "height width 3"]:
        """Surface points of a training view, in the world frame, at the working size."""
        return self.surface_of(self.views.camera(view))

    @torch.no_grad()
    def surface_of(self, camera: Any) -> Float[Tensor, "height width 3"]:
        """Surface points of a camera's pixels, in the world frame."""
        trace = self.pipeline.model.trace_view(camera.to(self.pipeline.device))
        return trace.surface_points().reshape(trace.height, trace.width, 3)

    def ids(self, points: Float[Tensor, "height width 3"]) -> np.ndarray:
        """Number of the object at each pixel, from 1; 0 for none."""
        ids = torch.zeros(points.shape[:2], dtype=torch.uint8, device=points.device)
        for number, (middle, radius) in reversed(list(enumerate(self.balls, start=1))):
            ids[(points - middle).norm(dim=-1) < radius] = number
        return ids.cpu().numpy()

    def segment(self, number: int, clicks: int = 1) -> Any:
        """Click on an object, segment it after each click, and return the session."""
        session = self.pipeline.session(f"object {number}")
        for _ in range(clicks):
            session.prompt(0, Prompt.from_points(*self.views.image_size(0), [self.points[number - 1]]))
            session.run()
        return session

    def accuracy(self, session: Any, number: int) -> float:
        """Mean IoU with the true masks over the unseen views that show the object."""
        dataset, ious = self.pipeline.datamanager.eval_dataset, []
        assert dataset is not None
        for index in range(len(dataset)):
            camera = dataset.cameras[index : index + 1].to(self.pipeline.device)
            truth = self.ids(self.surface_of(camera)) == number
            trace = self.pipeline.model.trace_view(camera)
            mask = session.lifting.render(trace)[0].reshape(truth.shape) > self.pipeline.config.threshold
            if truth.mean() > 0.001:
                ious.append(iou(mask.cpu().numpy(), truth))
        return float(np.mean(ious)) if ious else float("nan")

    @torch.no_grad()
    def bare(self) -> None:
        """Render all views as nerfstudio does, at the size that the session uses."""
        for view in range(len(self.views)):
            self.pipeline.model.get_outputs_for_camera(self.views.camera(view))


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Measure all figures of the run."""
    scene = Scene(options, folder)
    timer, cuda = scene.timer, scene.pipeline.device.type == "cuda"
    height, width = scene.views.image_size(0)
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "model": type(scene.pipeline.model).__name__,
        "views": len(scene.views),
        "photo": f"{width} x {height}",
        "working size": scene.views.long_side,
    }
    timer(lambda: scene.pipeline.model.get_outputs_for_camera(scene.views.camera(0)))
    figures["bare renders, s"] = timer(scene.bare)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    done: list[Any] = []
    for name, number, clicks in (("first", 1, 1), ("second", 2, 1), ("second, again", 2, 1), ("two clicks", 2, 2)):
        figures[f"{name}, s"] = timer(lambda number=number, clicks=clicks: done.append(scene.segment(number, clicks)))
        report = done[-1].report
        figures[f"{name}, parts, s"] = dict(report.seconds)
        figures[f"{name}, visits"] = dict(sorted(Counter(record.number_of_pass for record in report.records).items()))
        figures[f"{name}, views"] = dict(Counter(record.state for record in report.last().values()))
        figures[f"{name}, share of bare renders"] = figures[f"{name}, s"] / figures["bare renders, s"]
    figures["views kept, MB"] = scene.views.cache.num_bytes / 1e6
    if cuda:
        figures["peak of the GPU, MB"] = torch.cuda.max_memory_allocated() / 1e6
    for number, session in ((1, done[0]), (2, done[2])):
        figures[f"mean IoU in unseen views, object {number}"] = scene.accuracy(session, number)
    for name in options.encoders:
        figures |= encoder(name, scene)
    return figures


def encoder(name: str, scene: Scene) -> dict[str, float]:
    """Milliseconds of one of SAM's encoders per image, and of its decoder per prompt."""
    torch.manual_seed(0)
    segmenter = SamSegmenter(sam_model_registry[name]().to(scene.pipeline.device))
    height, width = scene.views.image_size(0)
    images = [SegmenterImage(torch.rand(height, width, 3), str(index)) for index in range(BATCH)]
    outputs: list[Any] = []
    alone = [scene.timer(lambda: outputs.append(segmenter.embed(images[0]))) for _ in range(4)]
    together = [scene.timer(lambda: segmenter.embed_all(images)) for _ in range(4)]
    prompt = Prompt.from_points(height, width, [(width // 2, height // 2)])
    decoded = [scene.timer(lambda: segmenter.predict(outputs[-1], prompt)) for _ in range(10)]
    return {
        f"{name}, one image, ms": 1e3 * median(alone[1:]),
        f"{name}, an image of {BATCH}, ms": 1e3 * median(together[1:]) / BATCH,
        f"{name}, a prompt, ms": 1e3 * median(decoded[1:]),
    }


def rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the table: names and figures."""
    for name, value in found.items():
        if isinstance(value, dict):
            yield name, ", ".join(f"{label} {number:.3g}" for label, number in value.items())
        else:
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def main(options: Options) -> None:
    """Measure, print a table, and write JSON."""
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    table = Table("run", str(options.run))
    for row in rows(figures):
        table.add_row(*row)
    Console(width=110).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
