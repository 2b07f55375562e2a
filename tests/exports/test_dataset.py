"""The cameras of a data set's images, in a run whose camera optimiser has moved them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.evaluation.run_images import RunImages, prompted_view
from sa3d_nerfstudio.exports.dataset import dataset_cameras
from sa3d_nerfstudio.pipeline import SA3DPipeline
from tests.test_saved_runs import SAVED


@pytest.fixture
def moved(tmp_path: Path) -> SA3DPipeline:
    """A run whose training cameras are elsewhere than its data set says."""
    folder = tmp_path / "saved"
    shutil.copytree(SAVED, folder)
    for path in folder.rglob("config.yml"):
        path.write_text(path.read_text().replace("OLDROOT", str(folder)[1:]))
    config = next((folder / "outputs" / "scene" / "sa3d").iterdir()) / "config.yml"
    pipeline = sa3d.load(config, output_dir=tmp_path / "new", device="cpu", segmenter="grabcut").pipeline
    model: Any = pipeline.model
    count = len(pipeline.datamanager.train_dataset)  # type: ignore[arg-type]
    model.camera_optimizer = CameraOptimizerConfig(mode="SO3xR3").setup(num_cameras=count, device="cpu")
    with torch.no_grad():
        model.camera_optimizer.pose_adjustment.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    return pipeline


def test_masks_are_rendered_from_where_the_photos_were_taken(moved: SA3DPipeline):
    dataset: Any = moved.datamanager.train_dataset
    cameras = dataset_cameras(moved, "train")
    assert len(cameras) == len(dataset)
    for view, item in enumerate(cameras):
        learnt = moved.views.camera_to_worlds[view]
        assert torch.equal(item.camera.camera_to_worlds[0], learnt)
        assert not torch.allclose(learnt, dataset.cameras.camera_to_worlds[view], atol=1e-3)
    # Images that were not trained on have no other poses than the data set's.
    evaluation: Any = moved.datamanager.eval_dataset
    names = dict(zip(evaluation.image_filenames, evaluation.cameras.camera_to_worlds, strict=True))
    for item in dataset_cameras(moved, "test"):
        assert torch.equal(item.camera.camera_to_worlds[0], names[item.image])


def test_an_image_that_was_trained_on_has_one_pose_in_both_splits(moved: SA3DPipeline):
    """As with --eval-mode all, where every image is in both."""
    datamanager: Any = moved.datamanager
    datamanager.eval_dataset = datamanager.train_dataset
    learnt = moved.views.camera_to_worlds
    assert torch.equal(torch.cat([item.camera.camera_to_worlds for item in dataset_cameras(moved, "test")]), learnt)


def test_evaluation_compares_with_masks_from_there(moved: SA3DPipeline):
    dataset: Any = moved.datamanager.train_dataset
    images = RunImages(moved.datamanager, moved.training_cameras())
    for view, path in enumerate(dataset.image_filenames):
        image = images.find(path.stem)
        assert image.training_view == view
        assert torch.equal(image.camera.camera_to_worlds[0], moved.views.camera_to_worlds[view])
        assert prompted_view(moved, moved.session("ball", register=False), image) == view
