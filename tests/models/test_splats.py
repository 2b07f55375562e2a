"""splatfacto with masks: unchanged outputs, the object alone, the object removed, the object exported."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import pytest
import torch
from nerfstudio.cameras.cameras import CameraType
from nerfstudio.models import splatfacto
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields import splat_mask
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.window import Window
from tests import rasterizer
from tests.small_models import camera, masked_splats, small_splats
from tests.stand_ins import splats_on_cpu

ADDED = {"mask", "mask_overlay", "object_rgb", "object_depth", "object_accumulation", "background_rgb"}


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    splats_on_cpu(monkeypatch)


def opaque() -> MaskedSplatModel:
    """A red splat in front of a green one, and a blue one aside, all nearly opaque."""
    model = masked_splats(5)
    splats = model.gauss_params
    splats["means"].copy_(torch.tensor([[0.0, 0, 1], [0, 0, -1], [1.5, 0, 0], [0, 0, 50], [0, 0, 60]]))
    splats["scales"].fill_(-1.4)
    splats["opacities"].fill_(9.0)
    splats["features_rest"].zero_()
    splats["features_dc"].copy_((torch.eye(5)[:, :3] - 0.5) / 0.28209479177387814)
    return model


def select(model: MaskedSplatModel, splats: list[int], name: str = "object") -> None:
    """Add evidence that some splats are an object, and the others are not."""
    field = model.new_field(0)
    on = torch.zeros(field.num_cells)
    on[splats] = 1
    field.add(on, torch.ones_like(on))
    model.masks[name] = field


def render(model: SplatfactoModel) -> dict[str, torch.Tensor]:
    """Outputs of 21 x 29 pixels; the middle pixel shows the origin."""
    return model.get_outputs_for_camera(camera(21, 29))


def test_the_base_models_outputs_are_unchanged():
    model = masked_splats()
    select(model, list(range(20)))
    before, after = render(small_splats(masked=False)), render(model)
    assert set(after) == set(before) | ADDED
    for name, image in before.items():
        assert torch.equal(image, after[name]), name
    assert isinstance(model, SplatfactoModel)


def test_an_occluder_is_gone_from_the_object():
    model = opaque()
    select(model, [1])
    outputs = render(model)
    assert outputs["rgb"][10, 14].tolist() == pytest.approx([1.0, 0.0, 0.0], abs=0.02)
    assert outputs["mask"][10, 14] < 0.05
    assert outputs["object_rgb"][10, 14].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=0.02)
    assert outputs["object_accumulation"][10, 14] > 0.95
    assert outputs["object_depth"][10, 14] == pytest.approx(4.0, abs=1e-3)


def test_what_the_object_hid_comes_out():
    model = opaque()
    select(model, [0])
    outputs = render(model)
    assert outputs["mask"][10, 14] > 0.95
    assert outputs["background_rgb"][10, 14].tolist() == pytest.approx([0.0, 1.0, 0.0], abs=0.02)
    assert outputs["mask_overlay"][10, 14].tolist() == pytest.approx([1.0, 0.27, 0.0], abs=0.03)
    # Away from the object nothing changes.
    blue = int(outputs["rgb"][10, :, 2].argmax())
    assert blue > 20
    assert torch.allclose(outputs["background_rgb"][10, blue], outputs["rgb"][10, blue], atol=0.02)


@pytest.mark.parametrize(("name", "color"), [("white", 1.0), ("black", 0.0)])
def test_behind_the_object_is_the_chosen_colour(name: str, color: float):
    model = opaque()
    model.object_background = name
    select(model, [1])
    outputs = render(model)
    assert outputs["object_accumulation"][0, 0] == 0
    assert outputs["object_rgb"][0, 0].tolist() == pytest.approx([color] * 3, abs=1e-6)
    assert outputs["object_depth"][0, 0] == 0


def test_without_objects_a_render_is_the_base_models():
    outputs = render(masked_splats())
    assert outputs["mask"].max() == 0
    assert torch.equal(outputs["background_rgb"], outputs["rgb"])
    assert outputs["object_accumulation"].max() == 0


def test_rgba_of_the_image_and_of_the_object():
    model = opaque()
    select(model, [0])
    outputs = render(model)
    assert model.get_rgba_image(outputs)[10, 14, 3] > 0.9
    assert model.get_rgba_image(outputs)[0, 0, 3] == 0
    assert torch.equal(model.get_rgba_image(outputs, "object_rgb")[..., 3:], outputs["object_accumulation"])


def test_hidden_objects_do_not_show():
    model = opaque()
    select(model, [0])
    model.masks.hidden.add("object")
    assert render(model)["mask"].max() == 0
    assert not model.object_splats().any()


def test_an_exporter_gets_the_objects_splats():
    model = opaque()
    select(model, [0], "a")
    select(model, [2], "b")
    assert len(model.means) == 5
    before = render(model)["rgb"]
    model.for_inference = True
    for name in ("means", "scales", "quats", "opacities", "shs_0", "shs_rest", "colors"):
        assert len(getattr(model, name)) == 2, name
    assert torch.equal(model.means, model.gauss_params["means"][[0, 2]])
    assert model.num_points == 2
    # ns-render uses the same mode, and shows everything.
    assert torch.equal(render(model)["rgb"], before)


def test_an_empty_object_is_not_exported():
    model = opaque()
    model.for_inference = True
    with pytest.raises(SA3DError, match="no object to export"):
        _ = model.means


def test_objects_come_back_from_a_state_dict_of_another_size():
    saved, loaded = masked_splats(30), masked_splats(12)
    select(saved, [3, 4], "a mug, 1.5 l")
    select(saved, [5], "b")
    saved.masks.hidden.add("b")
    result = loaded.load_state_dict(saved.state_dict())
    assert result.missing_keys == []
    assert result.unexpected_keys == []
    assert loaded.masks.names == ["a mug, 1.5 l", "b"]
    assert loaded.masks.hidden == {"b"}
    field = loaded.masks["a mug, 1.5 l"]
    assert isinstance(field, SplatMask)
    assert field.object_points()[0].tolist() == saved.gauss_params["means"][[3, 4]].tolist()
    assert torch.equal(loaded.object_splats(), saved.object_splats())


def test_what_does_not_fit_is_told():
    model = masked_splats(5)
    state = model.state_dict()
    state["more"] = torch.zeros(1)
    del state["gauss_params.quats"]
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["gauss_params.quats"]
    assert result.unexpected_keys == ["more"]


def test_masks_of_other_splats_are_refused():
    saved, other = masked_splats(30), masked_splats(12)
    select(saved, [3])
    masks = {key: value for key, value in saved.state_dict().items() if key.startswith("masks.")}
    with pytest.raises(SA3DError, match="30 splats, but the base run has 12"):
        other.load_state_dict({**other.state_dict(), **masks})


def test_all_objects_are_rendered_in_one_rasterisation(monkeypatch: pytest.MonkeyPatch):
    model = masked_splats()
    for name, splats in {"a": range(10), "b": range(10, 20), "c": range(15, 30)}.items():
        select(model, list(splats), name)
    trace = model.trace_view(camera(12, 16))
    expected = torch.stack([render_probability(trace, field)[0] for field in model.masks.shown]).amax(0)
    calls = 0
    original = rasterizer.rasterization

    @functools.wraps(original)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)

    counting = masked_splats()
    counting.masks.load_state_dict(model.masks.state_dict())
    monkeypatch.setattr(splatfacto, "rasterization", counted)
    outputs = counting.get_outputs_for_camera(camera(12, 16))
    assert calls == 1, "the image itself"
    assert torch.allclose(outputs["mask"].reshape(-1), expected, atol=1e-5)
    assert calls == 2
    assert outputs["mask_overlay"].shape == (12, 16, 3)
    assert calls == 2


def test_the_most_probable_of_many_objects_is_found_a_few_at_a_time():
    model = masked_splats()
    fields, chance = [], torch.Generator().manual_seed(0)
    for _ in range(40):
        field = model.new_field(0)
        field.add(torch.rand(40, generator=chance), torch.ones(40))
        fields.append(field)
    trace = model.trace_view(camera(12, 16))
    highest, index = model.most_probable(trace, fields)
    expected = torch.stack(model.probabilities(trace, fields))
    assert torch.equal(highest, expected.amax(0))
    assert torch.equal(expected.gather(0, index[None])[0], highest)
    assert len(index.unique()) > 3


def test_who_looks_at_the_image_alone_waits_for_nothing_else(monkeypatch: pytest.MonkeyPatch):
    model = masked_splats()
    field = model.new_field(0)
    # Some splats have not been seen, so that their selection needs a search for neighbours.
    field.add(torch.ones(40) * (torch.arange(40) % 3 == 0), torch.ones(40) * (torch.arange(40) % 3 < 2))
    model.masks["object"] = field
    searched = []
    monkeypatch.setattr(splat_mask, "NearestNeighbors", lambda **_: searched.append(1))
    outputs = model.get_outputs_for_camera(camera())
    assert outputs["rgb"].shape == (10, 14, 3)
    assert outputs["mask"].max() > 0
    model.wanted_outputs = lambda: {"rgb"}
    shown = dict(model.get_outputs_for_camera(camera()).items())
    assert shown["mask_overlay"].shape == (10, 14, 3)
    assert shown["mask"].shape == shown["object_depth"].shape == (10, 14, 1)
    assert not searched
    model.wanted_outputs = None
    with pytest.raises(AttributeError):
        _ = model.get_outputs_for_camera(camera())["object_rgb"]
    assert searched


def test_outputs_of_the_object_need_the_part_of_the_image_that_it_may_be_in():
    model = opaque()
    model.gauss_params["scales"].fill_(-2.5)
    select(model, [2])
    names = ("object_rgb", "object_depth", "object_accumulation", "mask")
    full_view, rendered = camera(200, 280), 0
    before = model.get_outputs_for_camera(full_view)
    base = type(model)._base_outputs

    def counted(self: MaskedSplatModel, part: Any) -> dict[str, Any]:
        nonlocal rendered
        rendered += int(part.width) * int(part.height)
        return base(self, part)

    with mock.patch.object(type(model), "_base_outputs", counted):
        images = model.render_outputs(full_view, names)
        passing = model.rays_for(full_view, names)
    assert set(images) == set(names)
    for name, image in images.items():
        assert image.shape == before[name].shape, name
        assert torch.allclose(image, before[name], atol=1e-5), name
    assert 0 < int(passing.sum()) < 0.1 * 200 * 280
    # Once for the image with its mask, and once for the object alone.
    assert rendered == 2 * int(passing.sum())
    assert bool(model.rays_for(full_view, ("rgb", "mask")).all())


@pytest.mark.parametrize("lens", ["distorted", "fisheye"])
def test_windows_lie_where_splats_are_rendered_whatever_the_lens(lens: str):
    """splatfacto renders a pinhole image for every camera; rays of the lens would put the window elsewhere."""
    model = opaque()
    model.gauss_params["scales"].fill_(-3.2)
    field = model.new_field(0)
    on = torch.zeros(5)
    on[0] = 1
    field.add(on, torch.ones(5))
    model.masks["object"] = field
    pinhole, view = camera(400, 560), camera(400, 560)
    # The object is far from the optical axis, where lenses differ.
    for each in (pinhole, view):
        each.fx, each.fy = each.fx * 0.6, each.fy * 0.6
        each.camera_to_worlds[0, 0, 3] = 1.5
    if lens == "fisheye":
        view.camera_type = torch.full_like(view.camera_type, CameraType.FISHEYE.value)
    else:
        view.distortion_params = torch.tensor([[-0.25, 0.06, 0.0, 0.0, 0.0, 0.0]])
    expected = model.observe(pinhole, [field], 0.5)
    seen = model.observe(view, [field], 0.5)
    assert int((expected.probability > 0.5).sum()) > 200
    assert torch.equal(seen.probability > 0.5, expected.probability > 0.5)
    names = ("object_accumulation", "mask")
    images, whole = model.render_outputs(view, names), model.get_outputs_for_camera(view)
    for name in names:
        assert torch.allclose(images[name], whole[name], atol=1e-5), name


@pytest.mark.parametrize("splats", [[0], [2], [0, 2], [3, 4], []])
def test_a_camera_sees_the_same_in_a_part_of_its_image(splats: list[int]):
    """Splats 3 and 4 are behind the camera."""
    model = opaque()
    model.gauss_params["scales"].fill_(-2.5)
    field = model.new_field(0)
    on = torch.zeros(5)
    on[splats] = 1
    field.add(on, torch.ones(5))
    full_view = camera(100, 140)
    seen = model.observe(full_view, [field], 0.5)
    with mock.patch.object(type(model), "_window", lambda self, view, rows: Window.whole((100, 140), 140, 1.0)):
        whole = model.observe(full_view, [field], 0.5)
    assert bool(whole.passing.all()) and not bool(seen.passing.all())
    assert torch.equal(seen.probability > 0.5, whole.probability > 0.5)
    assert torch.equal(seen.directions, whole.directions)
    assert bool((seen.probability > 0.5).any()) == (splats in [[0], [2], [0, 2]])
    assert torch.allclose(seen.rgb[seen.passing], whole.rgb[seen.passing], atol=1e-5)
    object_pixels = seen.probability > 0.5
    assert torch.allclose(seen.points[object_pixels], whole.points[object_pixels], atol=1e-4)
    assert not bool(seen.rgb[~seen.passing].any())
