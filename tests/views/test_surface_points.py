"""Views from which the viewer's button writes an object's points."""

from __future__ import annotations

from pathlib import Path

import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.views.cache import ViewCache
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.surface_points import ENOUGH_VIEWS, view_points, views_to_show
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import masked, small_model
from tests.test_datamanager import make, write_scene


def test_views_that_have_been_rendered_are_enough(tmp_path: Path):
    """Rendering all views would take minutes on a CPU, where an object was segmented in some of them only."""
    manager = make(VanillaDataManagerConfig, write_scene(tmp_path / "scene", [(8, 6)] * (ENOUGH_VIEWS + 4), "OPENCV"))
    model, names = masked(small_model("nerfacto")), manager.train_dataset.image_filenames
    store = DiskStore(lambda: tmp_path / "cache")
    views = TrainingViews(model, manager.training_cameras(), names, 8, cache=ViewCache(1 << 30, store))
    all_indices = list(range(len(names)))
    assert views_to_show(views) == all_indices
    for view in range(1, ENOUGH_VIEWS):
        views.trace(view)
    assert views_to_show(views) == all_indices, "too few to show it from all around"
    views.trace(0)
    computed = views.cache.computed
    assert views_to_show(views) == all_indices[:ENOUGH_VIEWS]
    assert views.cache.computed == computed, "looking renders nothing"
    # Views on disk count as well.
    views.cache.flush()
    restarted = TrainingViews(model, manager.training_cameras(), names, 8, cache=ViewCache(1 << 30, store))
    assert views_to_show(restarted) == all_indices[:ENOUGH_VIEWS]


def test_points_are_traced_in_the_window_of_the_object(tmp_path: Path):
    manager = make(VanillaDataManagerConfig, write_scene(tmp_path / "scene", [(64, 48)] * 3, "OPENCV"))
    model, names = masked(small_model("nerfacto")), manager.train_dataset.image_filenames
    views = TrainingViews(model, manager.training_cameras(), names, 64)
    center = views.render(views.camera(0)).surface_points()[24 * 64 + 32]
    grid = MaskGrid(24)
    grid.place(center, torch.full((3,), 0.05))
    grid.set(torch.ones(grid.num_cells), torch.ones(grid.num_cells))
    trace = views.object_trace(0, grid, 0.5)
    assert trace is not None
    assert trace.height * trace.width < 48 * 64
    assert views.known_trace(0) is None
    positions, colors = next(iter(view_points(views, [0], grid, 0.01)))
    assert len(positions) == len(colors) > 0
    assert (positions - center).abs().max() < 0.2
    # An object behind the camera has no window.
    grid.place(2 * views.camera_to_worlds[0][:, 3] - center, torch.full((3,), 0.05))
    grid.set(torch.ones(grid.num_cells), torch.ones(grid.num_cells))
    assert views.object_trace(0, grid, 0.5) is None
    assert list(view_points(views, [0], grid, 0.01)) == []
