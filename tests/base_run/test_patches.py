"""The LPIPS metric is built without network access, and its state fits that of saved checkpoints."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
import torch
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from sa3d_nerfstudio.base_run.patches import lpips_without_download

RUNS = Path(__file__).resolve().parents[3] / "shared" / "runs"


class Unreachable(Exception):
    pass


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make address resolution fail, and hide earlier downloads."""

    def refuse(*args, **kwargs):
        raise Unreachable

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.mark.parametrize("net_type", ["alex", "squeeze"])
def test_builds_offline_and_keeps_the_linear_layers(no_network: None, net_type) -> None:
    with lpips_without_download():
        metric = LearnedPerceptualImagePatchSimilarity(net_type=net_type, normalize=True)
    weights = Path(torchmetrics_lpips.__file__).parent / "lpips_models" / f"{net_type}.pth"
    shipped = torch.load(weights, map_location="cpu", weights_only=True)
    state = metric.net.state_dict()
    assert shipped
    for name, weight in shipped.items():
        assert torch.equal(state[name], weight), name
    image = torch.rand(1, 3, 64, 64)
    assert metric(image, image).item() == pytest.approx(0.0, abs=1e-6)


def test_outside_the_context_the_pretrained_network_is_asked_for(no_network: None) -> None:
    with pytest.raises(Unreachable):
        LearnedPerceptualImagePatchSimilarity(normalize=True)


def test_state_fits_a_trained_checkpoint(no_network: None) -> None:
    checkpoints = sorted(RUNS.glob("desk/nerfacto/cpu/nerfstudio_models/step-*.ckpt"))
    if not checkpoints:
        pytest.skip(f"no trained run at {RUNS}")
    prefix = "_model.lpips."
    stored = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)["pipeline"]
    stored = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    with lpips_without_download():
        metric = LearnedPerceptualImagePatchSimilarity(normalize=True)
    assert {k: v.shape for k, v in metric.state_dict().items()} == {k: v.shape for k, v in stored.items()}
    metric.load_state_dict(stored)


def test_restores_on_exception_and_when_nested() -> None:
    original = torchmetrics_lpips._get_tv_model_features
    with pytest.raises(Unreachable), lpips_without_download():
        with lpips_without_download():
            pass
        assert torchmetrics_lpips._get_tv_model_features is not original  # leaving the inner context keeps the outer
        raise Unreachable
    assert torchmetrics_lpips._get_tv_model_features is original


def test_another_thread_is_not_affected(no_network: None) -> None:
    failures = []

    def build() -> None:
        try:
            LearnedPerceptualImagePatchSimilarity(normalize=True)
        except Unreachable as error:
            failures.append(error)

    with lpips_without_download():
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert len(failures) == 1
