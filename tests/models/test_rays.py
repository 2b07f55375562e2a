"""The base model with masks: unchanged outputs, the object alone, the object removed."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.model_components import renderers

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.object_view import RenderedRays
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.gating import Gate, gated_density
from sa3d_nerfstudio.models.outputs import RAYS_IN_VAIN, LazyOutputs
from sa3d_nerfstudio.traces.nerf import WeightedSamples
from tests.small_models import CONFIGS, NEEDING_STAND_INS, camera, masked, rays, small_model
from tests.stand_ins import occupancy_on_cpu, sdf_on_cpu

# generfacto has an output background_rgb already: the background behind its densities.
METHODS = sorted(set(CONFIGS | NEEDING_STAND_INS) - {"generfacto"})
ADDED = {"mask", "mask_overlay", "object_rgb", "object_depth", "object_accumulation", "background_rgb"}


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for install in (sdf_on_cpu, occupancy_on_cpu):
        install(monkeypatch)


def ball(radius: float = 0.5, center: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> MaskGrid:
    """Grid with evidence that a ball is the object, and that everything else is not."""
    grid = MaskGrid(48)
    grid.place(torch.tensor(center), torch.full((3,), radius * 1.2))
    on = (grid.cell_positions() - torch.tensor(center)).norm(dim=-1) < radius
    grid.add(on.float(), torch.ones(grid.num_cells))
    return grid


@pytest.mark.parametrize("method", METHODS)
def test_the_base_models_outputs_are_unchanged(method: str):
    plain, model = small_model(method, masked=False), masked(small_model(method))
    model.masks["ball"] = ball()
    with torch.no_grad():
        before, after = plain.get_outputs_for_camera(camera()), model.get_outputs_for_camera(camera())
    assert set(after) == set(before) | ADDED
    for name, image in before.items():
        assert torch.allclose(image, after[name], atol=1e-5), name


@pytest.mark.parametrize("method", METHODS)
def test_object_and_background_share_the_scene(method: str):
    model = masked(small_model(method))
    model.masks["ball"] = ball()
    with torch.no_grad():
        outputs = model.get_outputs_for_camera(camera(20, 28))
    accumulation = outputs["object_accumulation"][..., 0]
    assert accumulation[10, 14] > 1e-4
    assert accumulation[0, 0] == 0
    assert outputs["object_rgb"][0, 0].tolist() == [1.0, 1.0, 1.0]
    assert outputs["object_depth"][0, 0] == 0
    rgb = outputs["rgb" if "rgb" in outputs else "rgb_fine"]
    # Far from the ball nothing is removed.
    assert torch.equal(outputs["background_rgb"][0, 0], rgb[0, 0])


@pytest.mark.parametrize("method", METHODS)
def test_gating_all_or_nothing(method: str):
    model = masked(small_model(method))
    bundle = rays()
    name = "accumulation" if method not in ("vanilla-nerf", "mipnerf") else "accumulation_fine"
    with torch.no_grad():
        before = model.trace(bundle)[0][name]
        open_gate = gated_density(lambda x: torch.ones_like(x[..., :1]), lambda: model.trace(bundle)[0][name])
        assert torch.allclose(open_gate, before, atol=1e-6)
        closed_gate = gated_density(lambda x: torch.zeros_like(x[..., :1]), lambda: model.trace(bundle)[0][name])
        assert closed_gate.abs().max() < 1e-6
        assert torch.allclose(model.trace(bundle)[0][name], before, atol=1e-6)


def test_gates_within_gates_multiply():
    model, position = masked(small_model("nerfacto")), rays()

    def half(axis: int) -> Gate:
        return lambda x: (x[..., axis : axis + 1] > 0).float()

    def trace() -> WeightedSamples:
        return model.trace(position)[1]

    with torch.no_grad():
        outer, both, outer_again = gated_density(half(0), lambda: (trace(), gated_density(half(1), trace), trace()))
    assert outer.positions[outer.weights > 1e-6][:, 0].min() > 0
    assert outer.positions[outer.weights > 1e-6][:, 1].min() < 0
    assert both.positions[both.weights > 1e-6][:, :2].min() > 0
    assert torch.equal(outer_again.weights, outer.weights)


def test_an_occluder_is_gone_from_the_object():
    """The object alone is visible although everything in front of the ball is dense."""
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball(0.5, (0.0, 0.0, -1.0))
    bundle = rays()
    with torch.no_grad():
        middle = bundle[5 * 14 + 7 : 5 * 14 + 8]
        outputs = model.get_outputs(middle)
        assert outputs["object_depth"][0, 0] == 0 or outputs["object_depth"][0, 0] >= 3.4
        gated = model._gated(middle, lambda p: p > 0.5)
    distances = gated["expected_depth"]
    assert 3.4 <= float(distances) <= 4.6


def test_alpha_is_the_mask_with_its_threshold_at_a_half():
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball()
    model.mask_threshold = 0.2
    outputs = {"rgb": torch.rand(5, 3), "mask": torch.tensor([[0.0], [0.1], [0.2], [0.3], [1.0]])}
    exported: list[list[bool]] = []
    model.on_exported = lambda shown: exported.append(shown.tolist())
    alpha = model.get_rgba_image(outputs)[:, 3]
    assert alpha.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.5625, 1.0])
    assert exported == [[False, False, False, True, True]]


def test_an_exporter_of_points_does_not_wait_forever():
    """nerfstudio's loop draws rays until it has enough points; in a fog no mask exceeds the threshold."""
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball()
    faint = {"rgb": torch.rand(4096, 3), "mask": torch.full((4096, 1), 0.49)}
    batches = RAYS_IN_VAIN // 4096
    for _ in range(batches):
        model.get_rgba_image(faint)
    model.get_rgba_image({**faint, "mask": torch.cat([faint["mask"][1:], torch.ones(1, 1)])})
    for _ in range(batches):
        model.get_rgba_image(faint)
    with pytest.raises(SA3DError, match=r"above the threshold of 0\.5 in no training view"):
        model.get_rgba_image(faint)
    image = {name: value.reshape(64, 64, -1) for name, value in faint.items()}
    assert model.get_rgba_image(image).shape == (64, 64, 4)


