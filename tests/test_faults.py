"""Faults of a user's run: each ends in one sentence, and none loses finished work."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio import trainer as trainers
from sa3d_nerfstudio.base_run.checkpoint import check_finite
from sa3d_nerfstudio.errors import EmptyObjectError, SA3DError
from sa3d_nerfstudio.prompts.config import PromptConfig
from sa3d_nerfstudio.segmentation import progress
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmenters.oracle import OracleSegmenter
from sa3d_nerfstudio.trainer import SA3DTrainer, default_config
from tests.small_models import small_splats
from tests.subprocesses import ROOT, run

slow = pytest.mark.slow


def trainer_for(tiny_run: Path, scene: Path, output: Path, *names: str, data: Path | None = None) -> SA3DTrainer:
    """Trainer of ns-train with a prompt file of these objects."""
    objects = json.loads((scene / "prompts.json").read_text())["objects"]
    prompts = output.parent / f"{'-'.join(names)}.json"
    prompts.write_text(json.dumps({"objects": [item for item in objects if item["name"] in names]}))
    config = default_config()
    config.load_dir, config.output_dir, config.data, config.vis = tiny_run, output, data, "tensorboard"
    config.pipeline.prompt = PromptConfig(file=prompts, kinds=("points",))
    config.pipeline.segmenter, config.pipeline.oracle_instances = "oracle", scene / "instances"
    config.pipeline.working_size, config.pipeline.resolution = 16, 24
    config.set_timestamp()
    trainer = SA3DTrainer(config)
    trainer.setup()
    return trainer


@contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """Simulate a full disk: writing files past this size fails, in this process alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@slow
def test_a_disk_that_is_too_full_for_the_base_weights_still_holds_the_masks(tiny_run, tiny_scene, tmp_path, capsys):
    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
    size = trainer.pipeline.checkpoint_bytes()
    with files_no_larger_than(size // 2):
        trainer.train()
    assert "saved without the base weights" in capsys.readouterr().out
    reloaded = sa3d.load(trainer.base_dir)
    assert reloaded.objects == ["ball"]
    assert reloaded.mask(0).shape == (24, 32)
    assert not list(trainer.base_dir.rglob("saving-0.*"))


@slow
def test_what_cannot_be_saved_where_it_belongs_is_saved_elsewhere(tiny_run, tiny_scene, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
    session = trainer.pipeline.session("ball")
    prompt = trainer.pipeline.prompts_from_config()[0]
    for view, prompted in prompt.views.items():
        session.prompt(view, prompted)
    session.run()
    # A file takes the place of the folder while the job runs.
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(SA3DError, match="the objects are safe for now in") as error:
        trainer.save({"ball": session})
    folder = Path(str(error.value).rsplit(" in ", 1)[1].rstrip("."))
    assert sa3d.load(folder).objects == ["ball"]
    # With the file removed, the next save goes to the run's own folder, with the base weights.
    (tmp_path / "out").unlink()
    trainer.save({"ball": session})
    assert trainer.base_dir.is_relative_to(tmp_path / "out")
    assert trainer.config.pipeline.save_base
    assert sa3d.load(trainer.base_dir).objects == ["ball"]


@slow
def test_what_is_printed_or_drawn_after_an_object_costs_no_object(tiny_run, tiny_scene, tmp_path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise ValueError("x1 must be greater than x0")

    drawn = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
    monkeypatch.setattr(trainers, "write_overview", fail)
    monkeypatch.setattr(trainers, "print_report", fail)
    with pytest.raises(ValueError, match="x1 must be"):
        drawn.train()
    assert "warning: there is no overview of 'ball' (x1 must be greater than x0)." in capsys.readouterr().out
    assert sa3d.load(drawn.base_dir).objects == ["ball"]


@slow
def test_an_empty_object_leaves_the_others_whatever_their_names(tiny_run, tiny_scene, tmp_path, monkeypatch):
    several = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
    prompts = several.config.pipeline.prompt.file
    assert prompts is not None
    (ball,) = json.loads(prompts.read_text())["objects"]
    names = ["a b", "nothing", "a/b", "shelf [/left]", "long" * 60]
    prompts.write_text(json.dumps({"objects": [{**ball, "name": name} for name in names]}))
    runs: list[int] = []

    def run_with_progress(session: SegmentationSession, console: Console) -> bool:
        runs.append(1)
        complete = progress.run_with_progress(session, console)
        if len(runs) == 2:
            raise EmptyObjectError("the segmented object is empty.")
        return complete

    monkeypatch.setattr(trainers, "run_with_progress", run_with_progress)
    with pytest.raises(SA3DError, match=r"1 of 5 objects are empty.* another view of nothing\."):
        several.train()
    assert sa3d.load(several.base_dir).objects == [name for name in names if name != "nothing"]
    assert len(list(several.base_dir.glob("overview-*.png"))) == 4


@slow
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tiny_run, tiny_scene, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for folder in (tmp_path / "file" / "out", Path("/proc/sa3d")):
        trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
        trainer.base_dir = folder
        with pytest.raises(SA3DError, match=r"cannot be written .* choose another folder"):
            trainer.train()
        assert trainer.pipeline.model.masks.names == []


@slow
def test_ctrl_c_saves_and_the_rest_is_done_later(tiny_run, tiny_scene, tmp_path, monkeypatch, capsys):
    original = OracleSegmenter.predict
    predictions = []

    def predict(self: Any, *arguments: Any) -> Any:
        predictions.append(1)
        if len(predictions) == 8:
            signal.raise_signal(signal.SIGINT)
        return original(self, *arguments)

    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball", "crate")
    with monkeypatch.context() as patch, pytest.raises(SA3DError, match=r"stopped before crate: .* --load-dir"):
        patch.setattr(OracleSegmenter, "predict", predict)
        trainer.train()
    assert "stopped by Ctrl-C" in capsys.readouterr().out
    assert sa3d.load(trainer.base_dir).objects == ["ball"]
    resumed = trainer_for(trainer.base_dir, tiny_scene, tmp_path / "rest", "ball", "crate")
    resumed.train()
    printed = capsys.readouterr().out
    assert "redone      ball" in printed
    assert "to do       crate" in printed
    # The third run has nothing to do, unless ``redo`` or a changed setting requires it.
    last = trainer_for(resumed.base_dir, tiny_scene, tmp_path / "last", "ball", "crate")
    assert last.segment() == {}
    assert "kept        ball, crate" in capsys.readouterr().out
    last.config.pipeline.redo = True
    assert set(last.segment()) == {"ball", "crate"}
    last.config.pipeline.redo = False
    last.config.pipeline.tolerance = 0.5
    assert set(last.segment()) == {"ball", "crate"}


@slow
def test_objects_are_known_by_the_segmenter_that_did_them(tiny_run, tiny_scene, tmp_path, monkeypatch):
    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "out", "ball")
    trainer.config.pipeline.segmenter = "sam-vit-b"
    # Its weights are missing, and the user accepts another segmenter.
    monkeypatch.setattr(SA3DTrainer, "_agreed_segmenter", lambda self: "oracle")
    assert set(trainer.segment()) == {"ball"}
    for segmenter in ("oracle", "sam-vit-b"):
        again = trainer_for(trainer.base_dir, tiny_scene, tmp_path / segmenter, "ball")
        again.config.pipeline.segmenter = segmenter
        assert again.segment() == {}
    monkeypatch.setattr(SA3DTrainer, "_agreed_segmenter", lambda self: pytest.fail("another segmenter is to be used"))
    last = trainer_for(trainer.base_dir, tiny_scene, tmp_path / "last", "ball")
    last.config.pipeline.segmenter = "sam-vit-b"
    with pytest.raises(pytest.fail.Exception):
        last.segment()


@slow
def test_twenty_kills_lose_nothing_that_was_saved(tiny_run: Path, tiny_scene: Path, tmp_path: Path):
    done = run(sys.executable, ROOT / "tests" / "kills.py", tiny_run, tiny_scene, tmp_path, 20)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    kills = result["kills"]
    assert len(kills) == 20
    # The test proves something only if kills came before the first save, and in half-done runs.
    states = {len(kill["after"]) for kill in kills}
    assert 0 in states and states & {1, 2}
    assert any(kill["before"] and len(kill["after"]) > len(kill["before"]) for kill in kills)
    assert result["left"] == []
    before = kills[-1]["after"]
    for name in before:
        assert f"kept        {name}" in result["log"] or f", {name}" in result["log"]
    if len(before) < 3:
        assert "to do       " in result["log"]


@slow
@pytest.mark.parametrize("fault", ["missing", "truncated"])
def test_an_image_that_is_not_there_or_not_whole(fault: str, tiny_run: Path, tiny_scene: Path, tmp_path: Path):
    scene = tmp_path / "scene"
    shutil.copytree(tiny_scene, scene)
    images = sorted((scene / "images").iterdir())

    def spoil(path: Path) -> None:
        path.unlink()
        if fault == "truncated":
            path.write_bytes((tiny_scene / "images" / path.name).read_bytes()[:20])

    # The error names an image that the segmenter needs.
    spoil(images[3])
    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "b", "ball", data=scene)
    with pytest.raises(SA3DError, match=rf"{images[3].name} cannot be read .*--pipeline.image-source render"):
        trainer.segment()
    # With renders as the segmenter's images, the fault has no effect,
    expected = trainer_for(tiny_run, tiny_scene, tmp_path / "a", "ball")
    trainer = trainer_for(tiny_run, tiny_scene, tmp_path / "d", "ball", data=scene)
    for item in (expected, trainer):
        item.config.pipeline.image_source = "render"
        item.segment()
    fields = [item.pipeline.model.masks["ball"].hit for item in (expected, trainer)]
    assert torch.equal(*fields)
    # unless it is in the first image, from which nerfstudio takes the size of all.
    spoil(images[0])
    named = images[0].name if fault == "missing" else str(scene)
    with pytest.raises(SA3DError, match=f"the data set cannot be read .*{named}.* restore its images"):
        trainer_for(tiny_run, tiny_scene, tmp_path / "c", "ball", data=scene)
    assert not (tmp_path / "c").exists()


@slow
def test_a_base_model_of_nan_is_refused(tiny_run: Path, tiny_scene: Path, tmp_path: Path):
    copy = tmp_path / "run"
    shutil.copytree(tiny_run, copy)
    (checkpoint,) = (copy / "nerfstudio_models").iterdir()
    state = torch.load(checkpoint, weights_only=True)
    name = next(name for name in state["pipeline"] if "field.mlp_base" in name or "mlp_head" in name)
    state["pipeline"][name].view(-1)[0] = torch.nan
    torch.save(state, checkpoint)
    with pytest.raises(SA3DError, match=r"NaN or infinite.* --load-step"):
        sa3d.load(copy, data=tiny_scene)


def test_a_few_splats_that_are_nan_do_not_matter_and_many_do():
    model = small_splats(200)
    with torch.no_grad():
        model.gauss_params["means"][0] = torch.nan
        check_finite(model)
        model.gauss_params["scales"][:20, 1] = torch.inf
    with pytest.raises(SA3DError, match="10 % of the base model's splats"):
        check_finite(model)


@slow
def test_a_config_with_the_digest_of_another_program_is_read(tiny_objects: Path):
    """A run saved before digests existed: all objects are loaded, and none counts as finished."""
    config = yaml.load(tiny_objects.read_text(), Loader=yaml.Loader)
    assert config.resumed is False
    masks = sa3d.load(tiny_objects).pipeline.model.masks
    state = masks.get_extra_state()
    del state["finished"]
    masks.set_extra_state(state)
    assert masks.finished == {}
    assert masks.names == ["ball", "crate", "tin"]
