"""Gain by virtual views around an object where few training views are visited, with exact masks of all views.

    python -m benchmarks.views_around --scene SCENE --run RUN

The scene is the demo's (``sa3d_nerfstudio.demo.scene``), whose ray tracer gives the true masks of any camera, and
the run is trained on it. The segmenter answers with the traced instance under a prompt, in training views and virtual
views alike. Objects are scored in views that no variant has visited.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.demo import layout
from sa3d_nerfstudio.demo.tracer import Camera, trace
from sa3d_nerfstudio.evaluation.metrics import iou
from sa3d_nerfstudio.exports.frames import frame_of
from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.oracle import IdMap, OracleSegmenter
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability


@dataclass
class Options:
    """Segment each object by one click in a few views, with and without virtual views around it."""

    scene: Path
    """Folder of the demo's scene."""
    run: Path
    """Trained run on that scene."""
    views: tuple[int, ...] = (1, 2, 4)
    """Numbers of training views that are visited beside the prompted one."""
    around: tuple[int, ...] = (0, 4, 8)
    """Numbers of virtual views around the object."""
    size: int = 64
    """Longer side, in pixels, of the images in which objects are scored."""
    output: Path | None = None
    """JSON file to write."""


class TracedSegmenter(OracleSegmenter):
    """Segmenter that answers with the traced instance under a prompt, in any view.

    Args:
        folder: Folder of the scene.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "instances")
        content = json.loads((folder / "transforms.json").read_text())
        self.poses = {Path(frame["file_path"]).stem: np.array(frame["transform_matrix"]) for frame in content["frames"]}
        self.focal = content["fl_x"] / content["w"]
        """Focal length of the photos, as a share of their width."""
        self.virtual: dict[str, tuple[Float[np.ndarray, "4 4"], float]] = {}
        """Pose and focal length (as a share of the width) of each virtual camera, by the last word of its name."""
        self.solids, self.room = layout.solids(), layout.room()

    def ids(self, pose: Float[np.ndarray, "4 4"], width: int, height: int, focal: float) -> IdMap:
        """Instance at each pixel of a camera."""
        camera = Camera(pose, width, height, focal * width)
        instances = trace(*camera.rays(), self.solids, self.room)[0]
        return instances.reshape(height, width).astype(np.int32)

    def embed(self, image: SegmenterImage) -> IdMap:
        """Instances of an image, or of a window of it."""
        word = image.name.split()[-1]
        if word in self.virtual:
            pose, focal = self.virtual[word]
            return self.ids(pose, image.width, image.height, focal)
        y0, x0, y1, x1 = image.window or (0.0, 0.0, 1.0, 1.0)
        height, width = round(image.height / (y1 - y0)), round(image.width / (x1 - x0))
        top, left = round(y0 * height), round(x0 * width)
        ids = self.ids(self.poses[Path(image.name).stem], width, height, self.focal)
        return ids[top : top + image.height, left : left + image.width]


class Benchmark:
    """Sessions on one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.run = sa3d.load(options.run, segmenter="grabcut", keep_cache=False)
        self.pipeline = self.run.pipeline
        self.views = self.pipeline.views
        self.segmenter = TracedSegmenter(options.scene)
        self.prompts = json.loads((options.scene / "prompts.json").read_text())["objects"]
        frame, render_from = frame_of(self.pipeline, world=True), self.views.render_from

        def recorded(pose: Float[Tensor, "3 4"], angle: float, side: int) -> ViewTrace:
            matrix = np.eye(4)
            matrix[:3, :3] = frame.directions(pose[:, :3].T).T.numpy()
            matrix[:3, 3] = frame.points(pose[None, :, 3])[0].numpy()
            self.segmenter.virtual[digest([pose, side])[:8]] = (matrix, 1 / (2 * math.tan(angle / 2)))
            return render_from(pose, angle, side)

        self.views.render_from = recorded  # type: ignore[method-assign]

    def session(self, entry: dict, views: int, around: int) -> SegmentationSession:
        """Segment an object by one click, with ``views`` training views and ``around`` virtual ones."""
        config = self.pipeline.config
        config.num_views, config.views_around = views, around
        session = self.pipeline.session(entry["name"], self.segmenter, register=False)
        view = self.views.find(Path(entry["frame"]).name)
        height, width = self.views.image_size(view)
        session.prompt(view, Prompt.from_points(height, width, entry["points"][:1]))
        session.run()
        return session

    @torch.no_grad()
    def score(self, entry: dict, sessions: dict[tuple[int, int], SegmentationSession]) -> dict[tuple[int, int], float]:
        """Mean IoU of each session on an object, in views that no session has visited."""
        visited = {view for session in sessions.values() for view in session.report.last()}
        scores: dict[tuple[int, int], list[float]] = {way: [] for way in sessions}
        for view in [view for view in range(len(self.views)) if view not in visited]:
            view_trace = self.views.window_trace(view, self.views.frame(view, self.options.size / self.views.long_side))
            pose = self.segmenter.poses[Path(self.views.name(view)).stem]
            truth = self.segmenter.ids(pose, view_trace.width, view_trace.height, self.segmenter.focal) == entry["id"]
            for way, session in sessions.items():
                mask = render_probability(view_trace, session.grid)[0].reshape(truth.shape) > 0.5
                if truth.sum() > 3:
                    scores[way].append(iou(mask.cpu().numpy(), truth))
        return {way: float(np.mean(values)) for way, values in scores.items()}


def main(options: Options) -> None:
    """Print a row for each object, and the means."""
    benchmark = Benchmark(options)
    ways = [(views, around) for views in options.views for around in options.around]
    rows = {}
    for entry in benchmark.prompts:
        rows[entry["name"]] = benchmark.score(entry, {way: benchmark.session(entry, *way) for way in ways})
        print(
            entry["name"], {f"{views}+{around}": f"{rows[entry['name']][views, around]:.3f}" for views, around in ways}
        )
    table = Table("object", *(f"{views} views, {around} around" for views, around in ways))
    for name, row in rows.items():
        table.add_row(name, *(f"{row[way]:.3f}" for way in ways))
    table.add_row("mean", *(f"{np.mean([row[way] for row in rows.values()]):.3f}" for way in ways))
    Console(width=150).print(table)
    if options.output is not None:
        result = {
            name: {f"{views}+{around}": row[views, around] for views, around in ways} for name, row in rows.items()
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
