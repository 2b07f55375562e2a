"""The pretended device refuses the operations that CUDA refuses, and accepts those that CUDA accepts."""

from __future__ import annotations

import copy
import io
import threading

import numpy as np
import pytest
import torch
from torch import nn

from tests.pretended_device import CUDA, pretended_device

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device, and none is pretended")
DIFFERENT = "Expected all tensors to be on the same device"


@pytest.fixture(autouse=True)
def _device():
    with pretended_device():
        yield


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda a, b: a + b, DIFFERENT),
        (lambda a, b: b.add_(a), DIFFERENT),
        (lambda a, b: b.add_(a.sum()), DIFFERENT),
        (lambda a, b: b.sum().add_(a.sum()), DIFFERENT),
        (lambda a, b: torch.cat([a, b]), DIFFERENT),
        (lambda a, b: torch.stack([a.sum(), b.sum()]), DIFFERENT),
        (lambda a, b: a.index_select(0, torch.tensor([0])), DIFFERENT),
        (lambda a, b: a.masked_fill(b > 0, 0.0), DIFFERENT),
        (lambda a, b: b[a > 0], "indices should be"),
        (lambda a, b: b[torch.zeros(1, dtype=torch.long, device="cuda")], "indices should be"),
        (lambda a, b: a.__setitem__(a > 0, b[b > 0]), DIFFERENT),
        (lambda a, b: a.numpy(), "can't convert cuda:0"),
        (lambda a, b: np.asarray(a), "can't convert cuda:0"),
        (lambda a, b: torch.rand(3, device="cuda", generator=torch.Generator()), "generator"),
        (lambda a, b: nn.Linear(3, 2)(a), DIFFERENT),
        (torch.equal, DIFFERENT),
    ],
)
def test_refused(operation, words) -> None:
    a, b = torch.ones(3, device="cuda"), torch.ones(3)
    with pytest.raises((RuntimeError, TypeError), match=words):
        operation(a, b)


@pytest.mark.parametrize(
    "operation",
    [
        lambda a, b: a * b.sum(),
        lambda a, b: torch.where(a > 0, b.sum(), a),
        lambda a, b: a[b > 0],
        lambda a, b: a[torch.tensor([0, 2])],
        lambda a, b: a.to(b).to(a),
        lambda a, b: b.to(a),
        lambda a, b: b.cuda(),
        lambda a, b: b.to("cuda", torch.float16),
        lambda a, b: a.copy_(b),
        lambda a, b: a.cpu().cuda(),
        lambda a, b: torch.tensor(b.tolist(), device=a.device),
        lambda a, b: torch.as_tensor(b.numpy(), device="cuda"),
        lambda a, b: a.new_tensor([1.0]),
        lambda a, b: a.new_zeros(3),
        lambda a, b: torch.arange(3, device=a.device),
        lambda a, b: torch.cat([a, b.to(a.device)]),
        lambda a, b: torch.linspace(0, 1, 3, device=CUDA),
        lambda a, b: nn.Linear(3, 2).to("cuda")(a),
        lambda a, b: copy.deepcopy(nn.Linear(3, 2).cuda()).weight,
        lambda a, b: copy.deepcopy(a),
    ],
)
def test_taken(operation) -> None:
    result = operation(torch.ones(3, device="cuda"), torch.ones(3))
    assert result.device == CUDA
    assert result.is_cuda


def test_values_are_computed() -> None:
    a = torch.arange(6.0, device="cuda").reshape(2, 3)
    view = a[1]
    view += 1
    a[a > 4] = 0
    assert a.tolist() == [[0, 1, 2], [4, 0, 0]]
    assert a.cpu().device.type == "cpu"
    assert a.cpu().numpy().sum() == float(a.sum()) == a.sum().item() == 7
    assert f"{a.sum():.1f}" == "7.0"


def test_autocast_of_the_device() -> None:
    a = torch.ones(3, 3, device="cuda")
    with torch.autocast("cuda"):
        assert (a @ a).dtype == torch.float16
    assert (a @ a).dtype == torch.float32


def test_saved_and_loaded() -> None:
    model, loaded = nn.Linear(3, 2).to("cuda"), nn.Linear(3, 2).to("cuda")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location="cuda:0", weights_only=True)
    assert all(value.is_cuda for value in state.values())
    loaded.load_state_dict(state)
    assert torch.equal(model.weight, loaded.weight)
    assert isinstance(model.weight, nn.Parameter)


def test_in_threads() -> None:
    flags = []
    thread = threading.Thread(target=lambda: flags.append(torch.zeros(1, device="cuda").is_cuda))
    thread.start()
    thread.join()
    assert flags == [True]


def test_gone_afterwards() -> None:
    with pretended_device(autograd=True):
        x = torch.ones(3, device="cuda", requires_grad=True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad((x * 2).sum(), x)
        assert gradient.device == x.device == CUDA
        assert gradient.tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match=DIFFERENT):
            _ = gradient + torch.ones(3)
