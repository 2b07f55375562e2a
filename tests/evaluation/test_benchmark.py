"""Both benchmarks on a real, tiny run: the figures are what counting pixels in the written masks gives."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sa3d_nerfstudio.commands import main
from sa3d_nerfstudio.commands.evaluate import NvosEvaluation, SpinNerfEvaluation
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.images import SEED
from tests.evaluation.miniature import link_run, read, true_mask, write_mask, write_nvos, write_spin_nerf

pytestmark = pytest.mark.slow

UNSEEN = ["frame_0010", "frame_0011"]
"""Frames that the run was not trained on."""


def counted(mask: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """IoU and accuracy, pixel by pixel."""
    hits = misses = false = right = 0
    for predicted, true in zip(mask.reshape(-1).tolist(), truth.reshape(-1).tolist(), strict=True):
        hits += predicted and true
        misses += true and not predicted
        false += predicted and not true
        right += predicted == true
    return hits / (hits + misses + false), right / mask.size


def sa3d(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    """The command, in this process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", ["sa3d", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0


def test_nvos(
    tiny_scene: Path, tiny_run: Path, tiny_prompt: dict[str, Any], tmp_path: Path, monkeypatch, capsys
) -> None:
    data = write_nvos(tmp_path / "data", "horns_left", tiny_scene, tiny_prompt, UNSEEN[0])
    write_nvos(data, "fern", tiny_scene, tiny_prompt, UNSEEN[0])
    runs = link_run(tmp_path / "runs", "horns", tiny_run)
    sa3d(
        monkeypatch, "evaluate", "nvos", "--data", data, "--runs", runs, "--scenes", "fern", "horns_left",
        "--segmenter", "oracle", "--oracle-instances", tiny_scene / "instances", "--masks", tmp_path / "masks",
        "--output", tmp_path / "scores.json", "--seed", 5, "--settings", "num_prompts=2", "tolerance=2e-2",
    )  # fmt: skip
    content = json.loads((tmp_path / "scores.json").read_text())
    (scene,) = content["scenes"]
    (image,) = scene["images"]
    truth = true_mask(tiny_scene, UNSEEN[0], tiny_prompt["id"])
    mask = read(tmp_path / "masks" / "horns_left" / f"{UNSEEN[0]}.png")
    assert mask.shape == truth.shape
    assert (image["iou"], image["accuracy"]) == pytest.approx(counted(mask, truth))
    assert image["iou"] > 0.5
    assert not image["is_reference"] and not image["trained_on"]
    assert scene["reference"] == Path(tiny_prompt["frame"]).name
    assert scene["prompt"]["positive"] >= 1 and scene["prompt"]["negative"] >= 1
    assert scene["views"]["prompt"] == 1 and sum(scene["views"].values()) == 10
    assert content["mean"]["iou"] == pytest.approx(image["iou"])
    assert content["seed"] == content["settings"]["seed"] == 5
    assert content["settings"]["settings"]["num_prompts"] == 2
    assert content["settings"]["settings"]["max_passes"] == 4
    assert set(content["missing"]) == {"fern"}
    assert not content["complete"]
    printed = capsys.readouterr().out
    for words in ("missing fern", "positive", "scored      1 images, 0 of which", "seed 5", "1 of the 8 scenes"):
        assert words in printed


def test_spin_nerf_from_a_view_that_the_run_has_not_seen(
    tiny_scene: Path, tiny_run: Path, tiny_prompt: dict[str, Any], tmp_path: Path
) -> None:
    data = write_spin_nerf(tmp_path / "data", "room (llff)", tiny_scene, tiny_prompt["id"], UNSEEN)
    evaluation = SpinNerfEvaluation(
        data=data,
        runs=str(link_run(tmp_path / "runs", "room", tiny_run)),
        scenes=("room",),
        segmenter="oracle",
        oracle_instances=tiny_scene / "instances",
        masks=tmp_path / "masks",
    )
    report = evaluation.run()
    (scene,) = report.scenes
    assert scene.reference.startswith(UNSEEN[0])
    assert scene.prompt == {"mask pixels": int(true_mask(tiny_scene, UNSEEN[0], tiny_prompt["id"]).sum())}
    assert [image.is_reference for image in scene.images] == [True, False]
    ious = []
    for frame, image in zip(UNSEEN, scene.images, strict=True):
        mask = read(tmp_path / "masks" / "room" / f"{frame}.png")
        figures = counted(mask, true_mask(tiny_scene, frame, tiny_prompt["id"]))
        assert (image.iou, image.accuracy) == pytest.approx(figures)
        ious.append(figures[0])
    summary = report.summary()
    assert summary["mean"]["iou"] == pytest.approx(sum(ious) / 2)
    assert summary["mean_without_reference"]["iou"] == pytest.approx(ious[1])
    assert min(ious) > 0.5


def test_a_run_that_does_not_fit_is_listed_and_ends_in_a_sentence(
    tiny_scene: Path, tiny_run: Path, tiny_prompt: dict[str, Any], tmp_path: Path
) -> None:
    data = write_spin_nerf(tmp_path / "data", "room", tiny_scene, tiny_prompt["id"], UNSEEN)
    write_mask(data / "room" / f"{UNSEEN[1]}.png", np.ones((30, 60), bool))
    write_spin_nerf(tmp_path / "data", "horns", tiny_scene, tiny_prompt["id"], UNSEEN)
    (data / "horns" / f"{UNSEEN[1]}.png").rename(data / "horns" / "DJI_7.png")
    runs = link_run(link_run(tmp_path / "runs", "room", tiny_run), "horns", tiny_run)
    evaluation = SpinNerfEvaluation(data=data, runs=str(runs), scenes=("room", "horns"), segmenter="grabcut")
    evaluation.output = tmp_path / "scores.json"
    with pytest.raises(SA3DError, match="2 of 2 scenes failed") as caught:
        evaluation.run()
    assert "\n" not in str(caught.value)
    failed = json.loads(evaluation.output.read_text())["failed"]
    assert "60 x 30 pixels and the run's image 32 x 24" in failed["room"]
    assert "no image named DJI_7" in failed["horns"]


def test_each_fault_has_its_sentence(tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path: Path) -> None:
    data = write_nvos(tmp_path / "data", "fern", tiny_scene, tiny_prompt, UNSEEN[0])
    (tmp_path / "runs").mkdir()
    faults = {"fern": "there is no run of any of fern", "flower": "no folder", "dog": "no scene 'dog'"}
    for scene, words in faults.items():
        with pytest.raises(SA3DError, match=words) as caught:
            NvosEvaluation(data=data, runs=str(tmp_path / "runs"), scenes=(scene,)).run()
        assert "\n" not in str(caught.value)


def test_the_seed_is_that_of_scribbles_everywhere() -> None:
    assert NvosEvaluation(data=Path(), runs="").seed == SEED
