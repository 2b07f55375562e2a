"""Traces of real nerfstudio models."""

from __future__ import annotations

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.renderers import DepthRenderer
from nerfstudio.models.nerfacto import NerfactoModel

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.attach import with_masks
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.nerf import NerfTrace, WeightedSamples, concatenate
from tests.devices import DEVICES
from tests.small_models import CONFIGS, NEEDING_STAND_INS, camera, masked, rays, small_model
from tests.stand_ins import no_diffusion, occupancy_on_cpu, sdf_on_cpu

METHODS = sorted(CONFIGS | NEEDING_STAND_INS)
"""NeRF methods; those that nerfstudio builds with tiny-cuda-nn run on it where it is installed."""


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """The device; tests without this fixture run on the CPU."""
    return request.param


@pytest.fixture(autouse=True)
def _stand_ins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, the kernels of nerfacc and, where it is installed, of tiny-cuda-nn are the real ones."""
    no_diffusion(monkeypatch)
    if "device" in request.fixturenames and request.getfixturevalue("device") == "cuda":
        return
    for install in (sdf_on_cpu, occupancy_on_cpu):
        install(monkeypatch)


def model_on(device: str, method: str) -> MaskedModel:
    if device == "cuda" and method.startswith("neus"):
        pytest.importorskip("tinycudann")
    return masked(small_model(method, tiny_cuda_nn=device == "cuda").to(device))


def traced(method: str, bundle: RayBundle | None = None, device: str = "cpu") -> tuple[dict, WeightedSamples]:
    with torch.no_grad():
        return model_on(device, method).trace((bundle or rays()).to(device))


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_a_ray_add_up_to_its_accumulation(method: str, device: str):
    outputs, samples = traced(method, device=device)
    name = "accumulation" if "accumulation" in outputs else "accumulation_fine"
    assert {samples.positions.dtype, samples.weights.dtype, samples.accumulation.dtype} == {torch.float32}
    total = torch.zeros(140, device=device).index_add_(0, samples.ray_indices, samples.weights)
    assert torch.allclose(total, outputs[name][:, 0], atol=1e-5)
    assert torch.allclose(samples.accumulation, total)
    assert (samples.weights >= 0).all()
    assert total.max() <= 1 + 1e-5
    assert total.max() > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_trace_explains_the_rendered_depth(method: str):
    """Σ w t / Σ w over the traced samples equals nerfstudio's expected depth for the same weights."""
    bundle = rays()
    calls = []
    model = masked(small_model(method))
    for module in model.modules():
        if isinstance(module, DepthRenderer):
            module.register_forward_hook(lambda m, a, k, o: calls.append((a, k)), with_kwargs=True)
    with torch.no_grad():
        _, samples = model.trace(bundle)
        args, kwargs = calls[-1] if method in ("vanilla-nerf", "mipnerf", "tensorf") else calls[0]
        prompted = {**dict(zip(("weights", "ray_samples"), args, strict=False)), **kwargs}
        expected = DepthRenderer(method="expected")(**prompted)
    distance = ((samples.positions - bundle.origins[samples.ray_indices]) * bundle.directions[samples.ray_indices]).sum(
        -1
    )
    depth = samples.composite(distance[:, None])[:, 0] / samples.accumulation
    solid = samples.accumulation > 1e-3
    assert solid.sum() > 10
    assert torch.allclose(depth[solid], expected[solid, 0], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_splat_is_the_adjoint_of_render(method: str, device: str):
    _, samples = traced(method, device=device)
    trace, grid = NerfTrace(samples), MaskGrid(12).to(device)
    torch.manual_seed(1)
    x, y = torch.rand(grid.num_cells, 2).to(device), torch.rand(140, 2).to(device)
    forward = (trace.render(grid, x).double() * y).sum()
    adjoint = (x.double() * trace.backproject(grid, y)).sum()
    assert float(forward) == pytest.approx(float(adjoint), rel=1e-5)


def test_render_and_splat_agree_with_loops():
    _, samples = traced("nerfacto", rays(3, 4))
    trace, grid = NerfTrace(samples), MaskGrid(6)
    torch.manual_seed(1)
    x, y = torch.rand(grid.num_cells, 1), torch.rand(12, 1)
    matrix = torch.zeros(12, grid.num_cells)
    for position, weight, ray in zip(samples.positions, samples.weights, samples.ray_indices, strict=True):
        u = ((grid.contract(position[None])[0] + 1) / 2 * 5).clamp(0, 5)
        base = u.floor().clamp(max=4)
        for corner in range(8):
            bits = torch.tensor([corner & 1, corner >> 1 & 1, corner >> 2 & 1])
            share = torch.where(bits == 1, u - base, 1 - (u - base)).prod()
            cell = base.long() + bits
            matrix[ray, cell[2] * 36 + cell[1] * 6 + cell[0]] += weight * share
    assert torch.allclose(trace.render(grid, x), matrix @ x, atol=1e-5)
    assert torch.allclose(trace.backproject(grid, y), matrix.T @ y, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_order_and_chunks_of_rays_do_not_matter(method: str, device: str):
    model, bundle = model_on(device, method), rays().to(device)
    order = torch.randperm(140, generator=torch.Generator().manual_seed(3)).to(device)
    with torch.no_grad():
        _, whole = model.trace(bundle)
        parts = [model.trace(bundle[order[start : start + 33]])[1] for start in range(0, 140, 33)]
    shuffled, grid = concatenate(parts), MaskGrid(12).to(device)
    values, image = torch.rand(grid.num_cells, 1).to(device), torch.rand(140, 1).to(device)
    render, backproject = NerfTrace(whole).render(grid, values), NerfTrace(whole).backproject(grid, image)
    assert render.max() > 0.01
    assert torch.allclose(render[order], NerfTrace(shuffled).render(grid, values), atol=1e-5)
    assert torch.allclose(backproject, NerfTrace(shuffled).backproject(grid, image[order]), atol=1e-5)


def test_pruning_loses_no_more_than_it_says():
    _, samples = traced("nerfacto")
    threshold = float(samples.weights.median())
    pruned = samples.pruned(threshold)
    lost = samples.accumulation - torch.zeros(140).index_add_(0, pruned.ray_indices, pruned.weights)
    assert len(pruned.weights) < len(samples.weights)
    assert 0 < lost.max() <= threshold * 12
    assert torch.equal(pruned.accumulation, samples.accumulation)


@pytest.mark.parametrize("method", ["instant-ngp", "instant-ngp-bounded"])
def test_packed_samples_are_read_as_they_come(method: str, device: str):
    """instant-ngp returns packed samples: rays with different numbers of samples, one after the other."""
    outputs, packed = traced(method, device=device)
    counts = torch.bincount(packed.ray_indices, minlength=140)
    assert torch.equal(counts, outputs["num_samples_per_ray"])
    assert len(set(counts.tolist())) > 4
    values = torch.rand(len(packed.weights), 1).to(device)
    by_hand = [
        float((values[packed.ray_indices == r, 0] * packed.weights[packed.ray_indices == r]).sum()) for r in range(140)
    ]
    assert packed.composite(values)[:, 0].tolist() == pytest.approx(by_hand, abs=1e-5)


def test_a_view_is_its_rays():
    model = masked(small_model("nerfacto"))
    model.config.eval_num_rays_per_chunk = 37
    view = model.trace_view(camera())
    with torch.no_grad():
        outputs = model.get_outputs_for_camera(camera())
    assert torch.allclose(view.rgb, outputs["rgb"], atol=1e-5)
    assert torch.allclose(view.depth, outputs["depth"], atol=1e-4)
    assert view.surface_points().shape == (140, 3)


def test_probability_counts_only_what_is_known():
    samples = WeightedSamples(
        positions=torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [-0.5, -0.5, -0.5]]),
        weights=torch.tensor([0.5, 0.5, 0.5, 0.3]),
        ray_indices=torch.tensor([0, 0, 1, 2]),
        accumulation=torch.tensor([1.0, 0.5, 0.3]),
    )
    grid = MaskGrid(11)
    grid.place(torch.zeros(3), torch.full((3,), 0.8))
    # Evidence around the origin only: it is on the object.
    near = (grid.cell_positions().norm(dim=-1) < 0.4).float()
    grid.add(near, near)
    probability, known = render_probability(NerfTrace(samples), grid)
    # Half of the first ray is unknown and is ignored; half of the second passes the scene and counts as background.
    assert probability.tolist() == pytest.approx([1.0, 0.5, 0.0], abs=1e-4)
    assert known.tolist() == [True, True, True]


