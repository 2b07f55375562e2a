"""Traces of a real splatfacto, rasterised by the slow reference of tests/rasterizer.py, or by gsplat on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.models.attach import with_masks
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.segmentation.likelihood import MaskedView, MaskLikelihood
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.gaussians import GaussianTrace
from tests.devices import DEVICES
from tests.small_models import camera, masked_splats, small_splats
from tests.stand_ins import splats_on_cpu

SETTINGS = [{}, {"rasterize_mode": "antialiased"}, {"sh_degree": 0}, {"background_color": "white"}]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device; on the CPU, with the stand-ins."""
    if request.param == "cpu":
        splats_on_cpu(monkeypatch)
    yield request.param


def traced(device: str, **config: Any) -> tuple[dict, GaussianTrace, MaskedSplatModel]:
    model = masked_splats(**config).to(device)
    with torch.no_grad():
        outputs, trace = model.trace(camera().to(device))
    return outputs, trace, model


def weights(trace: GaussianTrace, model: SplatfactoModel) -> torch.Tensor:
    """The matrix A, column by column."""
    num_splats = len(model.gauss_params["means"])
    eye = torch.eye(num_splats, device=model.device)
    field = SplatMask(model.gauss_params["means"])
    return torch.cat([trace.render(field, eye[:, index : index + 1]) for index in range(num_splats)], dim=-1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_splat_is_the_adjoint_of_render(device: str, settings: dict):
    _, trace, model = traced(device, **settings)
    field = SplatMask(model.gauss_params["means"])
    torch.manual_seed(1)
    x, y = torch.rand(field.num_cells, 2).to(device), torch.rand(140, 2).to(device)
    forward = (trace.render(field, x).double() * y).sum()
    adjoint = (x.double() * trace.backproject(field, y)).sum()
    assert float(forward) == pytest.approx(float(adjoint), rel=1e-5)
    assert float(forward) > 1


@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_of_a_pixel_add_up_to_its_accumulation(device: str, settings: dict):
    outputs, trace, model = traced(device, **settings)
    matrix = weights(trace, model)
    assert (matrix >= 0).all()
    assert torch.allclose(matrix.sum(-1), outputs["accumulation"].reshape(-1), atol=1e-5)
    assert torch.allclose(trace.accumulation, outputs["accumulation"].reshape(-1))
    assert outputs["accumulation"].max() > 0.5


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_trace_explains_the_image(device: str, settings: dict):
    """Colours that do not depend on the direction, composited by the trace, are what the model renders."""
    model = masked_splats(**settings).to(device)
    model.gauss_params["features_rest"].zero_()
    with torch.no_grad():
        outputs, trace = model.trace(camera().to(device))
    color = model.colors.clamp(min=0)
    image = trace.render(SplatMask(model.gauss_params["means"]), color).reshape(10, 14, 3)
    image = image + (1 - outputs["accumulation"]) * outputs["background"].to(device)
    assert torch.allclose(image.clamp(0, 1), outputs["rgb"], atol=1e-4)


def test_splat_agrees_with_the_matrix(device: str):
    _, trace, model = traced(device)
    matrix, image = weights(trace, model), torch.rand(140, 3).to(device)
    actual = trace.backproject(SplatMask(model.gauss_params["means"]), image)
    assert torch.allclose(actual, matrix.T @ image, atol=1e-4)


def test_order_of_splats_does_not_matter(device: str):
    _, trace, model = traced(device)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2)).to(device)
    values = torch.rand(40, 1).to(device)
    field = SplatMask(model.gauss_params["means"])
    before = trace.render(field, values)
    for name, value in model.gauss_params.items():
        model.gauss_params[name] = torch.nn.Parameter(value[order], requires_grad=False)
    with torch.no_grad():
        _, shuffled = model.trace(camera().to(device))
    assert torch.allclose(shuffled.render(field, values[order]), before, atol=1e-5)


def test_the_base_models_image_is_unchanged(device: str):
    plain = small_splats(masked=False).to(device)
    with torch.no_grad():
        before = plain.get_outputs_for_camera(camera())
    outputs, _, _ = traced(device)
    for name in ("rgb", "depth", "accumulation"):
        assert torch.equal(outputs[name], before[name]), name


def test_a_cropped_trace_leaves_out_what_is_cropped(device: str):
    model = masked_splats().to(device)
    half = OrientedBox(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 4.0, 4.0]))
    model.set_crop(half)
    with torch.no_grad():
        outputs, trace = model.trace(camera().to(device))
    matrix = weights(trace, model)
    inside = model.gauss_params["means"][:, 0] > 0
    assert matrix[:, ~inside].max() == 0
    assert matrix[:, inside].max() > 0
    assert torch.allclose(matrix.sum(-1), outputs["accumulation"].reshape(-1), atol=1e-5)
    image = torch.rand(140, 1).to(device)
    assert torch.allclose(trace.backproject(model.new_field(0), image), matrix.T @ image, atol=1e-4)


