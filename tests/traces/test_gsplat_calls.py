"""Calls of gsplat for windows of images: gsplat's own rasteriser, with PyTorch's versions of its CUDA functions."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

import pytest
import torch
from gsplat import rendering
from gsplat.cuda import _torch_impl as twins
from nerfstudio.models import splatfacto

from sa3d_nerfstudio.traces.gsplat_calls import install_interception
from sa3d_nerfstudio.traces.window import Window, render_window
from tests import rasterizer
from tests.small_models import camera, masked_splats
from tests.stand_ins import splats_on_cpu

Drawn = dict[str, torch.Tensor]


@functools.wraps(rasterizer.fully_fused_projection)
def packed_projection(*args: Any, packed: bool, **kwargs: Any) -> tuple[Any, ...]:
    """gsplat's projection in PyTorch, with packed results if asked for."""
    results = rasterizer.fully_fused_projection(*args, **kwargs)
    if not packed:
        return results
    camera_ids, rows = (results[0] > 0).nonzero().unbind(-1)
    return camera_ids, rows, *(None if value is None else value[camera_ids, rows] for value in results)


@functools.wraps(rasterizer.fully_fused_projection)
def two_radii(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """A projection with a radius for each axis, as from gsplat 1.5 on."""
    *indices, radii, means2d, depths, conics, compensations = packed_projection(*args, **kwargs)
    return *indices, torch.stack([radii, radii], dim=-1), means2d, depths, conics, compensations


def drawn(monkeypatch: pytest.MonkeyPatch, window: Window | None, packed: bool, projection: Any) -> Drawn:
    """Centres and conics, by the index of the splat, of what gsplat's rasteriser draws of a camera or of its window."""
    results: Drawn = {}

    def tiles(means2d: Any, radii: Any, depths: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        results["radii"], results["means2d"] = radii, means2d
        return None, None, None

    def pixels(means2d: Any, conics: Any, colors: Any, opacities: Any, width: int, height: int, *_: Any, **__: Any):
        results["conics"], results["size"] = conics, torch.tensor([height, width])
        return torch.zeros(1, height, width, colors.shape[-1]), torch.ones(1, height, width, 1)

    def harmonics(degree: int, directions: Any, values: Any, masks: Any = None) -> torch.Tensor:
        return twins._spherical_harmonics(degree, directions, values)

    with monkeypatch.context() as patch:
        splats_on_cpu(patch)
        patch.setattr(splatfacto, "rasterization", rendering.rasterization)
        patch.setattr(rendering, "fully_fused_projection", projection)
        patch.setattr(rendering, "isect_tiles", tiles)
        patch.setattr(rendering, "isect_offset_encode", lambda *args, **kwargs: None)
        patch.setattr(rendering, "rasterize_to_pixels", pixels)
        patch.setattr(rendering, "spherical_harmonics", harmonics)
        model = masked_splats(60)
        model.gauss_params["scales"][:20] += 1.5
        install_interception(model)
        original = vars(splatfacto)["rasterization"]

        def render(view: Any) -> None:
            call = {
                "means": model.gauss_params["means"],
                "quats": model.gauss_params["quats"],
                "scales": model.gauss_params["scales"].exp(),
                "opacities": model.gauss_params["opacities"].sigmoid()[:, 0],
                "colors": torch.rand(60, 3),
                "viewmats": splatfacto.get_viewmat(view.camera_to_worlds),
                "Ks": view.get_intrinsics_matrices(),
                "width": int(view.width),
                "height": int(view.height),
            }
            original(**call, packed=packed)

        if window is None:
            render(camera(48, 64))
        else:
            render_window(camera(48, 64), window, render)
    return results


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("projection", [packed_projection, two_radii])
def test_gsplat_draws_the_same_splats_in_a_window(monkeypatch: pytest.MonkeyPatch, packed: bool, projection: Any):
    window = Window(8, 16, 16, 24, (48, 64), 64, 1.0)
    whole, part = (drawn(monkeypatch, each, packed, projection) for each in (None, window))
    assert part["size"].tolist() == [16, 24]
    assert torch.equal(part["conics"], whole["conics"])
    assert torch.allclose(part["means2d"], whole["means2d"] - torch.tensor([16.0, 8.0]), atol=1e-4)
    # Splats that do not reach into the window are not drawn.
    radii = whole["radii"] if whole["radii"].dim() < whole["means2d"].dim() else whole["radii"][..., 0]
    (x, y), reach = part["means2d"].unbind(-1), radii
    inside = (x > -reach) & (x < 24 + reach) & (y > -reach) & (y < 16 + reach)
    expected = radii * inside
    assert 0 < int((expected > 0).sum()) < int((radii > 0).sum())
    assert torch.equal(
        part["radii"], expected if part["radii"].dim() == expected.dim() else expected[..., None] + 0 * part["radii"]
    )


def test_a_window_of_the_image_gets_other_shapes_from_gsplat_alone(monkeypatch: pytest.MonkeyPatch):
    """What the interception is for: if this fails, gsplat has changed, and it can go."""
    window = Window(8, 16, 16, 24, (48, 64), 64, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr("sa3d_nerfstudio.traces.gsplat_calls.RENDERED_WINDOW", ContextVar("never set", default=None))
        part = drawn(monkeypatch, window, False, packed_projection)
    whole = drawn(monkeypatch, None, False, packed_projection)
    both = (part["radii"] > 0) & (whole["radii"] > 0)
    assert not torch.allclose(part["conics"][both], whole["conics"][both], rtol=0.01)
