"""A run that was saved by an earlier state of this package still loads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.utils.eval_utils import eval_setup

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.pipeline import SA3DPipeline

SAVED = Path(__file__).parent / "data" / "run_of_d49d12a"
"""Run saved by commit d49d12a, before modules moved: a tiny nerfacto with a ball and a hidden crate, without the base
weights, and its rendered mask of the first training view."""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """config.yml of the run, in a copy whose paths are those of the copy."""
    folder = tmp_path / "saved"
    shutil.copytree(SAVED, folder)
    for path in folder.rglob("config.yml"):
        path.write_text(path.read_text().replace("OLDROOT", str(folder)[1:]))
    return next((folder / "outputs" / "scene" / "sa3d").iterdir()) / "config.yml"


def test_its_objects_masks_and_prompts_are_there(config: Path, tmp_path: Path):
    assert "sa3d_nerfstudio.prompt_config.PromptConfig" in config.read_text(), "the class has moved since"
    run = sa3d.load(config, output_dir=tmp_path / "new", device="cpu")
    masks = run.pipeline.model.masks
    assert run.objects == ["ball", "crate"]
    assert masks.hidden == {"crate"}
    views = {name: [entry["view"] for entry in prompts["prompts"]] for name, prompts in masks.prompts.items()}
    assert views == {"ball": ["frame_0004.png"], "crate": ["frame_0000.png"]}
    before = torch.from_numpy(np.load(SAVED / "mask.npy").astype(np.float32))
    assert torch.allclose(run.mask(0), before, atol=2e-3)


def test_nerfstudios_own_tools_load_it(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    pipeline = eval_setup(config, test_mode="inference")[1]
    assert isinstance(pipeline, SA3DPipeline)
    assert pipeline.model.masks.names == ["ball", "crate"]