def test_a_model_without_depth_renderers_is_named():
    model = masked(small_model("nerfacto"))
    for name in ("renderer_depth", "renderer_expected_depth"):
        setattr(model, name, torch.nn.Identity())
    with pytest.raises(SA3DError, match="NerfactoModel cannot be traced"):
        model.trace(rays())


class ThirdParty(NerfactoModel):
    """A third party's method on nerfstudio's parts that changes the depth after rendering it."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict:
        """Outputs with depth in other units."""
        outputs = super().get_outputs(ray_bundle)
        return outputs | {name: outputs[name] * 1000 for name in ("depth", "expected_depth")}


def test_a_third_partys_nerf_is_told_by_its_accumulation():
    model = small_model("nerfacto", masked=False)
    model.__class__ = ThirdParty
    with torch.no_grad():
        outputs, samples = masked(with_masks(model, 0.5, "white")).trace(rays())
    assert torch.allclose(samples.accumulation, outputs["accumulation"][:, 0], atol=1e-5)
    assert torch.allclose(samples.composite(torch.ones_like(samples.weights[:, None])), outputs["accumulation"])
    assert samples.weights.shape == (140 * 12,)


class Elsewhere(ThirdParty):
    """A third party's method whose image is not made by nerfstudio's renderers."""

    def get_outputs(self, ray_bundle: RayBundle) -> dict:
        """Outputs with half of the accumulation."""
        outputs = super().get_outputs(ray_bundle)
        return outputs | {"accumulation": outputs["accumulation"] * 0.5}


def test_what_is_missing_is_told():
    model = small_model("nerfacto", masked=False)
    model.__class__ = Elsewhere
    missing = "Elsewhere cannot be traced: none of its depth renderings makes its output depth"
    with torch.no_grad(), pytest.raises(SA3DError, match=missing):
        masked(with_masks(model, 0.5, "white")).trace(rays())
