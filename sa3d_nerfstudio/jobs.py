"""Finished and remaining objects of a run, those of a whole-scene job included."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console

from sa3d_nerfstudio.base_run.find import BaseRun, find_run
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.pipeline import SA3DPipeline, SA3DPipelineConfig
from sa3d_nerfstudio.prompts.config import ObjectPrompts
from sa3d_nerfstudio.segmentation.everything import SceneObject, SceneReport, SceneSegmentation
from sa3d_nerfstudio.segmentation.everything_progress import print_scene_report, run_scene_with_progress
from sa3d_nerfstudio.segmenters.base import Segmenter
from sa3d_nerfstudio.terminal import say

_NO_PART_OF_A_JOB = frozenset(
    {"_target", "datamanager", "model", "base", "prompt", "object_name", "object_background", "save_base", "redo"}
    | {"cache_gb", "cache_disk_gb", "keep_cache", "cache_dir", "sam_download", "encode_batch"}
    | {"everything", "everything_views", "everything_min_share", "everything_max_objects", "everything_max_minutes"}
    | {"everything_text"}
)


def job_digest(prompts: ObjectPrompts, config: SA3DPipelineConfig, working_size: int) -> str:
    """Checksum of an object's prompts and of the settings that affect it: equal checksums mean equal objects.

    Settings at their defaults are left out, so that a setting that a later version adds changes no checksum. A changed
    default changes none either, like any other change of the code.

    Args:
        prompts: The object's prompts.
        config: The settings.
        working_size: Longer side of the images, which the settings may leave to the machine: objects segmented in the
            small images of a CPU differ from those of a GPU.
    """
    defaults = type(config)()
    settings = {
        field.name: str(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _NO_PART_OF_A_JOB and getattr(config, field.name) != getattr(defaults, field.name)
    }
    settings["long_side"] = str(working_size)
    sums = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for view in sorted(prompts.views):
        prompt = prompts.views[view]
        for name, value in [("view", view), *vars(prompt).items()]:
            plain = value.tolist() if isinstance(value, torch.Tensor) else value
            sums.update(json.dumps([name, plain]).encode())
    return sums.hexdigest()


def run_in_folder(folder: Path, base_checkpoint: Path) -> BaseRun | None:
    """Find the sa3d run in the folder of a new one, if both have the same base run.

    Args:
        folder: Folder of the new run.
        base_checkpoint: Checkpoint of its base run.
    """
    if not (folder / "config.yml").is_file():
        return None
    run = find_run(folder)
    base = getattr(run.config.pipeline, "base", None)
    return run if run.is_sa3d and base is not None and base.checkpoint == base_checkpoint else None


def print_progress_so_far(kept: Sequence[str], to_do: Sequence[str], there: Sequence[str]) -> None:
    """Print which objects of a continued run are kept, redone, or new.

    Args:
        kept: Names of finished objects.
        to_do: Names of the objects to segment.
        there: Names of the objects in the run.
    """
    lines = {
        "kept": (kept, "finished before, with the same prompts (--pipeline.redo True does them again)"),
        "redone": ([name for name in to_do if name in there], "not finished before, or prompted in another way"),
        "to do": ([name for name in to_do if name not in there], "not in the run that is continued"),
    }
    for word, (names, why) in lines.items():
        if names:
            say(f"{word:11} {', '.join(names)}: {why}")


SAVING_SHARE = 0.05
"""Largest share of the time for saving: with a large checkpoint, several objects are finished between two saves."""


def scene_digest(config: SA3DPipelineConfig, working_size: int) -> str:
    """Checksum of a whole-scene job's settings except its bounds; see :func:`job_digest`."""
    settings = job_digest(ObjectPrompts("everything"), config, working_size)
    words = [config.everything_text] if config.everything_text else []
    return digest([settings, config.everything_views, config.everything_min_share, *words])


