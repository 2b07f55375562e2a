"""GPU memory that runs out: chunks of rays are halved, after caches have shrunk."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nerfstudio.field_components.mlp import MLP

from sa3d_nerfstudio import gpu_memory
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.gpu_memory import map_batches, map_chunks, reclaim_from, within_memory
from sa3d_nerfstudio.traces.compressed import CompressedTrace, forget
from tests.models.test_rays import ball
from tests.small_models import camera, masked, small_model


def test_chunks_cover_all_rays_in_order_whatever_fits():
    config = SimpleNamespace(eval_num_rays_per_chunk=1000)
    fits = 300

    def work(part: slice) -> list[int]:
        if part.stop - part.start > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    chunks = map_chunks(config, 1777, work)
    assert [ray for chunk in chunks for ray in chunk] == list(range(1777))
    assert config.eval_num_rays_per_chunk == 250
    fits = 100  # later, other programs take memory
    assert sum(map(len, map_chunks(config, 500, work))) == 500
    assert config.eval_num_rays_per_chunk == 64
    assert map_chunks(config, 0, work) == []


@pytest.mark.parametrize(
    "words",
    [
        "/bindings/gpu_memory.h:592 cuMemSetAccess(m_base_address) failed: CUDA_ERROR_OUT_OF_MEMORY",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_other_libraries_run_out_of_memory_too(words: str):
    config = SimpleNamespace(eval_num_rays_per_chunk=1000)

    def work(part: slice) -> int:
        if part.stop - part.start > 300:
            raise RuntimeError(words)
        return part.stop - part.start

    assert sum(map_chunks(config, 1777, work)) == 1777
    assert config.eval_num_rays_per_chunk == 250


def test_other_errors_are_not_taken_for_it():
    def work(part: slice) -> None:
        raise RuntimeError("expected scalar type Half but found Float")

    with pytest.raises(RuntimeError, match="scalar type"):
        map_chunks(SimpleNamespace(eval_num_rays_per_chunk=1000), 1777, work)
    with pytest.raises(RuntimeError, match="scalar type"):
        within_memory(lambda: work(slice(0, 1)), "do something")


def test_what_can_never_fit_ends_in_a_sentence():
    config = SimpleNamespace(eval_num_rays_per_chunk=4096)

    def work(part: slice) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(SA3DError, match="does not hold even 64 rays"):
        map_chunks(config, 5000, work)


def test_a_model_goes_on_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball(0.7)
    view = camera(20, 28)
    expected, expected_outputs = model.trace_view(view), model.get_outputs_for_camera(view)
    forward = MLP.forward

    def forward_in_little_memory(self: MLP, in_tensor: torch.Tensor) -> torch.Tensor:
        # Memory for 200 rays with 24 samples each, in the larger of the proposal networks.
        if in_tensor.reshape(-1, in_tensor.shape[-1]).shape[0] > 24 * 200:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        return forward(self, in_tensor)

    monkeypatch.setattr(MLP, "forward", forward_in_little_memory)
    model.config.eval_num_rays_per_chunk = 560
    retried = model.trace_view(view)
    assert torch.allclose(retried.rgb, expected.rgb, atol=1e-5)
    assert torch.allclose(retried.depth, expected.depth, atol=1e-4)
    assert model.config.eval_num_rays_per_chunk == 140
    assert "going on with 140 rays at a time" in capsys.readouterr().out
    model.config.eval_num_rays_per_chunk = 560
    outputs = model.get_outputs_for_camera(view)
    assert model.config.eval_num_rays_per_chunk == 140
    for name in ("rgb", "mask", "object_rgb"):
        assert torch.allclose(outputs[name], expected_outputs[name], atol=1e-4), name


class Cache:
    """Cache of 300 bytes, which frees 100 at a time."""

    def __init__(self) -> None:
        self.held = 300
        reclaim_from(self)

    def reclaim(self) -> int:
        freed = min(self.held, 100)
        self.held -= freed
        return freed


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setattr(gpu_memory, "_RECLAIMABLE", weakref.WeakSet())
    monkeypatch.setattr(gpu_memory, "_SAID", set())
    return Cache()


def full(words: str = "CUDA out of memory") -> RuntimeError:
    return torch.cuda.OutOfMemoryError(words)


def test_caches_shrink_before_chunks_do(cache: Cache, capsys: pytest.CaptureFixture[str]):
    config = SimpleNamespace(eval_num_rays_per_chunk=1000)

    def work(part: slice) -> int:
        if cache.held > 100 or part.stop - part.start > 600:
            raise full()
        return part.stop - part.start

    assert sum(map_chunks(config, 1777, work)) == 1777
    assert cache.held == 0
    assert config.eval_num_rays_per_chunk == 500
    assert capsys.readouterr().out.count("less is kept") == 1


def test_what_cannot_be_cut_is_tried_again_until_caches_are_empty(cache: Cache):
    held_bytes = []

    def work() -> str:
        held_bytes.append(cache.held)
        if cache.held > 0:
            raise full()
        return "done"

    assert within_memory(work, "close other programs") == "done"
    assert held_bytes == [300, 200, 100, 0]

    def never() -> None:
        raise full()

    with pytest.raises(SA3DError, match="memory is full: close other programs"):
        within_memory(never, "close other programs")


def test_chunks_are_raised_until_memory_ends(cache: Cache, capsys: pytest.CaptureFixture[str]):
    config, sizes = SimpleNamespace(eval_num_rays_per_chunk=1000), []

    def work(part: slice) -> int:
        if part.stop - part.start > 5000:
            raise full()
        sizes.append(part.stop - part.start)
        return sizes[-1]

    for _ in range(2):
        assert sum(map_chunks(config, 40_000, work, on_cuda=True)) == 40_000
    assert sizes[:4] == [1000, 2000, 4000, 4000]
    assert config.eval_num_rays_per_chunk == 4000
    # A failed try of a larger chunk neither shrinks caches nor prints a message.
    assert cache.held == 300
    assert capsys.readouterr().out == ""
    assert sum(map_chunks(config, 40_000, work)) == 40_000
    assert sizes[-1] == 4000, "not raised on a CPU"


def test_the_batch_that_fits_is_remembered(cache: Cache):
    cache.held = 0
    owner, tried = object(), []

    def embed(items: Sequence[int]) -> list[int]:
        tried.append(len(items))
        if len(items) > 2:
            raise full()
        return [item * 10 for item in items]

    assert map_batches(owner, [1, 2, 3, 4, 5], embed) == [10, 20, 30, 40, 50]
    assert map_batches(owner, [6, 7, 8, 9], embed) == [60, 70, 80, 90]
    assert tried == [5, 2, 2, 1, 2, 2]
    with pytest.raises(RuntimeError, match="out of memory"):
        map_batches(owner, [1], lambda items: embed([1, 2, 3]))


@pytest.mark.parametrize("step", ["render", "backproject", "pack"])
def test_views_are_lifted_and_packed_in_little_memory(step: str, cache: Cache, monkeypatch: pytest.MonkeyPatch):
    """Memory runs out once in each step: the cache shrinks, and the result is the same."""
    model = masked(small_model("nerfacto"))
    field, view = ball(0.7), camera(12, 16)
    trace = model.compressed_view(view)
    assert isinstance(trace, CompressedTrace)
    mask = torch.rand(192, 1) > 0.5
    expected = {
        "render": trace.render(field, field.cells()),
        "backproject": trace.backproject(field, mask.float()),
        "pack": trace.depth,
    }
    forget()
    patched: tuple[Any, str] = {
        "render": (trilinear, "read_sums"),
        "backproject": (trilinear, "add"),
        "pack": (CompressedTrace, "pack"),
    }[step]
    original = getattr(*patched)

    def once(*args: Any, **kwargs: Any) -> Any:
        if cache.held == 300:
            raise full()
        return original(*args, **kwargs)

    monkeypatch.setattr(patched[0], patched[1], once)
    result = {
        "render": lambda: trace.render(field, field.cells()),
        "backproject": lambda: trace.backproject(field, mask.float()),
        "pack": lambda: model.compressed_view(view).depth,
    }[step]()
    assert torch.equal(result, expected[step])
    assert cache.held == 200