def test_without_objects_a_render_is_the_base_models():
    model, plain = masked(small_model("nerfacto")), small_model("nerfacto", masked=False)
    with torch.no_grad():
        outputs, before = model.get_outputs_for_camera(camera()), plain.get_outputs_for_camera(camera())
    assert outputs["mask"].max() == 0
    assert torch.equal(outputs["background_rgb"], outputs["rgb"])
    assert torch.equal(model.get_rgba_image(outputs), plain.get_rgba_image(before))


def test_hidden_objects_do_not_show():
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball()
    model.masks.hidden.add("ball")
    with torch.no_grad():
        assert model.get_outputs_for_camera(camera())["mask"].max() == 0


def test_the_viewers_background_colour_is_kept():
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball()
    with torch.no_grad(), renderers.background_color_override_context(torch.tensor([0.0, 1.0, 0.0])):
        outputs = model.get_outputs_for_camera(camera())
    assert outputs["object_rgb"][0, 0].tolist() == [0.0, 1.0, 0.0]


def test_objects_come_back_from_a_state_dict():
    saved, loaded = masked(small_model("nerfacto")), masked(small_model("nerfacto"))
    saved.masks["a mug, 1.5 l"] = ball(0.3)
    saved.masks["b"] = ball(0.6)
    saved.masks.hidden.add("b")
    loaded.load_state_dict(saved.state_dict())
    assert loaded.masks.names == ["a mug, 1.5 l", "b"]
    assert loaded.masks.hidden == {"b"}
    assert torch.equal(loaded.masks["b"].hit, saved.masks["b"].hit)