class SceneJob:
    """Job that segments all objects of a run's scene.

    ``masks.scene`` is the state in checkpoints from which the job continues: ``job``, a checksum of the settings;
    ``names`` of the objects found; ``tried``, the proposals that need not be tried again, as pairs of view and number;
    and ``done``, whether the job is finished.

    Args:
        pipeline: The run.
    """

    def __init__(self, pipeline: SA3DPipeline) -> None:
        self.pipeline = pipeline
        self.digest = scene_digest(pipeline.config, pipeline.views.long_side)

    @property
    def masks(self) -> MaskObjects:
        """The objects of the run."""
        return self.pipeline.model.masks

    @property
    def is_done(self) -> bool:
        """Whether the run holds all objects of this job already."""
        return bool(self.masks.scene.get("done")) and self.is_same and not self.pipeline.config.redo

    @property
    def is_same(self) -> bool:
        """Whether the job saved in the run had the same settings."""
        return self.masks.scene.get("job") == self.digest

    def begin(self, segmenter: Segmenter) -> SceneSegmentation:
        """Begin or resume the job with the run's objects; those that a job with other settings found are dropped."""
        masks = self.masks
        # The user may have accepted another segmenter than was configured when the job was made.
        self.digest = scene_digest(self.pipeline.config, self.pipeline.views.long_side)
        if not self.is_same or self.pipeline.config.redo:
            for name in masks.scene.get("names", ()):
                # Objects edited or prompted since are not marked as finished by this job, and belong to the user.
                if name in masks and masks.finished.get(name) == masks.scene.get("job"):
                    del masks[name]
            masks.scene = {}
        scene = self.pipeline.scene(segmenter)
        fields = {name: masks[name] for name in masks.names if masks[name].holds_object(masks.threshold)}
        scene.resume(fields, [(view, index) for view, index in masks.scene.get("tried", ())], masks.names)
        return scene

    def keep(self, scene: SceneSegmentation, found: SceneObject) -> None:
        """Add an object to the run, and record the job's progress there."""
        masks = self.masks
        if found.name not in masks:
            masks[found.name] = found.field
            masks.finished[found.name] = self.digest
        self.note(scene)

    def note(self, scene: SceneSegmentation) -> None:
        """Record the job's progress in the run, and hide parts and wholes of shown objects.

        Until the scene has added the objects that the run held, the record in the run is the complete one, and stays.
        """
        if not scene.is_resumed:
            return
        masks = self.masks
        names = [name for name in scene.objects if masks.finished.get(name) == self.digest]
        done = scene.report.ending == "nothing is left"
        tried = [list(key) for key in scene.tried]
        masks.scene = {"job": self.digest, "names": names, "tried": tried, "done": done}
        masks.parents = dict(scene.tree.parents)
        masks.hidden = (masks.hidden - set(names)) | (set(names) - set(scene.cut))


def segment_scene(pipeline: SA3DPipeline, segmenter: Segmenter) -> SceneReport:
    """Segment all objects of a run's scene, or those that remain, without output.

    Args:
        pipeline: The run; objects that it holds already are kept, and count as explained.
        segmenter: Segmenter that proposes objects, and segments them in all views.
    """
    job = SceneJob(pipeline)
    if job.is_done:
        return SceneReport(ending="nothing is left")
    scene = job.begin(segmenter)
    for step in scene.steps():
        if step.found is not None:
            job.keep(scene, step.found)
    job.note(scene)
    return scene.report


def run_scene_job(
    pipeline: SA3DPipeline, segmenter: Callable[[], Segmenter], save: Callable[[], None], console: Console
) -> SceneReport | None:
    """Segment all objects of a run's scene, or those that remain, under a progress bar.

    Args:
        pipeline: The run; objects that it holds already are kept, and count as explained.
        segmenter: Builds the segmenter; called only if the job is not finished.
        save: Writes the run in its present state.
        console: Console for the progress and the report.

    Returns:
        Report of the job; None if it had been finished before.
    """
    job = SceneJob(pipeline)
    if job.is_done:
        say("kept        the scene was taken apart before, by the same settings (--pipeline.redo True does it again)")
        return None
    scene = job.begin(segmenter())
    saved = time.monotonic()
    took = 0.0
    is_saving = False

    def keep(found: SceneObject) -> None:
        nonlocal saved, took, is_saving
        job.keep(scene, found)
        if scene.is_resumed and time.monotonic() - saved >= took / SAVING_SHARE:
            begun = time.monotonic()
            is_saving = True
            save()
            is_saving = False
            saved = time.monotonic()
            took = saved - begun

    try:
        run_scene_with_progress(scene, console, keep)
    except Exception:
        # Objects found since the last save; a save that has failed is not repeated.
        if scene.is_resumed and not is_saving:
            job.note(scene)
            save()
        raise
    job.note(scene)
    print_scene_report(scene, console)
    return scene.report
