"""Windows of views: the same traces as the whole view, rendered once, and rendered again if damaged on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.window import TILE, Pixels, Window
from sa3d_nerfstudio.views.cache import ViewCache
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.tiles import TiledTrace
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.models.test_cameras import LENSES, Lens
from tests.small_models import masked, small_model

SIZE = (21, 30)


class Counted(TrainingViews):
    """Views that count the rays that they render."""

    rendered: dict[str, int]

    def render(self, camera: Any, pixels: Pixels | None = None) -> Any:
        whole = int(camera.height.max()) * int(camera.width.max())
        self.rendered["rays"] = self.rendered.get("rays", 0) + (whole if pixels is None else len(pixels.indices))
        return super().render(camera, pixels)


def views(folder: Path | None = None, lens: Lens | None = None, method: str = "nerfacto") -> Counted:
    lens = lens or Lens(LENSES["perspective"].kind, 30.0, height=SIZE[0], width=SIZE[1])
    cameras = lens.cameras(lens.ring(3))
    disk = None if folder is None else DiskStore(lambda: folder)
    names = [Path(f"{number}.png") for number in range(3)]
    training_views = Counted(
        masked(small_model(method)), cameras, names, max(lens.height, lens.width), cache=ViewCache(1 << 24, disk)
    )
    training_views.rendered = {}
    return training_views


def part(frame: Window, top: int, left: int, bottom: int, right: int) -> Window:
    return frame.snapped((top, left, bottom, right))


def assert_same(trace: Any, whole: Any, window: Window) -> None:
    """A window's trace is that part of the whole view's."""
    assert (trace.height, trace.width) == (window.height, window.width)
    shape = (whole.height, whole.width)
    rows, columns = window.rows, window.columns
    assert torch.allclose(trace.rgb, whole.rgb[rows, columns], atol=2 / 255)
    assert torch.allclose(trace.depth, whole.depth[rows, columns], rtol=2e-3)
    points = whole.surface_points().reshape(*shape, 3)[rows, columns].reshape(-1, 3)
    assert (trace.surface_points() - points).abs().max() < 0.02
    grid = MaskGrid(12)
    grid.place(torch.zeros(3), torch.ones(3))
    values = torch.rand(grid.num_cells, 1, generator=torch.Generator().manual_seed(1))
    expected = whole.render(grid, values).reshape(shape)[rows, columns].reshape(-1)
    assert torch.allclose(trace.render(grid, values)[:, 0], expected, atol=0.02)
    image = torch.rand(len(expected), 1, generator=torch.Generator().manual_seed(2))
    forward, adjoint = (trace.render(grid, values) * image).sum(), (trace.backproject(grid, image) * values).sum()
    assert torch.allclose(forward, adjoint, rtol=1e-4)


@pytest.mark.parametrize("lens", LENSES.values(), ids=LENSES)
def test_a_window_is_a_part_of_the_view_through_any_lens(lens: Lens):
    apart, together = views(lens=lens), views(lens=lens)
    window = part(apart.frame(1), 5, 9, 17, 33)
    assert not window.is_whole
    assert_same(apart.window_trace(1, window), together.trace(1), window)
    assert apart.rendered["rays"] == window.height * window.width
    # Where the whole view is cached, nothing is rendered for its windows.
    before = together.rendered["rays"]
    assert_same(together.window_trace(1, window), together.trace(1), window)
    assert together.rendered["rays"] == before


@pytest.mark.parametrize("method", ["vanilla-nerf", "tensorf", "mipnerf"])
def test_and_of_any_method(method: str):
    apart, together = views(method=method), views(method=method)
    window = part(apart.frame(0), 3, 10, 15, 30)
    assert_same(apart.window_trace(0, window), together.trace(0), window)


def test_only_what_is_missing_is_rendered_and_the_union_is_the_whole_view():
    apart, together = views(), views()
    frame = apart.frame(2)
    assert frame.size == SIZE
    for box, rays in [((0, 0, 8, 8), 64), ((0, 0, 16, 16), 4 * 64), ((8, 8, 21, 30), 256 + 8 * 14 + 5 * 8 + 5 * 14)]:
        window = part(frame, *box)
        assert_same(apart.window_trace(2, window), together.trace(2), window)
        assert apart.rendered["rays"] == rays
    assert_same(apart.trace(2), together.trace(2), frame)
    assert apart.rendered["rays"] == SIZE[0] * SIZE[1]


def test_windows_of_other_sizes_are_of_the_same_view():
    training_views = views()
    fine, coarse = training_views.frame(0), training_views.frame(0, 0.6)
    assert coarse.size == (12, 18)
    assert training_views.frame(0, 2).size == SIZE
    assert training_views.frame(0, 0.1).size == (11, 16)
    assert_same(training_views.window_trace(0, coarse), training_views.sized(18).trace(0), coarse)
    inside = part(fine, 0, 0, 8, 16).covers(coarse)
    # The centres of these coarse pixels are at rows 0.8, 2.5 and so on up to 7.5, and at columns up to 15.8.
    assert inside[:5, :10].all()
    assert int(inside.sum()) == 50


def test_tiles_on_disk_are_read_and_damaged_ones_made_again(tmp_path: Path):
    first = views(tmp_path)
    window = part(first.frame(1), 4, 4, 20, 20)
    expected = first.window_trace(1, window)
    first.cache.flush()
    second = views(tmp_path)
    trace = second.window_trace(1, window)
    assert torch.equal(trace.depth, expected.depth)
    assert second.rendered == {}
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    third = views(tmp_path)
    assert_same(third.window_trace(1, window), expected, Window.whole((window.height, window.width), 24, 1.0))
    assert third.rendered["rays"] == window.height * window.width


def test_tiles_of_another_image_are_refused():
    training_views = views()
    training_views.window_trace(0, part(training_views.frame(0), 0, 0, 16, 30))
    tiles = training_views._tiles(0)
    assert tiles is not None
    restored = TiledTrace.restored(SIZE, tiles.tensors(), tiles.numbers())
    assert torch.equal(restored.tiles, tiles.tiles)
    with pytest.raises(ValueError, match="not of this image"):
        TiledTrace.restored((16, 24), tiles.tensors(), tiles.numbers())
    repeated = tiles.tensors() | {"tiles": torch.zeros_like(tiles.tiles)}
    with pytest.raises(ValueError, match="not of this image"):
        TiledTrace.restored(SIZE, repeated, tiles.numbers())


def test_a_ray_takes_no_more_than_in_a_whole_view():
    training_views = views()
    training_views.window_trace(0, part(training_views.frame(0), 0, 0, 16, 30))
    tiles, whole = training_views._tiles(0), views().trace(0)
    assert tiles is not None
    assert isinstance(whole, CompressedTrace)
    assert tiles.num_bytes / tiles.num_rays < 1.01 * whole.num_bytes / (SIZE[0] * SIZE[1]) + 4 / TILE**2


def test_a_whole_view_made_of_tiles_takes_no_more_than_one_that_was_rendered_at_once():
    """The directions of its rays are shared by all views with its lens, and held once."""
    apart, together = views(), views()
    apart.window_trace(1, part(apart.frame(1), 5, 9, 17, 20))
    for training_views in (apart, together):
        training_views.trace(0)
    tiled, whole = apart.trace(1), together.trace(1)
    assert isinstance(tiled, CompressedTrace)
    assert isinstance(whole, CompressedTrace)
    assert tiled.num_bytes == whole.num_bytes
    assert apart.rendered["rays"] == together.rendered["rays"]


def test_samples_off_their_rays_are_kept_as_they_are(monkeypatch: pytest.MonkeyPatch):
    from sa3d_nerfstudio.models import rays
    from sa3d_nerfstudio.traces.atoms import NotOnRays

    def refuse(*_: object) -> None:
        raise NotOnRays

    monkeypatch.setattr(rays, "atoms_of", refuse)
    apart, together = views(), views()
    window = part(apart.frame(0), 3, 10, 15, 30)
    assert_same(apart.window_trace(0, window), together.trace(0), window)
    assert apart.window_trace(0, window) is apart.window_trace(0, window)
