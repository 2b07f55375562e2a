"""Loss of accuracy by packing the traces of views.

    python -m benchmarks.packing --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

Each object is segmented from its true mask in one view, with the oracle in the others: on plain traces as the model
gives them, and on packed ones of the same views. Masks are rendered in the test views from plain traces, at the working
size, and scored against the exact instance maps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.oracle import read_ids, resize_nearest
from sa3d_nerfstudio.traces.atoms import atoms_of
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.nerf import NerfViewTrace
from sa3d_nerfstudio.traces.view_rays import ViewRays, pixel_angle


@dataclass
class Options:
    """Compare plain traces and packed ones."""

    scene: Path
    """Scene folder with instances/ and objects.json."""
    run: Path
    """Trained run on that scene."""
    views: int = 12
    """Number of training views, spread over all."""
    tests: int = 8
    """Number of test views."""
    atoms: tuple[int, ...] = (10, 8)
    """Numbers of atoms per ray."""


@dataclass
class Traces:
    """Training views with ready traces, in the interface that a session expects."""

    traces: list[ViewTrace]
    names: list[str]
    camera_to_worlds: Float[Tensor, "num_views 3 4"]

    def __len__(self) -> int:
        return len(self.traces)

    def name(self, view: int) -> str:
        """File name of the view's image."""
        return self.names[view]

    def trace(self, view: int) -> ViewTrace:
        """The view's trace."""
        return self.traces[view]

    def picture(self, view: int, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """Image for segmenters: the render, for any ``side``."""
        return self.traces[view].rgb

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.traces[view].height, self.traces[view].width

    def preload(self, view: int, picture: bool) -> None:
        """Do nothing: the traces are in memory."""

    def begin_pass(self) -> None:
        """Do nothing: the traces stay in memory."""


def packed(trace: NerfViewTrace, count: int) -> CompressedTrace:
    """Pack a plain trace into ``count`` atoms per ray."""
    angle = pixel_angle(trace.directions.reshape(trace.height, trace.width, 3))
    atoms = atoms_of(trace.samples, trace.origins, trace.directions, angle, count)
    rays = ViewRays.of(trace.origins, trace.directions, torch.eye(3))
    return CompressedTrace.pack(*atoms, trace.accumulation, trace.rgb, trace.depth, rays)


def main(options: Options) -> None:
    """Print the mean IoU of each object, plain and packed."""
    run = sa3d.load(options.run, segmenter="oracle", oracle_instances=options.scene / "instances", keep_cache=False)
    pipeline, views = run.pipeline, run.pipeline.views
    entries = json.loads((options.scene / "objects.json").read_text())["objects"]
    plain: dict[int, ViewTrace] = {}
    chosen = [round(i * len(views) / options.views) for i in range(options.views)]
    for view in chosen:
        plain[view] = pipeline.model.trace_view(views.camera(view))
    dataset = pipeline.datamanager.eval_dataset
    assert dataset is not None
    tests = []
    for index in range(min(options.tests, len(dataset))):
        camera = dataset.cameras[index : index + 1].to(pipeline.device)
        longest = max(int(camera.height.max()), int(camera.width.max()))
        camera.rescale_output_resolution(min(1.0, views.long_side / longest))
        tests.append((dataset.image_filenames[index].stem, pipeline.model.trace_view(camera)))
    kinds = {"plain": list(plain.values())}
    for count in options.atoms:
        kinds[f"{count} atoms"] = [packed(t, count) for t in plain.values() if isinstance(t, NerfViewTrace)]
    scores: dict[str, list[float]] = {kind: [] for kind in kinds}
    for entry in entries:
        for kind, traces in kinds.items():
            training = Traces(traces, [views.name(view) for view in chosen], views.camera_to_worlds[chosen])
            grid = pipeline.model.new_field(pipeline.config.resolution)
            session = SegmentationSession(training, pipeline.make_segmenter(), grid, SessionSettings())
            view, prompt = prompt_of(training, options.scene, entry["id"])
            session.prompt(view, prompt)
            session.run()
            scores[kind].append(score(session, tests, options.scene, entry["id"]))
        print(f"{entry['name']:12}", *(f"{kind} {values[-1]:.4f}" for kind, values in scores.items()), flush=True)
    print(f"{'mean':12}", *(f"{kind} {np.mean(values):.4f}" for kind, values in scores.items()))


def prompt_of(views: Traces, scene: Path, number: int) -> tuple[int, Prompt]:
    """View that shows most of an object, and a prompt by its true mask there."""
    masks = []
    for view in range(len(views)):
        trace = views.trace(view)
        ids = resize_nearest(
            read_ids(scene / "instances" / f"{Path(views.name(view)).stem}.png"), trace.height, trace.width
        )
        masks.append(torch.from_numpy(ids == number))
    view = max(range(len(masks)), key=lambda view: int(masks[view].sum()))
    return view, Prompt(*masks[view].shape, mask=masks[view])


def score(session: SegmentationSession, tests: list[tuple[str, ViewTrace]], scene: Path, number: int) -> float:
    """Mean IoU in the test views that show the object."""
    ious = []
    for stem, trace in tests:
        ids = np.asarray(Image.open(scene / "instances" / f"{stem}.png"))
        truth = torch.from_numpy(resize_nearest(ids, trace.height, trace.width) == number)
        if truth.float().mean() <= 0.001:
            continue
        probability = render_probability(trace, session.grid)[0].reshape(truth.shape).cpu()
        mask = probability > session.settings.threshold
        ious.append(float((mask & truth).sum() / (mask | truth).sum()))
    return float(np.mean(ious))


if __name__ == "__main__":
    main(tyro.cli(Options))