def test_late_outputs_are_computed_when_read_and_once():
    calls = []
    outputs = LazyOutputs({"a": 1}, {("b", "c"): lambda: calls.append(1) or {"b": 2, "c": 3}})
    assert "b" in outputs
    assert list(outputs) == ["a", "b", "c"]
    assert len(outputs) == 3
    assert outputs["a"] == 1
    assert calls == []
    assert (outputs["b"], outputs["c"]) == (2, 3)
    assert dict(outputs.items()) == {"a": 1, "b": 2, "c": 3}
    assert calls == [1]
    assert outputs.get("d", 4) == 4
    with pytest.raises(KeyError):
        outputs["d"]


def test_whether_there_is_an_object_goes_by_the_threshold():
    model = masked(small_model("nerfacto"))
    grid = MaskGrid(24)
    near = grid.cell_positions().norm(dim=-1) < 0.5
    grid.add(0.4 * near.float(), torch.ones(grid.num_cells))
    model.masks["faint"] = grid
    assert not grid.is_empty
    assert model.masks.shown == []
    with pytest.raises(SA3DError, match="no object to export"):
        model.require_object()
    model.mask_threshold = 0.3
    assert model.masks.shown == [grid]
    model.require_object()
    inside = model.masks.probability_at(torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.9, 0.9]]))[:, 0]
    assert inside.tolist() == pytest.approx([0.4, 0.0], abs=1e-5)
    with torch.no_grad():
        assert model.get_outputs_for_camera(camera(20, 28))["object_accumulation"][10, 14] > 1e-4


def test_masks_are_rendered_for_who_reads_them(monkeypatch: pytest.MonkeyPatch):
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball()
    rendered, searched = [], []
    original, hits = type(model).probabilities, type(model.masks).hits
    monkeypatch.setattr(type(model), "probabilities", lambda *args: rendered.append(1) or original(*args))
    monkeypatch.setattr(type(model.masks), "hits", lambda *args: searched.append(1) or hits(*args))
    with torch.no_grad():
        outputs = model.get_outputs(rays())
        assert outputs["rgb"].shape == (140, 3)
        assert not rendered
        assert not searched
        assert outputs["mask"].shape == (140, 1)
        assert outputs["mask_overlay"].shape == (140, 3)
        assert rendered == [1]
        _ = outputs["object_rgb"], outputs["background_rgb"]
    assert searched == [1]


def test_outputs_of_the_object_need_the_rays_that_pass_it_alone(monkeypatch: pytest.MonkeyPatch):
    """These images equal those of a render of all rays, and the rendered rays are counted."""
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = ball(0.2)
    names = ("object_rgb", "object_depth", "object_accumulation", "mask")
    rendered: list[int] = []
    base = type(model)._base_outputs
    monkeypatch.setattr(
        type(model), "_base_outputs", lambda self, bundle: rendered.append(len(bundle)) or base(self, bundle)
    )
    with torch.no_grad():
        images = model.render_outputs(camera(20, 28), names)
        num_rendered = sum(rendered)
        full_outputs = model.get_outputs_for_camera(camera(20, 28))
        passing = model.rays_for(camera(20, 28), names)
    assert set(images) == set(names)
    shown = full_outputs["mask"] > model.mask_threshold
    for name, image in images.items():
        assert image.shape == full_outputs[name].shape, name
        if name != "mask":
            assert torch.allclose(image, full_outputs[name], atol=1e-5), name
    # A ray that passes no cell above the threshold may have a probability, but none above the threshold.
    assert torch.equal(images["mask"] > model.mask_threshold, shown)
    assert 0 < int(passing.sum()) < 0.5 * 20 * 28
    # Once for the image with its mask, and once for the object alone.
    assert num_rendered == 2 * int(passing.sum())
    assert bool(model.rays_for(camera(20, 28), ("rgb", "mask")).all())
    tally = RenderedRays()
    tally.add(passing)
    assert (tally.rendered, tally.total) == (int(passing.sum()), 20 * 28)


def test_it_is_said_what_an_export_has_rendered(capsys: pytest.CaptureFixture[str]):
    tally = RenderedRays(10, 400)
    tally.tell()
    assert "2.5% of the rays: those that pass an object" in capsys.readouterr().out
    RenderedRays(400, 400).tell()
    assert capsys.readouterr().out == ""
