"""The cache of views: budget, disk, and repair of damage."""

from __future__ import annotations

import gc
import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.gpu_memory import size_of
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.window import Window
from sa3d_nerfstudio.views.cache import Embeddings, ViewCache, default_budget
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.photos import Photos
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.pretended_device import MEMORY, pretended_device
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
    entry = disk.read("key")
    assert entry is not None
    assert entry[1] == NUMBERS
    assert all(torch.equal(entry[0][name], TENSORS[name]) for name in TENSORS)
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
    entry = cache.get("a", lambda tensors, _: tensors["x"])
    assert entry is not None
    assert entry.tolist() == [1.0] * 10
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

    def render(self, camera: Any) -> Any:
        self.rendered += 1
        return super().render(camera)


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
            restored = second.trace(view)
            assert isinstance(restored, CompressedTrace)
            assert isinstance(trace, CompressedTrace)
            assert torch.equal(restored.distances, trace.distances)
            assert torch.allclose(restored.surface_points(), trace.surface_points(), atol=1e-5)
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
    window = Window(8, 16, 24, 24, (48, 64), 64, 0.5)
    for view in (0, "viewer 1", (0, window)):
        embeddings[view] = segmenter.embed(image)
    assert list(embeddings) == [0, "viewer 1", (0, window)]
    cache.flush()
    assert len(list(tmp_path.iterdir())) == 2
    restored = Embeddings(ViewCache(1 << 24, store(tmp_path)), segmenter, lambda view: f"camera{view}")
    assert 1 not in restored
    assert (0, window) in restored
    assert (0, replace(window, top=0)) not in restored
    assert torch.equal(restored[0].features, embeddings[0].features)
    assert restored[0].original_size == (20, 30)
    assert restored[0].input_size == embeddings[0].input_size
    torch.manual_seed(5)
    other_sam = tiny_sam()
    torch.nn.init.normal_(next(other_sam.parameters()))
    assert 0 not in Embeddings(
        ViewCache(1 << 24, store(tmp_path)), SamSegmenter(other_sam), lambda view: f"camera{view}"
    )
    del embeddings["viewer 1"]
    assert list(embeddings) == [0, (0, window)]


@pytest.mark.parametrize(("room", "least_hits"), [(19, 18), (10, 4)])
def test_passes_over_more_views_than_there_is_room_for_keep_what_fits(room: int, least_hits: int):
    cache, number = ViewCache(budget=room * 40), 20
    for _ in range(5):
        cache.begin_pass()
        before = cache.computed
        for view in range(number):
            if cache.get(f"trace-{view}") is None:
                cache.put(f"trace-{view}", torch.zeros(10))
            # A view is requested again during its visit.
            assert cache.get(f"trace-{view}") is not None
        hits = number - (cache.computed - before)
    assert hits >= least_hits
    assert cache.num_bytes <= room * 40


def test_a_gpu_of_4_gb_segments_300_views_without_losing_what_fits(tmp_path: Path):
    """Stand-ins for traces of 1008 x 756 pixels: 300 take 8.5 GB, and the budget is 4."""

    class Trace:
        num_bytes = 37 * 1008 * 756

    cache, misses = ViewCache(budget=4 << 30), []
    fitting = (4 << 30) // Trace.num_bytes
    for _ in range(3):
        cache.begin_pass()
        before = cache.computed
        for view in range(300):
            if cache.get(f"trace-{view}") is None:
                cache.put(f"trace-{view}", Trace())
        misses.append(cache.computed - before)
    assert misses[0] == 300
    assert max(misses[1:]) <= 300 - fitting + 13


def test_what_no_pass_uses_any_more_leaves_first():
    cache = ViewCache(budget=20 * 40)
    for view in range(20):
        cache.put(f"small-{view}", torch.zeros(10))
    for _ in range(3):
        cache.begin_pass()
        before = cache.computed
        for view in range(20):
            if cache.get(f"large-{view}") is None:
                cache.put(f"large-{view}", torch.zeros(10))
    assert cache.computed == before
    assert all(cache.get(f"small-{view}") is None for view in range(20))


