"""The cache of views: budget, disk, and what is done about damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.views.cache import Embeddings, ViewCache, default_budget, size_of
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import camera, masked, small_model
from tests.tiny_sam import tiny_sam

TENSORS = {"a": torch.arange(60, dtype=torch.int16).reshape(6, 10), "b": torch.rand(5).half()}
NUMBERS = {"height": 6, "log_low": -1.25}


def store(folder: Path) -> DiskStore:
    return DiskStore(lambda: folder)


def test_what_is_written_is_read(tmp_path: Path):
    disk = store(tmp_path / "new" / "folder")
    assert disk.read("key") is None
    disk.write("key", TENSORS, NUMBERS)
    found = disk.read("key")
    assert found is not None
    assert found[1] == NUMBERS
    assert all(torch.equal(found[0][name], TENSORS[name]) for name in TENSORS)
    assert [path.name for path in disk.folder.iterdir()] == ["key.view"]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damage_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    disk = store(tmp_path_factory.mktemp("damage"))
    disk.write("key", TENSORS, NUMBERS)
    content = bytearray(disk.path("key").read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    disk.path("key").write_bytes(content)
    assert disk.read("key") is None


def test_an_entry_under_another_name_is_not_taken(tmp_path: Path):
    disk = store(tmp_path)
    disk.write("key", TENSORS, NUMBERS)
    disk.path("key").rename(disk.path("other"))
    assert disk.read("other") is None


def test_the_least_lately_used_leaves_first():
    cache = ViewCache(budget=100)
    for name in "ab":
        cache.put(name, torch.zeros(10))
    assert cache.get("a") is not None
    cache.put("c", torch.zeros(10))
    assert [cache.get(name) is None for name in "abc"] == [False, True, False]
    assert cache.num_bytes == 80
    cache.put("huge", torch.zeros(1000))
    assert cache.get("huge") is not None
    assert cache.num_bytes == 4000
    cache.put("huge", torch.zeros(1))
    assert cache.num_bytes == 4


def test_what_leaves_memory_is_found_on_disk(tmp_path: Path):
    cache = ViewCache(40, store(tmp_path))
    for name, value in (("a", 1.0), ("b", 2.0)):
        cache.put(name, torch.full((10,), value), lambda value=value: ({"x": torch.full((10,), value)}, {}))
    assert not (tmp_path / "b.view").exists()
    found = cache.get("a", lambda tensors, _: tensors["x"])
    assert found is not None
    assert found.tolist() == [1.0] * 10
    cache.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.view", "b.view"]
    assert cache.get("b", lambda tensors, _: tensors["y"]) is None
    assert cache.get("b") is None


def test_a_full_disk_is_told_and_nothing_is_lost_in_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").write_text("in the way")
    cache = ViewCache(1000, store(tmp_path / "file" / "cache"))
    cache.put("a", torch.zeros(10), lambda: ({"x": torch.zeros(10)}, {}))
    cache.flush()
    cache.flush()
    assert capsys.readouterr().out.count("kept in memory only") == 1
    assert cache.get("a") is not None


def test_sizes_are_those_of_all_arrays():
    assert size_of({"a": torch.zeros(3, 2), "b": [np.zeros(4), (torch.zeros(1).half(),)]}) == 24 + 32 + 2
    assert size_of(object()) > 0
    assert default_budget("cpu") > 1e8


class Counted(TrainingViews):
    """Views that count what they render."""

    rendered = 0

    def look(self, camera: Any) -> Any:
        self.rendered += 1
        return super().look(camera)


def views(folder: Path, budget: int = 1 << 20, size: int = 14) -> Counted:
    cameras = camera()
    cameras.camera_to_worlds = cameras.camera_to_worlds.repeat(3, 1, 1) + torch.arange(3.0)[:, None, None] * 0.01
    for name in ("fx", "fy", "cx", "cy", "height", "width", "camera_type"):
        setattr(cameras, name, getattr(cameras, name).expand(3, 1).clone())
    cameras = type(cameras)(
        cameras.camera_to_worlds, cameras.fx, cameras.fy, cameras.cx, cameras.cy, cameras.width, cameras.height,
        camera_type=cameras.camera_type,
    )  # fmt: skip
    model = masked(small_model("nerfacto"))
    names = [Path(f"{number}.png") for number in range(3)]
    return Counted(model, cameras, names, size, cache=ViewCache(budget, store(folder)))


def test_views_are_rendered_once_ever(tmp_path: Path):
    first = views(tmp_path)
    traces = [first.trace(view) for view in range(3)]
    assert [first.trace(view) for view in range(3)] == traces
    first.cache.flush()
    assert first.rendered == 3
    second = views(tmp_path, budget=1)
    for _ in range(2):
        for view, trace in enumerate(traces):
            found = second.trace(view)
            assert isinstance(found, CompressedTrace)
            assert isinstance(trace, CompressedTrace)
            assert torch.equal(found.distances, trace.distances)
            assert torch.allclose(found.surface_points(), trace.surface_points(), atol=1e-5)
    assert second.rendered == 0
    assert views(tmp_path, size=7).key(0) != first.key(0)
    assert len({first.key(view) for view in range(3)}) == 3


def test_a_damaged_view_is_rendered_again_and_mended(tmp_path: Path):
    first = views(tmp_path)
    first.trace(1)
    first.cache.flush()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    second = views(tmp_path)
    second.trace(1)
    second.cache.flush()
    assert second.rendered == 1
    third = views(tmp_path)
    third.trace(1)
    assert third.rendered == 0


def test_embeddings_are_kept_with_their_weights_and_view(tmp_path: Path):
    image = SegmenterImage(torch.rand(20, 30, 3), "a.png")
    segmenter, cache = SamSegmenter(tiny_sam()), ViewCache(1 << 24, store(tmp_path))
    embeddings = Embeddings(cache, segmenter, lambda view: f"camera{view}")
    assert 0 not in embeddings
    for view in (0, "viewer 1"):
        embeddings[view] = segmenter.embed(image)
    assert list(embeddings) == [0, "viewer 1"]
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 1
    again = Embeddings(ViewCache(1 << 24, store(tmp_path)), segmenter, lambda view: f"camera{view}")
    assert 1 not in again
    assert torch.equal(again[0].features, embeddings[0].features)
    assert again[0].original_size == (20, 30)
    assert again[0].input_size == embeddings[0].input_size
    torch.manual_seed(5)
    other = tiny_sam()
    torch.nn.init.normal_(next(other.parameters()))
    assert 0 not in Embeddings(ViewCache(1 << 24, store(tmp_path)), SamSegmenter(other), lambda view: f"camera{view}")
    del embeddings["viewer 1"]
    assert list(embeddings) == [0]
