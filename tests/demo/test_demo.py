"""The whole demo at a small scale: real commands for every stage, from the scene to the scored and exported object."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData
from rich.console import Console

from sa3d_nerfstudio.commands import main
from sa3d_nerfstudio.demo.options import DemoConfig, SceneConfig
from sa3d_nerfstudio.demo.run import run_demo
from sa3d_nerfstudio.errors import SA3DError

SMALL = ["--train-views", "16", "--test-views", "3", "--width", "64", "--height", "48", "--supersample", "2"]


@pytest.mark.slow
def test_one_click_becomes_an_exported_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    words = ["demo", "--output-dir", str(folder), *SMALL, "--steps", "300", "--num-points", "2000"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    summary = re.search(
        r"The ball, segmented .* with grabcut, has a mean IoU of (\S+) with the truth in 3 unseen", printed
    )
    assert summary
    iou = json.loads((folder / "scores.json").read_text())["mean_iou"]
    assert f"{iou:.3f}" == summary[1]
    assert iou > 0.7

    # The score is the mean IoU of the written masks with the exact truth.
    transforms = json.loads((folder / "scene" / "transforms.json").read_text())
    ious = []
    for frame in transforms["test_filenames"]:
        mask = np.asarray(Image.open(folder / "masks" / Path(frame).name)) > 127
        truth = np.asarray(Image.open(folder / "scene" / "instances" / Path(frame).name)) == 1
        ious.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious) == pytest.approx(iou)
    assert Image.open(folder / "overview.png").width > 500

    # The exported points lie on the ball.
    vertices = PlyData.read(folder / "export" / "point_cloud.ply")["vertex"]
    assert {"red", "nx"} <= {item.name for item in vertices.properties}
    points = np.stack([vertices[axis] for axis in "xyz"], axis=-1)
    run = next((folder / "outputs" / "scene" / "nerfacto").iterdir())
    frame = json.loads((run / "dataparser_transforms.json").read_text())
    transform = np.asarray(frame["transform"])
    world = (points / frame["scale"] - transform[:, 3]) @ transform[:, :3]
    ball = json.loads((folder / "scene" / "objects.json").read_text())["objects"][0]
    distance = np.linalg.norm(world - ball["center"], axis=-1)
    assert len(points) > 1500
    assert 0.12 < np.median(distance) < 0.2
    assert (distance < 0.25).mean() > 0.9


@pytest.mark.slow
def test_a_stage_that_fails_says_which(tmp_path: Path) -> None:
    scene = SceneConfig(train_views=4, test_views=1, width=24, height=18, supersample=1, surface_points=10)
    config = DemoConfig(tmp_path, scene, steps=1, segmenter="no-such-segmenter")
    with pytest.raises(SA3DError, match=r"'segment the ball' failed \(exit code 1\)[\s\S]*no-such-segmenter"):
        run_demo(config, Console(quiet=True))