def test_a_view_from_disk_is_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disk, references = store(tmp_path), []
    disk.write("key", TENSORS, NUMBERS)
    original = disk.read

    def watched(key: str) -> Any:
        entry = original(key)
        assert entry is not None
        references.append(weakref.ref(entry[0]["a"]))
        return entry

    monkeypatch.setattr(disk, "read", watched)
    cache = ViewCache(1000, disk)
    # This makes a copy, as a move to the GPU does.
    assert cache.get("key", lambda tensors, _: tensors["a"].clone()) is not None
    gc.collect()
    assert references[0]() is None, "what was read from disk is kept beside what was made from it"
    cache.flush()


def test_the_budget_is_a_share_of_what_is_free():
    with pretended_device():
        assert default_budget("cuda") == MEMORY // 4
        torch.cuda.mem_get_info.return_value = (MEMORY // 8, MEMORY)  # type: ignore[attr-defined]
        assert default_budget("cuda") == MEMORY // 16


def test_the_disk_is_bounded_and_older_runs_leave_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    size = len(safetensors_entry(tmp_path / "probe"))
    for age, run in enumerate(("newer", "older")):
        disk = DiskStore(lambda run=run: tmp_path / "cache" / run)
        for key in "ab":
            disk.write(key, TENSORS, NUMBERS)
            os.utime(disk.path(key), (1e9 - age * 1000, 1e9 - age * 1000))
    disk = DiskStore(lambda: tmp_path / "cache" / "own", max_bytes=4 * size + size // 2)
    disk.write("a", TENSORS, NUMBERS)
    remaining = sorted(str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*.view"))
    assert len(remaining) == 4
    assert remaining[:3] == ["newer/a.view", "newer/b.view", "older/b.view"] or "older/a.view" in remaining
    assert {"newer/a.view", "newer/b.view", "own/a.view"} <= set(remaining)
    for key in "bcdefg":
        disk.write(key, TENSORS, NUMBERS)
    remaining = sorted(str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*.view"))
    assert remaining == [f"own/{key}.view" for key in "abcd"]
    assert capsys.readouterr().out.count("is full") <= 1
    assert disk.read("a") is not None


def test_an_entry_that_is_written_again_takes_its_room_once(tmp_path: Path):
    size = len(safetensors_entry(tmp_path / "probe"))
    disk = DiskStore(lambda: tmp_path / "cache" / "own", max_bytes=2 * size + size // 2)
    for _ in range(5):
        disk.write("a", TENSORS, NUMBERS)
    disk.write("b", TENSORS, NUMBERS)
    assert disk.read("b") is not None
    assert disk._taken == 2 * size


def test_a_run_whose_entries_are_read_is_in_use(tmp_path: Path):
    """The run that was written first but read since keeps its entries, not the other one."""
    size = len(safetensors_entry(tmp_path / "probe"))
    stores = {run: DiskStore(lambda run=run: tmp_path / "cache" / run) for run in ("read", "written")}
    for age, disk in enumerate(reversed(stores.values())):
        disk.write("a", TENSORS, NUMBERS)
        os.utime(disk.path("a"), (1e9 - age * 1000, 1e9 - age * 1000))
    assert stores["read"].read("a") is not None
    DiskStore(lambda: tmp_path / "cache" / "own", max_bytes=2 * size + size // 2).write("a", TENSORS, NUMBERS)
    remaining_runs = {path.parent.name for path in (tmp_path / "cache").rglob("*.view")}
    assert remaining_runs == {"read", "own"}


def safetensors_entry(folder: Path) -> bytes:
    disk = store(folder)
    disk.write("a", TENSORS, NUMBERS)
    return disk.path("a").read_bytes()


def test_photos_do_not_count_as_renders(tmp_path: Path):
    """Photos that are read ahead for views that are then skipped do not fill the cache of traces."""
    training_views = views(tmp_path)
    training_views.photos = Photos(lambda view: torch.full((10, 14, 3), view / 10))
    for view in range(3):
        training_views.trace(view)
    before = training_views.cache.num_bytes
    for _ in range(4):
        for view in range(3):
            training_views.preload(view, picture=True)
    assert training_views.cache.num_bytes == before
    assert torch.allclose(training_views.picture(2), torch.tensor(0.2))