def test_an_empty_crop_is_no_object(device: str):
    model = masked_splats().to(device)
    model.masks["all"] = model.new_field(0)
    model.masks["all"].add(torch.ones(40, device=device), torch.ones(40, device=device))
    nowhere = OrientedBox(torch.eye(3), torch.tensor([50.0, 0.0, 0.0]), torch.ones(3))
    with torch.no_grad():
        assert model.get_outputs_for_camera(camera().to(device), obb_box=nowhere)["mask"].max() == 0
        assert model.get_outputs_for_camera(camera().to(device))["mask"].max() > 0.9


def test_a_view_gives_distances_along_its_rays(device: str):
    """The surface points of one small opaque splat lie on the splat."""
    model = masked_splats(4).to(device)
    splats = model.gauss_params
    splats["means"].copy_(torch.tensor([[0.4, 0.2, -1.0], [9.0, 9, 9], [9, 9, 9], [9, 9, 9]]))
    splats["scales"].fill_(-2.0)
    splats["opacities"].fill_(9.0)
    view = model.trace_view(camera(40, 56))
    solid = view.accumulation > 0.5
    assert solid.sum() > 3
    target = torch.tensor([0.4, 0.2, -1.0], device=device)
    assert torch.allclose(view.surface_points()[solid], target.expand(int(solid.sum()), 3), atol=1e-4)
    distance = float((target - torch.tensor([0.0, 0.0, 3.0], device=device)).norm())
    assert torch.allclose(view.depth.reshape(-1)[solid], torch.tensor(distance, device=device), atol=1e-4)
    assert view.rgb.shape == (40, 56, 3)


def test_views_share_what_is_the_same(device: str):
    model = masked_splats().to(device)
    first, second = (model.trace_view(camera()) for _ in range(2))
    assert isinstance(first, GaussianTrace)
    assert isinstance(second, GaussianTrace)
    assert first.rasterization is not None
    assert second.rasterization is not None
    for name in ("means", "quats", "scales", "opacities"):
        assert first.rasterization.arguments[name] is second.rasterization.arguments[name]


def test_probability_of_a_lone_object(device: str):
    _, trace, model = traced(device)
    field = SplatMask(model.gauss_params["means"])
    on = (model.gauss_params["means"][:, 0] > 0).float()
    field.add(on, torch.ones_like(on))
    probability, known = render_probability(trace, field)
    matrix = weights(trace, model)
    assert known.all()
    assert torch.allclose(probability, (matrix * on).sum(-1), atol=1e-4)


def test_splats_are_fitted_to_masks(device: str):
    """Rows and their adjoint agree with the dense matrix, and the fit lowers the loss."""
    model = masked_splats().to(device)
    with torch.no_grad():
        view = model.trace_view(camera().to(device))
    field = SplatMask(model.gauss_params["means"])
    matrix = weights(view, model)
    rays = torch.arange(0, 140, 3, device=device)
    values, out = torch.rand(40, device=device), torch.zeros(40, device=device)
    rows = view.rows(field, rays)
    assert torch.allclose(rows.render(values), matrix[rays] @ values, atol=1e-4)
    rows.backproject(torch.ones(len(rays), device=device), out)
    assert torch.allclose(out, matrix[rays].sum(0), atol=1e-4)
    mask = matrix @ (model.gauss_params["means"][:, 0] > 0).float() > 0.5 * view.accumulation
    field.add(*trace_sums(view, field, mask))
    likelihood = MaskLikelihood(field, [MaskedView(view, mask)])
    before = likelihood.loss(likelihood.start)
    likelihood.fit(10)
    assert field.logits is not None and likelihood.loss(field.logits) < 0.9 * before


