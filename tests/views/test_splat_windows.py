"""Windows of views of splats: a camera cropped to the window renders the same pixels, but for small differences.

The projection of splats that lie outside of the image and reach into it depends on the image's bounds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.traces.window import Window
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import camera, masked_splats
from tests.stand_ins import splats_on_cpu


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> TrainingViews:
    splats_on_cpu(monkeypatch)
    cameras = camera(48, 64)
    cameras.cx, cameras.cy = cameras.cx + 1.3, cameras.cy - 2.1
    return TrainingViews(masked_splats(200), cameras, [Path("a.png")], 64)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_window_is_that_part_of_the_view(factor: float, views: TrainingViews):
    frame = views.frame(0, factor)
    window = frame.snapped((5.0, 9.0, 17.0, 21.0))
    assert not window.is_whole
    part = views.window_trace(0, window)
    whole = views.sized(frame.long_side).trace(0)
    assert (part.height, part.width) == (window.height, window.width)
    expected = whole.rgb[window.rows, window.columns]
    assert torch.allclose(part.rgb, expected, atol=0.01)
    assert (part.rgb - expected).abs().mean() < 1e-3
    inside = window.pixels().indices
    assert torch.allclose(part.surface_points(), whole.surface_points()[inside], atol=0.02)
    model: Any = views.model
    field = model.new_field(0)
    values = torch.rand(field.num_cells, 2, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(part.render(field, values), whole.render(field, values)[inside], atol=0.01)
    # Pixels outside of the window contribute nothing to the adjoint.
    image = torch.zeros(len(whole.surface_points()), 1)
    image[inside] = torch.rand(len(inside), 1, generator=torch.Generator().manual_seed(1))
    sums, expected = part.backproject(field, image[inside]), whole.backproject(field, image)
    assert (sums - expected).abs().sum() < 0.01 * expected.sum()


def test_a_window_is_rendered_once(views: TrainingViews):
    window = Window(8, 8, 16, 24, (48, 64), 64, 1.0)
    first = views.window_trace(0, window)
    assert views.window_trace(0, window) is first
    assert not views.is_rendered(0)
    assert float(views.camera(0).cx) == pytest.approx(33.3)
