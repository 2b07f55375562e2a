"""Segmenting and scoring the scenes of a benchmark, each in its trained run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console

from sa3d_nerfstudio.api import load
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.metrics import Mask, boundary_iou, iou, pixel_accuracy
from sa3d_nerfstudio.evaluation.report import BenchmarkReport, ImageScore, SceneScore
from sa3d_nerfstudio.evaluation.run_images import RunImages
from sa3d_nerfstudio.evaluation.scene_runs import find_scene_run
from sa3d_nerfstudio.evaluation.task import Target, Task, resized
from sa3d_nerfstudio.segmentation.session import SegmentationSession, SessionSettings

RULES = (
    "masks: rendered at the size of the run's images, cut at the threshold in the settings, which no target has a say "
    "in, and brought to the size of the true mask by the nearest pixel",
    "IoU = TP / (TP + FP + FN), accuracy = (TP + TN) / all pixels",
)


@dataclass
class BenchmarkOptions:
    """What all benchmarks ask for."""

    data: Path
    """The data set's folder, as published."""
    runs: str
    """Folder with SCENE/METHOD/TIME below it, as ns-train writes; or a path with {scene} in it."""
    scenes: tuple[str, ...] = ()
    """Only these scenes."""
    method: str | None = None
    """Only runs of this method; needed where a scene has runs of several."""
    segmenter: str = "sam-vit-h"
    """2D segmenter: sam-vit-h, sam-vit-l, sam-vit-b, grabcut (needs no weights), oracle, or a plugin's."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model."""
    oracle_instances: Path | None = None
    """For the oracle: folder of id maps named like the images; may have {scene} in it."""
    working_size: int | None = None
    """Longer side of the images in which views are segmented; by default 1008 on CUDA and 160 on a CPU."""
    resolution: int = 128
    """Vertices of the mask grid along each axis."""
    device: str | None = None
    """cuda or cpu; by default CUDA where there is one."""
    output: Path | None = None
    """JSON file to write; it is written anew after each scene."""
    masks: Path | None = None
    """Folder to write the masks to: SCENE/IMAGE.png, 255 = object, at the size of the true masks."""
    session: Annotated[SessionSettings, tyro.conf.arg(name="")] = field(default_factory=SessionSettings)
    """How views are segmented and lifted"""

    def for_load(self, scene: str) -> dict[str, Any]:
        """The options of :func:`sa3d_nerfstudio.load`."""
        oracle = self.oracle_instances
        return {
            "device": self.device,
            "segmenter": self.segmenter,
            "sam_checkpoint": self.sam_checkpoint,
            "oracle_instances": None if oracle is None else Path(str(oracle).replace("{scene}", scene)),
            "working_size": self.working_size,
            "resolution": self.resolution,
            **asdict(self.session),
        }


def run_benchmark(tasks: list[Task], options: BenchmarkOptions, report: BenchmarkReport, console: Console) -> None:
    """Evaluate all tasks, print and write what comes of them.

    A scene without a run is listed as missing. One whose run does not fit is listed as failed, and the others go on.

    Args:
        tasks: What to segment and to score.
        options: How, and where the runs are.
        report: Filled in.
        console: Where to print.

    Raises:
        SA3DError: No scene has a run, or some came to nothing.
    """
    runs = {task.scene: find_scene_run(options.runs, task.run_names, options.method) for task in tasks}
    if not any(runs.values()):
        raise SA3DError(
            f"there is no run of any of {', '.join(runs)} in {options.runs}: train one for each, "
            "into a folder of the scene's name."
        )
    report.missing = {scene: f"there is no run of it in {options.runs}" for scene, run in runs.items() if run is None}
    for task in tasks:
        run = runs[task.scene]
        if run is None:
            continue
        console.rule(task.scene)
        try:
            report.scenes.append(evaluate_task(task, run, options, console))
        except SA3DError as error:
            report.failed[task.scene] = str(error)
            console.print(f"failed: {error}", highlight=False, soft_wrap=True)
        if options.output is not None:
            report.write(options.output)
    report.print(console)
    if report.failed:
        failed = "; ".join(f"{scene}: {why.rstrip('.')}" for scene, why in report.failed.items())
        raise SA3DError(f"{len(report.failed)} of {len(tasks)} scenes failed ({failed}).")


def evaluate_task(task: Task, run_path: Path, options: BenchmarkOptions, console: Console) -> SceneScore:
    """Segment one scene and score it.

    Raises:
        SA3DError: The run cannot be used, or does not fit the annotations, or nothing came of the prompt.
    """
    run = load(run_path, **options.for_load(task.scene))
    pipeline = run.pipeline
    if run.objects:
        raise SA3DError(f"{run_path} has been segmented already: give the run that it was made from.")
    images = RunImages(pipeline)
    reference = images.find(task.reference, task.num_images)
    images.check_shape(reference, task.prompt.height, task.prompt.width)
    # All of them before the long loop.
    targets = [(target, images.find(target.name, task.num_images)) for target in task.targets]
    for target, image in targets:
        images.check_shape(image, *target.mask().shape)

    session = pipeline.session(task.scene)
    prompt = _amount(task)
    given = ", ".join(f"{number} {what}" for what, number in prompt.items())
    console.print(f"prompt  {given} in {reference.path.name}", highlight=False)
    session.prompt(images.prompted_view(session, reference), task.prompt)
    _run(session, task.scene, console)

    scores = []
    for target, image in targets:
        with torch.no_grad():
            rendered = (run.mask(image.camera) > options.session.threshold).cpu().numpy()
        truth = target.mask()
        mask = resized(rendered, *truth.shape)
        if options.masks is not None:
            _save(options.masks / task.scene / f"{target.name}.png", mask)
        scores.append(_score(target, mask, truth, target.name == task.reference, image.training_view is not None))
    states = Counter(record.state for record in session.report.last().values())
    seconds = sum(session.report.seconds.values())
    size = pipeline.views.long_side
    result = SceneScore(task.scene, str(run_path), scores, reference.path.name, prompt, dict(states), size, seconds)
    mean = result.mean()
    assert mean is not None
    console.print(f"IoU     {100 * mean['iou']:.1f} in {seconds:.0f} s", highlight=False)
    return result


def _run(session: SegmentationSession, scene: str, console: Console) -> None:
    """All steps; unlike in the plugin's own command, Ctrl-C ends it, for half a session is no result."""
    with console.status(scene) as status:
        for number, record in enumerate(session.steps(), start=1):
            status.update(f"{scene}: pass {record.number_of_pass}, step {number}")
    if session.grid.is_empty:
        raise SA3DError("the object is empty, as no surface lies behind the prompted pixels: train the run for longer.")


def _amount(task: Task) -> dict[str, int]:
    if task.prompt.mask is not None:
        return {"mask pixels": int(task.prompt.mask.sum())}
    return {"positive": len(task.prompt.positive), "negative": len(task.prompt.negative)}


def _score(target: Target, mask: Mask, truth: Mask, is_reference: bool, trained_on: bool) -> ImageScore:
    return ImageScore(
        target.name,
        iou(mask, truth),
        pixel_accuracy(mask, truth),
        boundary_iou(mask, truth),
        is_reference,
        trained_on,
    )


def _save(path: Path, mask: Mask) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(path)
