"""ns-train sa3d, ns-export and resuming: real commands on a real, tiny run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import pytest
import torch
import yaml
from nerfstudio.configs.base_config import MachineConfig
from PIL import Image

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.trainer import default_config
from tests.subprocesses import run, segmenting, succeed

pytestmark = pytest.mark.slow


def test_the_run_is_whole(tiny_segmented: tuple[Path, str]):
    folder, printed = tiny_segmented
    assert {path.name for path in folder.iterdir()} == {
        "config.yml",
        "dataparser_transforms.json",
        "nerfstudio_models",
        "overview.png",
    }
    assert Image.open(folder / "overview.png").size[0] > 400
    for line in ("views used", "L1 change per pass", "object", "render"):
        assert line in printed


def test_config_holds_real_values(tiny_segmented: tuple[Path, str], tiny_run: Path, tiny_scene: Path):
    text = (tiny_segmented[0] / "config.yml").read_text()
    assert "{timestamp}" not in text
    config = yaml.load(text, Loader=yaml.Loader)
    assert config.method_name == "sa3d"
    assert config.data == tiny_scene
    assert type(config.pipeline.model).__name__ == "NerfactoModelConfig"
    assert type(config.pipeline.datamanager).__name__ == "ParallelDataManagerConfig"
    assert config.pipeline.base.config == tiny_run / "config.yml"


def test_export_gives_the_objects_points(
    tiny_segmented: tuple[Path, str], tiny_prompt: dict, tiny_scene: Path, tmp_path
):
    succeed(
        "ns-export", "pointcloud", "--load-config", tiny_segmented[0] / "config.yml", "--output-dir", tmp_path,
        "--num-points", 2000, "--num-rays-per-batch", 1024, "--normal-method", "open3d", "--save-world-frame", "True",
    )  # fmt: skip
    points = np.asarray(open3d.io.read_point_cloud(tmp_path / "point_cloud.ply").points)
    assert len(points) >= 1500
    objects = json.loads((tiny_scene / "objects.json").read_text())["objects"]
    box = next(entry for entry in objects if entry["name"] == tiny_prompt["name"])
    low, high = np.array(box["aabb_min"]), np.array(box["aabb_max"])
    # The surfaces of the tiny base model are off, but by less than the size of the object.
    slack = 0.5 * (high - low).max()
    assert ((points >= low - slack) & (points <= high + slack)).all(-1).mean() > 0.8


def test_a_sa3d_run_resumes_with_its_masks(
    tiny_segmented: tuple[Path, str], tiny_scene: Path, tiny_prompt: dict, tmp_path
):
    loaded = sa3d.load(
        tiny_segmented[0], output_dir=tmp_path, segmenter="oracle", oracle_instances=tiny_scene / "instances"
    )
    assert loaded.objects == ["object"]
    before = loaded.mask(tiny_prompt["frame"])
    assert before.max() > 0.5
    loaded.prompt(tiny_prompt["frame"], [tiny_prompt["points"][0]], name="again")
    loaded.segment()
    loaded.pipeline.config.threshold = 0.4
    config = loaded.save()
    reloaded = sa3d.load(config)
    assert reloaded.objects == ["object", "again"]
    assert reloaded.pipeline.config.threshold == 0.4
    prompts = reloaded.pipeline.model.masks.prompts
    assert prompts == loaded.pipeline.model.masks.prompts
    # The first object was prompted on the command line.
    assert [len(prompts[name]["prompts"][0]["marks"]) for name in reloaded.objects] == [1, 1]
    assert torch.allclose(reloaded.mask(tiny_prompt["frame"]), loaded.mask(tiny_prompt["frame"]), atol=1e-5)


def test_masks_alone_refer_to_the_base_run(tiny_run: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path):
    loaded = sa3d.load(
        tiny_run, output_dir=tmp_path, segmenter="oracle", oracle_instances=tiny_scene / "instances", save_base=False
    )
    mask = loaded.prompt(tiny_prompt["frame"], [tiny_prompt["points"][0]])
    assert mask.shape == (24, 32)
    report = loaded.segment()
    assert report.last()[loaded.pipeline.views.find(tiny_prompt["frame"])].state == "prompt"
    config = loaded.save()
    checkpoint = next((config.parent / "nerfstudio_models").iterdir())
    state = torch.load(checkpoint, weights_only=True)["pipeline"]
    assert all(key.startswith("_model.masks.") for key in state)
    reloaded = sa3d.load(config)
    camera = reloaded.pipeline.views.cameras[0:1]
    assert torch.allclose(reloaded.mask(camera), loaded.mask(camera), atol=1e-5)
    outputs = reloaded.render(camera)
    assert {"mask", "object_rgb", "object_depth", "object_accumulation", "background_rgb"} <= set(outputs)


def test_a_job_that_is_done_leaves_if_it_is_to(tiny_run: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path):
    command = segmenting(tiny_run, tiny_scene, tmp_path, tiny_prompt, "--viewer.quit-on-train-completion", True)
    command[command.index("--vis") + 1] = "viewer"
    printed = succeed(*command)
    assert "viser" not in printed
    assert (tmp_path / tiny_scene.name / "sa3d" / "S" / "config.yml").is_file()


def test_an_empty_mask_is_refused_at_once(tiny_segmented: tuple[Path, str], tmp_path: Path):
    folder = tmp_path / "unsegmented"
    (folder / "nerfstudio_models").mkdir(parents=True)
    config = yaml.load((tiny_segmented[0] / "config.yml").read_text(), Loader=yaml.Loader)
    config.output_dir, config.experiment_name, config.timestamp = tmp_path, "x", "T"
    saved = config.get_base_dir()
    checkpoint = next((tiny_segmented[0] / "nerfstudio_models").iterdir())
    state = torch.load(checkpoint, weights_only=True)
    state["pipeline"] = {k: v for k, v in state["pipeline"].items() if not k.startswith("_model.masks.")}
    config.get_checkpoint_dir().mkdir(parents=True)
    torch.save(state, config.get_checkpoint_dir() / checkpoint.name)
    (saved / "config.yml").write_text(yaml.dump(config))
    done = run(
        "ns-export", "pointcloud", "--load-config", saved / "config.yml", "--output-dir", tmp_path / "out",
        "--normal-method", "open3d",
    )  # fmt: skip
    assert done.returncode == 1
    assert_one_sentence(done.stderr, "empty")


def assert_one_sentence(stderr: str, *words: str) -> None:
    """Check that stderr ends in an error line with these words, without a traceback."""
    assert "Traceback" not in stderr, stderr[-2000:]
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), stderr[-2000:]
    for word in words:
        assert word in last


def test_bad_input_ends_in_a_sentence_and_writes_nothing(tiny_run: Path, tmp_path: Path):
    done = run(
        "ns-train", "sa3d", "--load-dir", tiny_run, "--output-dir", tmp_path / "out", "--vis", "tensorboard",
        "--pipeline.prompt.view", "frame_9999.png", "--pipeline.prompt.points", 3, 4, "--pipeline.segmenter", "grabcut",
    )  # fmt: skip
    assert done.returncode == 1
    assert_one_sentence(done.stderr, "frame_9999.png", "did you mean")
    assert not (tmp_path / "out").exists()


def test_a_missing_load_dir_ends_in_a_sentence(tmp_path: Path):
    with pytest.raises(SA3DError, match=r"^[^\n]*nowhere[^\n]*$"):
        sa3d.load(tmp_path / "nowhere", output_dir=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def refused(tiny_run: Path, output: Path, **options: Any) -> str:
    """Error message of ns-train sa3d with these pipeline options, run in this process."""
    loaded = None
    with pytest.raises(sa3d.SA3DError) as caught:
        prompt = options.pop("prompt")
        loaded = sa3d.load(tiny_run, output_dir=output, **options)
        loaded.pipeline.config.prompt = prompt
        loaded._trainer.train()
    assert not output.exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_each_fault_of_a_prompt_has_its_sentence(tiny_run: Path, tmp_path: Path, tiny_prompt: dict, monkeypatch):
    monkeypatch.setenv("SA3D_NO_DOWNLOAD", "1")
    monkeypatch.delenv("SA3D_SAM_CHECKPOINT", raising=False)
    from sa3d_nerfstudio.prompts.config import PromptConfig

    out = tmp_path / "out"
    view = Path(tiny_prompt["frame"]).name
    grabcut = {"segmenter": "grabcut"}
    assert "32 x 24" in refused(tiny_run, out, prompt=PromptConfig(view, (40, 3)), **grabcut)
    assert "pairs" in refused(tiny_run, out, prompt=PromptConfig(view, (4, 3, 1)), **grabcut)
    assert "at least one point" in refused(tiny_run, out, prompt=PromptConfig(view), **grabcut)
    assert "need a view" in refused(tiny_run, out, prompt=PromptConfig(points=(4, 3)), **grabcut)
    assert "counted from 0" in refused(tiny_run, out, prompt=PromptConfig("77", (4, 3)), **grabcut)
    assert "sam_vit_h_4b8939.pth" in refused(tiny_run, out, prompt=PromptConfig(view, (4, 3)), segmenter="sam-vit-h")
    assert "grabcut" in refused(tiny_run, out, prompt=PromptConfig(view, (4, 3)), segmenter="grabkut")
    named = {"object_name": "mug", **grabcut}
    assert "name is a key" in refused(tiny_run, out, prompt=PromptConfig(file=tmp_path / "prompts.json"), **named)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused(tiny_run: Path):
    with pytest.raises(sa3d.SA3DError, match=r"--machine\.device-type cpu"):
        sa3d.load(tiny_run, device="cuda")


@pytest.mark.parametrize(
    ("machine", "started", "options", "sentence"),
    [
        (MachineConfig(num_devices=2, device_type="cpu"), 1, {}, "torchrun --nproc-per-node 2"),
        (MachineConfig(num_devices=2), 1, {"lifting": "gradient"}, "takes the views one after another"),
        (MachineConfig(num_devices=2), 1, {"everything": True}, "everything is for one process"),
        (MachineConfig(num_devices=2), 1, {"everything_text": "a mug."}, "everything is for one process"),
        (MachineConfig(num_machines=2), 1, {}, "dist-url tcp://HOST:PORT"),
        (MachineConfig(num_devices=2), 4, {}, "torchrun has started 4 processes already"),
        (MachineConfig(), 4, {"lifting": "gradient"}, "takes the views one after another"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_before_anything_runs(
    machine: MachineConfig,
    started: int,
    options: dict[str, Any],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("WORLD_SIZE", str(started))
    monkeypatch.setenv("RANK", "0")
    config = default_config()
    config.machine, config.load_dir = machine, tmp_path
    for name, value in options.items():
        setattr(config.pipeline, name, value)
    with pytest.raises(SA3DError, match=sentence):
        config.set_timestamp()
    assert list(tmp_path.iterdir()) == []
