"""--load-dir: every accepted form of the path, and a one-sentence error for each fault."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from sa3d_nerfstudio.base_run.find import BaseRun, find_run
from sa3d_nerfstudio.errors import SA3DError

SHARED = (Path(__file__).resolve().parents[3] / "shared").resolve()


def save_run(output_dir: Path, data: Path, steps: tuple[int, ...] = (100, 200)) -> Path:
    """Write a nerfacto run as nerfstudio saves it, and return its folder."""
    config = TrainerConfig(
        method_name="nerfacto",
        output_dir=output_dir,
        experiment_name="scene",
        timestamp="now",
        data=data,
        pipeline=VanillaPipelineConfig(
            datamanager=ParallelDataManagerConfig(data=data, dataparser=NerfstudioDataParserConfig(data=data)),
            model=NerfactoModelConfig(),
        ),
    )
    config.save_config()
    checkpoints = config.get_checkpoint_dir()
    checkpoints.mkdir()
    for step in steps:
        state = {"step": step, "pipeline": {"_model.weight": torch.full((4,), step)}, "optimizers": {}, "scalers": {}}
        torch.save(state, checkpoints / f"step-{step:09d}.ckpt")
    return config.get_base_dir()


@pytest.fixture
def scene_path(tmp_path: Path) -> Path:
    scene = tmp_path / "project" / "scenes" / "box"
    scene.mkdir(parents=True)
    (scene / "transforms.json").write_text(json.dumps({"frames": []}))
    return scene


@pytest.fixture
def run_path(tmp_path: Path, scene_path: Path) -> Path:
    return save_run(tmp_path / "project" / "outputs", scene_path)


def refuse(path: Path, *mentions: str, **options) -> None:
    """Check that the path is refused with one sentence that contains all mentions."""
    with pytest.raises(SA3DError) as caught:
        find_run(path, **options)
    message = str(caught.value)
    for mention in mentions:
        assert mention in message
    assert "\n" not in message
    assert message.endswith(".") and not message.endswith("..")


@pytest.mark.parametrize("form", ["", "nerfstudio_models", "config.yml", "nerfstudio_models/step-000000200.ckpt"])
def test_every_form_of_the_path(run_path: Path, scene_path: Path, form: str) -> None:
    run = find_run(run_path / form)
    assert run.config_path == run_path / "config.yml"
    assert run.checkpoint_path == run_path / "nerfstudio_models" / "step-000000200.ckpt"
    assert run.step == 200
    assert not run.is_sa3d
    assert type(run.config) is TrainerConfig
    assert run.config.method_name == "nerfacto"
    assert run.config.pipeline.datamanager.data == scene_path


def test_relative_paths(run_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_path / "nerfstudio_models")
    assert find_run(Path()).config_path.resolve() == run_path / "config.yml"
    monkeypatch.chdir(run_path)
    assert find_run(Path("nerfstudio_models")).step == 200


def test_nothing_is_written(run_path: Path, scene_path: Path) -> None:
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in scene_path.parents[1].rglob("*")}

    before = state()
    find_run(run_path)
    assert state() == before


def test_load_step(run_path: Path) -> None:
    run = find_run(run_path, load_step=100)
    assert (run.step, run.checkpoint_path.name) == (100, "step-000000100.ckpt")
    assert find_run(run.checkpoint_path).step == 100
    assert find_run(run.checkpoint_path, load_step=100).step == 100
    refuse(run_path, "step 150", "100, 200", load_step=150)
    refuse(run.checkpoint_path, "step 200", load_step=200)


def test_other_files_among_the_checkpoints_are_ignored(run_path: Path) -> None:
    for name in ("notes.txt", "step-000000300.ckpt.tmp", ".step-000000400.ckpt", "best.ckpt"):
        (run_path / "nerfstudio_models" / name).write_text("x")
    assert find_run(run_path).step == 200


def test_resuming_is_recognised(run_path: Path) -> None:
    config = run_path / "config.yml"
    config.write_text(config.read_text().replace("method_name: nerfacto", "method_name: sa3d"))
    assert find_run(run_path).is_sa3d


def test_no_such_path(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no", "nowhere", "--load-dir")


def test_empty_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "is empty", "--load-dir")


def test_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    refuse(tmp_path, "not a nerfstudio run", str(tmp_path / "config.yml"))
    refuse(tmp_path / "photo.jpg", "photo.jpg", "neither")


def test_a_stray_config_above_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text("!!python/object/apply:os.mkdir [" + str(tmp_path / "executed") + "]")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo.jpg").touch()
    refuse(tmp_path / "photos", "not a nerfstudio run")
    assert not (tmp_path / "executed").exists()


def test_a_folder_of_runs(run_path: Path, tmp_path: Path) -> None:
    for folder in (run_path.parent, run_path.parents[1], tmp_path / "project" / "outputs"):
        refuse(folder, "holds runs", str(run_path))


def test_checkpoints_without_config(run_path: Path) -> None:
    (run_path / "config.yml").unlink()
    models = run_path / "nerfstudio_models"
    for path in (models, models / "step-000000200.ckpt"):
        refuse(path, "lack their config.yml", str(models / "config.yml"), str(run_path / "config.yml"))
    refuse(run_path, "not a nerfstudio run", "config.yml")


@pytest.mark.parametrize(
    ("content", "mention"),
    [
        ("", "not the configuration of a nerfstudio run"),
        ("learning_rate: 0.1", "not the configuration of a nerfstudio run"),
        ("a: [1, 2", "cannot be read"),
        ("\x00", "cannot be read"),
        ("!!python/object:nerfstudio.engine.trainer.TrainerConfig {}", "pipeline"),
        ("!!python/object:lerf.lerf.LERFModelConfig {}", "pip install the nerfstudio plugin"),
        ("!!python/name:nerfstudio.engine.trainer.Coach ''", "nerfstudio.engine.trainer"),
        ("!!python/object/apply:int [seven]", "cannot be read"),
    ],
)
def test_unusable_config(run_path: Path, content: str, mention: str) -> None:
    (run_path / "config.yml").write_text(content)
    refuse(run_path, str(run_path / "config.yml"), mention)


def test_missing_plugin_is_named(run_path: Path) -> None:
    config = run_path / "config.yml"
    config.write_text(config.read_text().replace("nerfstudio.models.nerfacto", "some_plugin.model"))
    refuse(run_path, "some_plugin", "pip install")


def test_config_that_is_not_text(run_path: Path) -> None:
    (run_path / "config.yml").write_bytes(b"\xff\xfe\x00\x80")
    refuse(run_path, "cannot be read")


def test_no_checkpoints(run_path: Path) -> None:
    shutil.rmtree(run_path / "nerfstudio_models")
    refuse(run_path, "no checkpoint", str(run_path / "nerfstudio_models"))
    (run_path / "nerfstudio_models").mkdir()
    for path in (run_path, run_path / "nerfstudio_models"):
        refuse(path, "no checkpoint", str(run_path / "nerfstudio_models"))


def test_half_written_checkpoint(run_path: Path) -> None:
    newest = run_path / "nerfstudio_models" / "step-000000200.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    refuse(run_path, str(newest), "damaged", "--load-step 100")
    assert find_run(run_path, load_step=100).step == 100


def test_moved_data_set(run_path: Path, scene_path: Path, tmp_path: Path) -> None:
    moved = scene_path.rename(tmp_path / "elsewhere")
    refuse(run_path, str(scene_path), "--data")
    config = find_run(run_path, data=moved).config
    assert config.data == config.pipeline.datamanager.data == moved
    assert config.pipeline.datamanager.dataparser.data == moved  # type: ignore[attr-defined]
    refuse(run_path, str(tmp_path / "nowhere"), "--data", data=tmp_path / "nowhere")


def test_relative_data_set(tmp_path: Path, scene_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    relative = Path("../project/scenes/box")
    run_path = save_run(tmp_path / "project" / "outputs", relative)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    assert find_run(run_path).config.pipeline.datamanager.data == relative
    (tmp_path / "far" / "away").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "far" / "away")
    config = find_run(run_path).config
    assert config.pipeline.datamanager.data == config.data == scene_path
    shutil.rmtree(scene_path)
    refuse(run_path, str(relative), "--data")


def test_data_set_in_the_current_folder_goes_first(
    tmp_path: Path, scene_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_path = save_run(tmp_path / "project" / "outputs", Path("scenes/box"))
    shutil.copytree(scene_path, tmp_path / "scenes" / "box")
    monkeypatch.chdir(tmp_path)
    assert find_run(run_path).config.pipeline.datamanager.data == Path("scenes/box")


def test_unusable_data_set(run_path: Path, scene_path: Path) -> None:
    metadata = scene_path / "transforms.json"
    for content in ('{"frames": [', "[]", "[" * 100_000):
        metadata.write_text(content)
        refuse(run_path, str(metadata), "--data")
    metadata.write_bytes(b"\xff\xfe")
    refuse(run_path, str(metadata), "cannot be read")
    metadata.rename(scene_path / "transforms.txt")
    refuse(run_path, "transforms.json", "--data")
    refuse(run_path, "transforms.json", "--data", data=scene_path / "transforms.txt")
    (scene_path / "transforms.txt").unlink()
    refuse(run_path, "empty folder", "--data")


def test_data_set_may_be_its_json_file(run_path: Path, scene_path: Path) -> None:
    metadata = scene_path / "transforms.json"
    assert find_run(run_path, data=metadata).config.pipeline.datamanager.data == metadata


def is_valid(run: BaseRun) -> bool:
    data = run.config.pipeline.datamanager.data
    return (
        isinstance(run.config, TrainerConfig) and data is not None and data.exists() and run.checkpoint_path.is_file()
    )


def test_flipped_bytes_in_config(run_path: Path) -> None:
    path = run_path / "config.yml"
    content = path.read_bytes()
    rng = random.Random(0)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for position in rng.sample(range(len(content)), rng.choice([1, 1, 3])):
            damaged[position] = rng.choice([damaged[position] ^ (1 << rng.randrange(8)), *b"\n:!&*' 0"])
        path.write_bytes(damaged)
        try:
            run = find_run(run_path)
        except SA3DError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert is_valid(run)
    assert 10 < refused < 150


def test_truncated_config(run_path: Path) -> None:
    path = run_path / "config.yml"
    content = path.read_bytes()
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        try:
            run = find_run(run_path)
        except SA3DError as error:
            assert "\n" not in str(error)
        else:
            assert is_valid(run)


@pytest.mark.parametrize("name", ["desk", "fox", "shelf"])
def test_real_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = SHARED / "runs" / name / "nerfacto" / "cpu"
    if not path.is_dir():
        pytest.skip(f"no trained run at {path}")
    monkeypatch.chdir(tmp_path)  # the ../shared/scenes/NAME in its config.yml does not exist from here
    run = find_run(path)
    assert run.config.pipeline.datamanager.data == SHARED / "scenes" / name
    assert run.step == max(int(file.stem[5:]) for file in (path / "nerfstudio_models").glob("*.ckpt"))
