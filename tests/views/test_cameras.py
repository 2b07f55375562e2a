"""Views at the poses that the base run's camera optimiser has learnt; as a script, trains such a run."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.views.cameras import learnt_poses
from tests.small_models import camera, masked, small_model
from tests.subprocesses import succeed
from tests.tiny_nerfacto import tiny_nerfacto, trainer_of

STEPS = 50


@pytest.mark.parametrize("mode", ["SO3xR3", "SE3"])
def test_cameras_are_moved_as_rays_are_while_training(mode: str):
    model: Any = masked(small_model("nerfacto"))
    optimizer = model.camera_optimizer
    optimizer.config.mode = mode
    cameras = camera(6, 8)[torch.zeros(3, dtype=torch.long)]
    assert learnt_poses(model, cameras) is cameras, "nothing has been learnt yet"
    with torch.no_grad():
        optimizer.pose_adjustment.normal_(0, 0.2)
    original_poses = cameras.camera_to_worlds.clone()
    moved = learnt_poses(model, cameras)
    assert torch.equal(cameras.camera_to_worlds, original_poses)
    for view in range(3):
        expected = cameras.generate_rays(camera_indices=view, keep_shape=True).flatten()
        optimizer.apply_to_raybundle(expected)
        actual = moved.generate_rays(camera_indices=view, keep_shape=True).flatten()
        assert torch.allclose(actual.origins, expected.origins, atol=1e-5)
        assert torch.allclose(actual.directions, expected.directions, atol=1e-5)


def test_without_an_optimiser_cameras_stay(monkeypatch: pytest.MonkeyPatch):
    model: Any = masked(small_model("nerfacto"))
    cameras = camera(6, 8)[torch.zeros(3, dtype=torch.long)]
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment.normal_(0, 0.2)
    # Cameras of another data set: their indices stand for other cameras.
    assert learnt_poses(model, cameras[:2]) is not None
    assert torch.equal(learnt_poses(model, cameras[:2]).camera_to_worlds, cameras[:2].camera_to_worlds)
    model.camera_optimizer.config.mode = "off"
    assert learnt_poses(model, cameras) is cameras


@pytest.mark.slow
def test_photo_and_render_lie_on_each_other_in_a_run_that_has_learnt_its_poses(tiny_scene: Path, tmp_path: Path):
    """The data set's poses are wrong by some two degrees and 4 % of the distance, each by another error."""
    scene = tmp_path / "perturbed"
    shutil.copytree(tiny_scene, scene)
    transforms = json.loads((scene / "transforms.json").read_text())
    rng = np.random.default_rng(0)
    for frame in transforms["frames"]:
        pose = np.array(frame["transform_matrix"])
        turn = Rotation.from_rotvec(rng.normal(0, np.radians(1.5), 3)).as_matrix()
        pose[:3, :3], pose[:3, 3] = turn @ pose[:3, :3], pose[:3, 3] + rng.normal(0, 0.02, 3)
        frame["transform_matrix"] = pose.tolist()
    (scene / "transforms.json").write_text(json.dumps(transforms))
    succeed(sys.executable, __file__, scene, tmp_path / "runs", timeout=900)
    pipeline = sa3d.load(
        tmp_path / "runs" / scene.name / "nerfacto" / "T", segmenter="grabcut", working_size=32
    ).pipeline
    views = pipeline.views
    original_cameras = pipeline.datamanager.train_dataset.cameras  # type: ignore[union-attr]
    assert not torch.allclose(views.camera_to_worlds, original_cameras.camera_to_worlds, atol=1e-3)
    learnt, original = [], []
    for view in range(len(views)):
        photo = views.picture(view)
        learnt.append(float((photo - views.trace(view).rgb).square().mean()))
        original.append(float((photo - views.render(original_cameras[view : view + 1]).rgb).square().mean()))
    assert np.mean(learnt) < 0.6 * np.mean(original)


def train(data: Path, output_dir: Path) -> None:
    """Continue to train the tiny nerfacto, with its camera optimiser: it was trained from other poses before."""
    config = tiny_nerfacto(data, output_dir, STEPS)
    model: Any = config.pipeline.model
    model.camera_optimizer.mode = "SO3xR3"
    config.optimizers["camera_opt"]["optimizer"].lr = 6e-3
    trainer_of(config).train()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
