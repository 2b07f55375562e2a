"""nerfstudio's viewer interrupts renders by an exception at any line of Python: no state may stay behind."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from sa3d_nerfstudio.models.attach import with_masks
from sa3d_nerfstudio.traces import nerf
from tests.models.test_rays import ball
from tests.small_models import camera, small_model, small_splats
from tests.stand_ins import occupancy_on_cpu, splats_on_cpu

ALL_OF = ("sa3d_nerfstudio", "contextlib.py", "renderers.py")
"""Parts of the paths of files in which each line is interrupted at its first and last visit; others at random."""
BETWEEN = 60
"""Number of these lines that are also interrupted at a visit in between, during another chunk or object."""
ELSEWHERE = 40
"""Number of line events in any file that are interrupted as well."""


class Interrupt(Exception):
    """Stand-in for nerfstudio's ``IOChangeException``."""


def run_traced(render: Callable[[], Any], at_line: Callable[[FrameType], None]) -> None:
    """Render with a function called at each line event, as nerfstudio's ``SetTrace`` does."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            at_line(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        render()
    except Interrupt:
        pass
    finally:
        sys.settrace(before)


def interrupted_everywhere(render: Callable[[], Any]) -> Iterator[str]:
    """Render repeatedly, each time interrupted at another line event; yields its file and line."""
    lines: list[tuple[str, int]] = []
    run_traced(render, lambda frame: lines.append((frame.f_code.co_filename, frame.f_lineno)))
    line_events = [number for number, (file, _) in enumerate(lines) if any(part in Path(file).parts for part in ALL_OF)]
    visits: dict[tuple[str, int], list[int]] = {}
    for number in line_events:
        visits.setdefault(lines[number], []).append(number)
    draw = random.Random(0)
    between = [draw.choice(numbers[1:-1]) for numbers in visits.values() if len(numbers) > 2]
    chosen = {number for numbers in visits.values() for number in (numbers[0], numbers[-1])}
    chosen |= {*draw.sample(between, min(BETWEEN, len(between))), *draw.sample(range(len(lines)), ELSEWHERE)}
    for number in sorted(chosen):
        location = ""
        numbers = count()

        def interrupt(frame: FrameType, number: int = number, numbers: Iterator[int] = numbers) -> None:
            nonlocal location
            if next(numbers) == number:
                location = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise Interrupt

        run_traced(render, interrupt)
        yield location


def outputs(model: Model) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(model.get_outputs_for_camera(camera(2, 3)).items())


def masked(model: Model) -> Model:
    with_masks(model, threshold=0.5, object_background="white")
    field: Any = model.new_field(16)  # type: ignore[operator]
    if isinstance(model, SplatfactoModel):
        on = (model.gauss_params["means"][:, 0] > 0).float()
        field.set(on * 9, torch.full_like(on, 9.0))
    else:
        field = ball(0.7)
    model.masks["object"] = field  # type: ignore[index, operator]
    return model


@pytest.mark.parametrize("method", ["nerfacto", "instant-ngp", "splatfacto"])
def test_an_interrupt_leaves_nothing_behind(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    occupancy_on_cpu(monkeypatch)
    splats_on_cpu(monkeypatch)

    def make() -> Model:
        return small_splats(12, masked=False) if method == "splatfacto" else small_model(method, masked=False)

    plain, model = outputs(make()), masked(make())
    before = outputs(model)
    renderers = [module for module in model.modules() if hasattr(module, "_forward_hooks")]
    hooks = [dict(module._forward_hooks) for module in renderers]
    classes = [type(module) for module in model.modules()]
    values = {id(module): set(vars(module)) for module in model.modules()}

    def lock(*_: Any) -> Any:
        raise AssertionError("a render takes a lock")

    monkeypatch.setattr(threading, "Lock", lock)
    monkeypatch.setattr(threading, "RLock", lock)
    for number, location in enumerate(interrupted_everywhere(lambda: outputs(model))):
        assert nerf._CALLS.get() is None, location
        if number % 10 == 0:
            after = outputs(model)
            for name in before:
                assert torch.equal(after[name], before[name]), (
                    f"{name}, after an interrupt at {location} or just before"
                )
    after = outputs(model)
    assert all(torch.equal(after[name], image) for name, image in (before | plain).items())
    assert [dict(module._forward_hooks) for module in renderers] == hooks
    assert [type(module) for module in model.modules()] == classes
    assert {id(module): set(vars(module)) for module in model.modules()} == values
