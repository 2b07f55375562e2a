"""docs/extending.md in practice: a new kind of radiance field, without a change to the package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plyfile import PlyData

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.commands import main
from sa3d_nerfstudio.evaluation.metrics import iou
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.attach import MIXINS
from tests.toy_field import MaskedSolids, SolidModel, SurfaceTrace, save_solid_run


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the mixin, in the one line that docs/extending.md gives."""
    monkeypatch.setitem(MIXINS, SolidModel, MaskedSolids)


def test_its_trace_and_adjoint_fit_together():
    torch.manual_seed(0)
    grid, trace = MaskGrid(12), SurfaceTrace(torch.rand(50, 3) * 4 - 2)
    values, image = torch.rand(grid.num_cells, 2), torch.rand(50, 2)
    left, right = (trace.render(grid, values) * image).sum(), (values * trace.backproject(grid, image)).sum()
    assert torch.allclose(left, right, rtol=1e-4)


@pytest.mark.usefixtures("registered")
def test_a_new_kind_of_field_is_segmented_saved_and_exported(tiny_scene: Path, tmp_path: Path):
    base = save_solid_run(tmp_path / "scene" / "solids" / "T", tiny_scene)
    options = {"segmenter": "oracle", "oracle_instances": tiny_scene / "instances", "resolution": 64}
    run = sa3d.load(base, output_dir=tmp_path, device="cpu", **options)
    assert isinstance(run.pipeline.model, MaskedSolids)
    prompts = {entry["name"]: entry for entry in json.loads((tiny_scene / "prompts.json").read_text())["objects"]}
    run.prompt(prompts["ball"]["frame"], [prompts["ball"]["points"][0]], name="ball")
    assert run.segment().converged
    for view in range(len(run.pipeline.views)):
        true = np.asarray(Image.open(tiny_scene / "instances" / run.pipeline.views.name(view))) == prompts["ball"]["id"]
        if true.sum() > 10:
            assert iou((run.mask(view) > 0.5).numpy(), true) > 0.8
    outputs = run.render(run.pipeline.views.cameras[0:1])
    assert outputs["mask_overlay"].shape == outputs["rgb"].shape
    config = run.save()
    command = ["export", "points", "--load-config", str(config), "--output-dir", str(tmp_path / "points")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--num-points", "200"])
    assert ended.value.code == 0
    video = tmp_path / "ball.mp4"
    command = ["turntable", "--load-config", str(config), "--output-path", str(video), "--frames", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--size", "32", "24", "--rendered-output-names", "mask_overlay"])
    assert ended.value.code == 0 and video.exists()
    vertices = PlyData.read(tmp_path / "points" / "ball.ply")["vertex"]
    points = np.stack([vertices[axis] for axis in "xyz"], axis=-1)
    ball = next(e for e in json.loads((tiny_scene / "objects.json").read_text())["objects"] if e["name"] == "ball")
    radius = (np.array(ball["aabb_max"]) - np.array(ball["aabb_min"])).max() / 2
    assert len(points) > 50
    assert np.allclose(np.linalg.norm(points - np.array(ball["center"]), axis=-1), radius, atol=0.01)
