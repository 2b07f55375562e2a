"""Segment and score the scenes of a benchmark, each in its trained run."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
from nerfstudio.utils.rich_utils import CONSOLE
from PIL import Image

from sa3d_nerfstudio.api import load
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.metrics import Mask, boundary_iou, iou, pixel_accuracy
from sa3d_nerfstudio.evaluation.options import BenchmarkOptions
from sa3d_nerfstudio.evaluation.report import BenchmarkReport, ImageScore, SceneScore
from sa3d_nerfstudio.evaluation.run_images import RunImages, prompted_view
from sa3d_nerfstudio.evaluation.scene_runs import PLACEHOLDER, find_scene_run
from sa3d_nerfstudio.evaluation.settings import session_settings
from sa3d_nerfstudio.evaluation.task import Target, Task, resized
from sa3d_nerfstudio.files import check_writable
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.terminal import say

RULES = (
    "masks: rendered at the size of the run's images, cut at the threshold in the settings (the same for all), "
    "and brought to the size of the true mask by the nearest pixel",
    "IoU = TP / (TP + FP + FN), accuracy = (TP + TN) / all pixels",
)


def run_benchmark(tasks: list[Task], options: BenchmarkOptions, report: BenchmarkReport) -> None:
    """Evaluate all tasks, print and write the report.

    A scene without a run is listed as missing. A scene whose run does not fit is listed as failed, and the remaining
    scenes are still evaluated.

    Args:
        tasks: Objects to segment, and images to score.
        options: Segmenter, settings and folders.
        report: Report to fill in.

    Raises:
        SA3DError: No scene has a run, or a scene failed.
    """
    settings = session_settings(options.settings)
    report.settings = {**asdict(options), "settings": asdict(settings)}
    runs = {task.scene: find_scene_run(options.runs, task.run_names, options.method) for task in tasks}
    if not any(runs.values()):
        raise SA3DError(
            f"there is no run of any of {', '.join(runs)} in {options.runs}: train one for each, "
            "into a folder of the scene's name."
        )
    report.missing = {scene: f"there is no run of it in {options.runs}" for scene, run in runs.items() if run is None}
    for folder in (options.masks, options.output and options.output.parent):
        if folder is not None:
            check_writable(folder)
    for task in tasks:
        run = runs[task.scene]
        if run is None:
            continue
        CONSOLE.rule(task.scene)
        try:
            report.scenes.append(evaluate_task(task, run, options, settings))
        except SA3DError as error:
            report.failed[task.scene] = str(error)
            say(f"failed      {error}")
        if options.output is not None:
            report.write(options.output)
    report.print(CONSOLE)
    if report.failed:
        failed = "; ".join(f"{scene}: {reason.rstrip('.')}" for scene, reason in report.failed.items())
        raise SA3DError(f"{len(report.failed)} of {len(tasks)} scenes failed ({failed}).")


def evaluate_task(task: Task, run_path: Path, options: BenchmarkOptions, settings: SessionSettings) -> SceneScore:
    """Segment one scene and score it.

    Args:
        task: Prompt and scored images.
        run_path: Path of the scene's run.
        options: Segmenter, sizes, and folder for the masks.
        settings: Settings of segmentation and lifting.

    Raises:
        SA3DError: The run cannot be used, or does not fit the annotations, or the object is empty.
    """
    oracle = options.oracle_instances
    run = load(
        run_path,
        device=options.device,
        segmenter=options.segmenter,
        sam_checkpoint=options.sam_checkpoint,
        oracle_instances=None if oracle is None else Path(str(oracle).replace(PLACEHOLDER, task.scene)),
        working_size=options.working_size,
        **asdict(settings),
    )
    pipeline = run.pipeline
    if run.objects:
        raise SA3DError(f"{run_path} has been segmented already: give the run that it was made from.")
    images = RunImages(pipeline.datamanager, pipeline.training_cameras())
    reference = images.find(task.reference, task.num_images)
    reference.check_shape(task.prompt.height, task.prompt.width)
    # Check all targets before the long loop.
    targets = [(target, images.find(target.name, task.num_images)) for target in task.targets]
    for target, image in targets:
        image.check_shape(*target.mask().shape)

    session = pipeline.session(task.scene)
    prompt = _amount(task)
    amounts = ", ".join(f"{number} {kind}" for kind, number in prompt.items())
    CONSOLE.print(f"prompt      {amounts} in {reference.path.name}", highlight=False, markup=False)
    session.prompt(prompted_view(pipeline, session, reference), task.prompt)
    _run(session, task.scene)

    scores = []
    for target, image in targets:
        # Models that render ray by ray render only rays that pass the object, as no other output is requested.
        probability = pipeline.model.render_outputs(image.camera, ("mask",))["mask"][..., 0]
        rendered = (probability > settings.threshold).cpu().numpy()
        truth = target.mask()
        mask = resized(rendered, *truth.shape)
        if options.masks is not None:
            _save(options.masks / task.scene / f"{target.name}.png", mask)
        scores.append(_score(target, mask, truth, target.name == task.reference, image.training_view is not None))
    states = Counter(record.state for record in session.report.last().values())
    seconds = sum(session.report.seconds.values())
    size = pipeline.views.long_side
    result = SceneScore(task.scene, str(run_path), scores, reference.path.name, prompt, dict(states), size, seconds)
    used, trained = states["used"] + states["prompt"], sum(score.trained_on for score in scores)
    CONSOLE.print(f"views used  {used} of {states.total()}, in {seconds:.0f} s", highlight=False)
    CONSOLE.print(f"scored      {len(scores)} images, {trained} of which the run was trained on", highlight=False)
    return result


def _run(session: SegmentationSession, scene: str) -> None:
    """Run all steps of a session; unlike in ns-train sa3d, Ctrl-C ends the run, since half a session is no result."""
    with CONSOLE.status(scene) as status:
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
