"""Windows of views of splats: a camera cropped to the window renders the pixels of the whole image.

By itself, gsplat gives other shapes to splats that lie far outside of an image and reach into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.traces.window import Window
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.devices import DEVICES
from tests.small_models import camera, masked_splats
from tests.stand_ins import splats_on_cpu


@pytest.fixture(params=DEVICES)
def views(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TrainingViews:
    if request.param == "cpu":
        splats_on_cpu(monkeypatch)
    cameras = camera(48, 64)
    cameras.cx, cameras.cy = cameras.cx + 1.3, cameras.cy - 2.1
    model = masked_splats(200)
    # Some splats are as large as the scene, as those of its background are.
    model.gauss_params["scales"][:40] += 1.5
    return TrainingViews(model.to(request.param), cameras, [Path("a.png")], 64)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_window_is_that_part_of_the_view(factor: float, views: TrainingViews):
    frame = views.frame(0, factor)
    window = frame.snapped((5.0, 9.0, 17.0, 21.0))
    assert not window.is_whole
    part = views.window_trace(0, window)
    whole = views.sized(frame.long_side).trace(0)
    assert (part.height, part.width) == (window.height, window.width)
    expected = whole.rgb[window.rows, window.columns]
    assert torch.allclose(part.rgb, expected, atol=1e-5)
    model: Any = views.model
    inside = window.pixels(model.device).indices
    assert torch.allclose(part.surface_points(), whole.surface_points()[inside], atol=1e-4)
    field = model.new_field(0)
    values = torch.rand(field.num_cells, 2, generator=torch.Generator().manual_seed(0)).to(model.device)
    assert torch.allclose(part.render(field, values), whole.render(field, values)[inside], atol=1e-5)
    # Pixels outside of the window contribute nothing to the adjoint.
    image = torch.zeros(len(whole.surface_points()), 1, device=model.device)
    image[inside] = torch.rand(len(inside), 1, generator=torch.Generator().manual_seed(1)).to(model.device)
    sums, expected = part.backproject(field, image[inside]), whole.backproject(field, image)
    assert torch.allclose(sums, expected, atol=1e-5 * float(expected.max()))


def test_a_window_is_rendered_once(views: TrainingViews):
    window = Window(8, 8, 16, 24, (48, 64), 64, 1.0)
    first = views.window_trace(0, window)
    assert views.window_trace(0, window) is first
    assert not views.is_rendered(0)
    assert float(views.camera(0).cx) == pytest.approx(33.3)
