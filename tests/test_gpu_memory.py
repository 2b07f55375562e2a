"""Chunks of rays that are halved when memory runs out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from nerfstudio.field_components.mlp import MLP

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.gpu_memory import map_chunks, within_memory
from tests.models.test_rays import ball
from tests.small_models import camera, masked, small_model


def test_chunks_cover_all_rays_in_order_whatever_fits():
    config = SimpleNamespace(eval_num_rays_per_chunk=1000)
    fits = 300

    def work(part: slice) -> list[int]:
        if part.stop - part.start > fits:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return list(range(part.start, part.stop))

    parts = map_chunks(config, 1777, work)
    assert [number for part in parts for number in part] == list(range(1777))
    assert config.eval_num_rays_per_chunk == 250
    fits = 100  # later, something else has taken memory
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
    with pytest.raises(RuntimeError, match="scalar type"), within_memory("do something"):
        work(slice(0, 1))


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
    expected, image = model.trace_view(view), model.get_outputs_for_camera(view)
    forward = MLP.forward

    def forward_in_little_memory(self: MLP, in_tensor: torch.Tensor) -> torch.Tensor:
        # 24 samples of 200 rays, in the larger of the proposal networks.
        if in_tensor.reshape(-1, in_tensor.shape[-1]).shape[0] > 24 * 200:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.")
        return forward(self, in_tensor)

    monkeypatch.setattr(MLP, "forward", forward_in_little_memory)
    model.config.eval_num_rays_per_chunk = 560
    again = model.trace_view(view)
    assert torch.allclose(again.rgb, expected.rgb, atol=1e-5)
    assert torch.allclose(again.depth, expected.depth, atol=1e-4)
    assert model.config.eval_num_rays_per_chunk == 140
    assert "going on with 140 rays at a time" in capsys.readouterr().out
    model.config.eval_num_rays_per_chunk = 560
    outputs = model.get_outputs_for_camera(view)
    assert model.config.eval_num_rays_per_chunk == 140
    for name in ("rgb", "mask", "object_rgb"):
        assert torch.allclose(outputs[name], image[name], atol=1e-4), name