def trace_sums(view: GaussianTrace, field: SplatMask, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.stack([mask.float(), torch.ones_like(view.accumulation)], dim=-1)
    hit, seen = view.backproject(field, image).unbind(-1)
    return hit.contiguous(), seen.contiguous()


class Derived(SplatfactoModel):
    """A third party's model that renders splats with half of their opacity."""

    def get_outputs(self, camera):
        """Outputs with halved opacities."""
        with torch.no_grad():
            opacities = self.gauss_params["opacities"].clone()
            self.gauss_params["opacities"].copy_(torch.logit(torch.sigmoid(opacities) / 2))
            try:
                return super().get_outputs(camera)
            finally:
                self.gauss_params["opacities"].copy_(opacities)


def test_a_derived_class_keeps_its_settings(device: str):
    model = small_splats(masked=False)
    model.__class__ = Derived
    with_masks(model, 0.5, "white")
    assert isinstance(model, MaskedSplatModel)
    model.to(device)
    with torch.no_grad():
        outputs, trace = model.trace(camera().to(device))
    assert outputs["accumulation"].mean() < 0.9 * traced(device)[0]["accumulation"].mean()
    assert torch.allclose(weights(trace, model).sum(-1), outputs["accumulation"].reshape(-1), atol=1e-5)


class Wide(SplatfactoModel):
    """A third party's model that passes its lens to gsplat; splatfacto itself takes every camera for a pinhole."""

    def get_outputs(self, camera):
        """Outputs through a fisheye lens."""
        with pytest.MonkeyPatch.context() as patch:
            call = functools.partial(vars(splatfacto)["rasterization"], camera_model="fisheye")
            patch.setattr(splatfacto, "rasterization", call)
            return super().get_outputs(camera)


def test_a_derived_class_keeps_its_lens(device: str):
    model = small_splats(masked=False)
    model.__class__ = Wide
    with_masks(model, 0.5, "white")
    assert isinstance(model, MaskedSplatModel)
    model.to(device)
    with torch.no_grad():
        outputs, trace = model.trace(camera().to(device))
    matrix = weights(trace, model)
    assert torch.allclose(matrix.sum(-1), outputs["accumulation"].reshape(-1), atol=1e-5)
    pinhole, _, _ = traced(device)
    assert not torch.allclose(outputs["accumulation"], pinhole["accumulation"], atol=0.05)
    image = torch.rand(140, 1).to(device)
    assert torch.allclose(trace.backproject(model.new_field(0), image), matrix.T @ image, atol=1e-4)


@pytest.mark.parametrize("kind", [CameraType.FISHEYE, CameraType.EQUIRECTANGULAR])
def test_splatfacto_takes_every_camera_for_a_pinhole(device: str, kind: CameraType):
    """The base model ignores the camera's type, and the trace is that of its image."""
    model, view = masked_splats().to(device), camera().to(device)
    view.camera_type = torch.full_like(view.camera_type, kind.value)
    with torch.no_grad():
        outputs, trace = model.trace(view)
        plain = model.trace(camera().to(device))[0]
    assert torch.equal(outputs["rgb"], plain["rgb"])
    assert torch.allclose(trace.accumulation, outputs["accumulation"].reshape(-1))


def test_channels_and_parts_of_an_image_do_not_matter(device: str):
    """Many channels are composited like single ones; parts of an image splat the same as in the whole image."""
    _, trace, model = traced(device)
    field, values = SplatMask(model.gauss_params["means"]), torch.rand(40, 37).to(device)
    single = torch.cat([trace.render(field, values[:, i : i + 1]) for i in range(37)], dim=-1)
    assert torch.allclose(trace.render(field, values), single, atol=1e-5)
    image = torch.rand(140, 2).to(device)
    parts = [torch.where((torch.arange(140, device=device) % 3 == i)[:, None], image, 0.0) for i in range(3)]
    split = torch.stack([trace.backproject(field, part) for part in parts]).sum(0)
    assert torch.allclose(trace.backproject(field, image), split, atol=1e-5)


class Foreign(SplatfactoModel):
    """A third party's model that does not rasterise."""

    def get_outputs(self, camera):
        """Outputs of an empty image."""
        return self.get_empty_outputs(14, 10, torch.zeros(3))


def test_a_model_that_does_not_rasterise_is_named():
    model = small_splats(masked=False)
    model.__class__ = Foreign
    with_masks(model, 0.5, "white")
    assert isinstance(model, MaskedSplatModel)
    with pytest.raises(SA3DError, match="Foreign cannot be traced"):
        model.trace(camera())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gsplat_renders_as_the_reference(monkeypatch: pytest.MonkeyPatch):
    model = small_splats(200, masked=False).to("cuda")
    with torch.no_grad():
        real = model.get_outputs_for_camera(camera(40, 56))
        splats_on_cpu(monkeypatch)
        reference = model.to("cpu").get_outputs_for_camera(camera(40, 56))
    for name in ("rgb", "accumulation"):
        # gsplat cuts splats off at three standard deviations, tile by tile.
        assert torch.allclose(real[name].cpu(), reference[name], atol=0.03), name
        assert (real[name].cpu() - reference[name]).abs().mean() < 2e-3, name
