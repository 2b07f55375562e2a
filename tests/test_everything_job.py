"""The job that segments all objects of a scene: its saved objects, and how it resumes."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio import jobs
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.objects import PALETTE, MaskObjects, next_color
from sa3d_nerfstudio.jobs import SceneJob, run_scene_job, segment_scene
from sa3d_nerfstudio.pipeline import SA3DPipelineConfig
from sa3d_nerfstudio.segmentation.everything import SceneProgress, SceneSegmentation
from sa3d_nerfstudio.segmenters.oracle import OracleSegmenter
from sa3d_nerfstudio.trainer import SA3DTrainer, default_config
from tests.analytic import BallViews
from tests.segmentation.test_everything import scene_of


@dataclass
class Masked:
    """The attributes of a model that a job uses."""

    masks: MaskObjects


@dataclass
class Sized:
    """The attributes of the training views that a job uses."""

    long_side: int = 64


class BallPipeline:
    """The attributes of a pipeline that a job uses; the scene consists of the balls."""

    views = Sized()

    def __init__(self, **options: Any) -> None:
        self.config = SA3DPipelineConfig(**options)
        self.model = Masked(MaskObjects(lambda cells: MaskGrid(round(cells ** (1 / 3)))))

    def scene(self, segmenter: object = None) -> SceneSegmentation:
        return scene_of(BallViews(), max_objects=self.config.everything_max_objects)[0]

    def reloaded(self, **options: Any) -> BallPipeline:
        """The same run with other options, saved and loaded."""
        file = io.BytesIO()
        torch.save(self.model.masks.state_dict(), file)
        file.seek(0)
        pipeline = BallPipeline(**options)
        pipeline.model.masks.load_state_dict(torch.load(file, weights_only=True))
        return pipeline


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_a_job_that_was_bounded_goes_on_and_is_done_once():
    saved: list[int] = []
    first: Any = BallPipeline(everything_max_objects=1)
    run_scene_job(first, lambda: None, lambda: saved.append(len(first.model.masks)), quiet())  # type: ignore[arg-type, return-value]
    assert saved[:1] == [1]
    assert not first.model.masks.scene["done"]
    second: Any = first.reloaded()
    report = segment_scene(second, None)  # type: ignore[arg-type]
    assert report.sessions == 2
    assert second.model.masks.names == ["object 1", "object 2", "object 3"]
    assert set(second.model.masks.parents.values()) == {None}
    assert second.model.masks.hidden == set()
    third: Any = second.reloaded()
    assert SceneJob(third).is_done
    assert run_scene_job(third, lambda: pytest.fail("nothing is to be segmented"), lambda: None, quiet()) is None


@pytest.mark.parametrize("prompted", [False, True])
def test_other_settings_begin_again_and_leave_the_users_objects(prompted: bool):
    pipeline: Any = BallPipeline(everything_max_objects=2)
    segment_scene(pipeline, None)  # type: ignore[arg-type]
    masks = pipeline.model.masks
    users = "object 1"
    if prompted:
        masks[users] = masks[users]
        masks.finished[users] = "checksum of its prompts"
    else:
        # Editing an object in the viewer takes it out of the job.
        del masks.finished[users]
    reloaded: Any = pipeline.reloaded(everything_max_objects=2, everything_min_share=0.002)
    job = SceneJob(reloaded)
    assert not job.is_done
    scene = job.begin(None)  # type: ignore[arg-type]
    assert reloaded.model.masks.names == [users]
    for step in scene.steps():
        if step.found is not None:
            job.keep(scene, step.found)
    assert len(reloaded.model.masks) == 2
    assert reloaded.model.masks.scene["names"] == [reloaded.model.masks.names[1]]


def test_a_found_object_takes_no_name_of_an_empty_one():
    first: Any = BallPipeline(everything_max_objects=1)
    segment_scene(first, None)  # type: ignore[arg-type]
    first.model.masks["object 2"] = MaskGrid(16)  # as the viewer's "New object" makes it
    second: Any = first.reloaded()
    segment_scene(second, None)  # type: ignore[arg-type]
    masks = second.model.masks
    holding = [name for name in masks.names if masks[name].holds_object(masks.threshold)]
    assert holding == masks.scene["names"] == ["object 1", "object 3", "object 4"]


@pytest.mark.parametrize("stage", ["proposals", "kept"])
def test_a_continued_job_keeps_its_record_until_all_objects_are_back(stage: str):
    first: Any = BallPipeline(everything_max_objects=2)
    segment_scene(first, None)  # type: ignore[arg-type]
    before = first.model.masks.get_extra_state()
    continued: Any = first.reloaded()
    scene = continued.scene()
    steps, saved = scene.steps, []

    def interrupted() -> Iterator[SceneProgress]:
        for step in steps():
            if step.stage == stage:
                signal.raise_signal(signal.SIGINT)
            yield step

    scene.steps = interrupted
    continued.scene = lambda segmenter: scene
    run_scene_job(continued, lambda: None, lambda: saved.append(1), quiet())  # type: ignore[arg-type, return-value]
    assert continued.model.masks.get_extra_state() == before
    assert saved == []


def test_names_are_no_markup():
    first: Any = BallPipeline(everything_max_objects=1)
    segment_scene(first, None)  # type: ignore[arg-type]
    named: Any = BallPipeline(everything_max_objects=1)
    named.model.masks["shelf [/left]"] = first.model.masks["object 1"]
    console = quiet()
    run_scene_job(named, lambda: None, lambda: None, console)  # type: ignore[arg-type, return-value]
    assert "shelf [/left] is there already" in console.file.getvalue()  # type: ignore[attr-defined]


def test_an_error_loses_no_object_since_the_last_save(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs, "SAVING_SHARE", 1e-9)
    pipeline: Any = BallPipeline()
    scene = pipeline.scene()
    steps, saved = scene.steps, []

    def failing() -> Iterator[SceneProgress]:
        for step in steps():
            yield step
            if len(scene.objects) == 2:
                raise RuntimeError("out of memory")

    scene.steps = failing
    pipeline.scene = lambda segmenter: scene
    masks = pipeline.model.masks
    with pytest.raises(RuntimeError, match="out of memory"):
        run_scene_job(pipeline, lambda: None, lambda: saved.append((masks.names, masks.scene["names"])), quiet())  # type: ignore[arg-type, return-value]
    assert saved == [(["object 1"], ["object 1"]), (["object 1", "object 2"], ["object 1", "object 2"])]


def test_a_save_that_fails_is_not_repeated():
    pipeline: Any = BallPipeline()
    tries: list[int] = []

    def save() -> None:
        tries.append(1)
        raise sa3d.SA3DError("no room: the objects are safe for now elsewhere.")

    with pytest.raises(sa3d.SA3DError, match="no room"):
        run_scene_job(pipeline, lambda: None, save, quiet())  # type: ignore[arg-type, return-value]
    assert len(tries) == 1


def test_a_job_is_known_by_the_segmenter_that_did_it():
    first: Any = BallPipeline()

    def accepted() -> None:
        first.config.segmenter = "grabcut"

    run_scene_job(first, accepted, lambda: None, quiet())  # type: ignore[arg-type]
    assert not SceneJob(first.reloaded()).is_done
    assert SceneJob(first.reloaded(segmenter="grabcut")).is_done


def test_hundreds_of_objects_differ_in_colour():
    colors: list[tuple[float, float, float]] = []
    for _ in range(200):
        colors.append(next_color(colors))
    assert tuple(colors[: len(PALETTE)]) == PALETTE
    assert len(set(colors)) == 200


def trainer_of(run: Path, scene: Path, output: Path) -> SA3DTrainer:
    """Trainer of ``ns-train sa3d --pipeline.everything True``."""
    config = default_config()
    config.load_dir, config.output_dir, config.vis, config.timestamp = run, output, "tensorboard", "E"
    config.pipeline.everything, config.pipeline.everything_views = True, 3
    config.pipeline.segmenter, config.pipeline.oracle_instances = "oracle", scene / "instances"
    config.pipeline.working_size, config.pipeline.resolution = 32, 24
    config.set_timestamp()
    trainer = SA3DTrainer(config)
    trainer.setup()
    return trainer


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    tiny_run, tiny_scene, tmp_path, monkeypatch, capsys
):
    original = OracleSegmenter.predict
    stopped: list[int] = []
    trainer = trainer_of(tiny_run, tiny_scene, tmp_path)

    def predict(self: Any, *arguments: Any) -> Any:
        if trainer.pipeline.model.masks.names and not stopped:
            stopped.append(1)
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(OracleSegmenter, "predict", predict)
        trainer.train()
    printed = capsys.readouterr().out
    assert "stopped by Ctrl-C" in printed
    assert "unfinished" in printed
    assert sa3d.load(trainer.base_dir).objects == ["object 1"]
    resumed = trainer_of(tiny_run, tiny_scene, tmp_path)
    resumed.train()
    printed = capsys.readouterr().out
    assert "object 1 is there already" in printed or "explained" in printed
    loaded = sa3d.load(resumed.base_dir)
    assert len(loaded.objects) >= 3
    assert loaded.pipeline.model.masks.parents.keys() == set(loaded.objects)
    trainer_of(tiny_run, tiny_scene, tmp_path).train()
    assert "taken apart before" in capsys.readouterr().out
