"""The views from which an object's points are written at a press of a button."""

from __future__ import annotations

from pathlib import Path

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

from sa3d_nerfstudio.views.cache import ViewCache
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.surface_points import ENOUGH_VIEWS, views_to_show
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import masked, small_model
from tests.test_datamanager import make, write_scene


def test_views_that_have_been_rendered_are_enough(tmp_path: Path):
    """Or the button would take minutes on a CPU, where an object was segmented in some of the views only."""
    manager = make(VanillaDataManagerConfig, write_scene(tmp_path / "scene", [(8, 6)] * (ENOUGH_VIEWS + 4), "OPENCV"))
    model, names = masked(small_model("nerfacto")), manager.train_dataset.image_filenames
    store = DiskStore(lambda: tmp_path / "cache")
    views = TrainingViews(model, manager.training_cameras(), names, 8, cache=ViewCache(1 << 30, store))
    everything = list(range(len(names)))
    assert views_to_show(views) == everything
    for view in range(1, ENOUGH_VIEWS):
        views.trace(view)
    assert views_to_show(views) == everything, "too few to show it from all around"
    views.trace(0)
    computed = views.cache.computed
    assert views_to_show(views) == everything[:ENOUGH_VIEWS]
    assert views.cache.computed == computed, "looking renders nothing"
    # What lies on disk counts as well.
    views.cache.flush()
    again = TrainingViews(model, manager.training_cameras(), names, 8, cache=ViewCache(1 << 30, store))
    assert views_to_show(again) == everything[:ENOUGH_VIEWS]
