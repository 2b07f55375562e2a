"""Packed traces: linear maps with exact adjoints, close to the traces that were packed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.rays import camera_rays
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.traces import compressed as packed
from sa3d_nerfstudio.traces import view_rays
from sa3d_nerfstudio.traces.atoms import ATOMS, NotOnRays, atoms_of
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.nerf import NerfTrace, NerfViewTrace, WeightedSamples
from sa3d_nerfstudio.traces.view_rays import ViewRays, pixel_angle
from tests.analytic import BallViews
from tests.small_models import CONFIGS, NEEDING_STAND_INS, camera, masked, small_model
from tests.stand_ins import no_diffusion, occupancy_on_cpu, sdf_on_cpu

METHODS = sorted(CONFIGS | NEEDING_STAND_INS)


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    for install in (sdf_on_cpu, no_diffusion, occupancy_on_cpu):
        install(monkeypatch)


def pack(view: NerfViewTrace) -> CompressedTrace:
    angle = pixel_angle(view.directions.reshape(view.height, view.width, 3))
    atoms = atoms_of(view.samples, view.origins, view.directions, angle)
    rays = ViewRays.of(view.origins, view.directions, torch.eye(3))
    return CompressedTrace.pack(*atoms, view.samples.accumulation, view.rgb, view.depth, rays)


def foggy(seed: int, height: int = 6, width: int = 8, count: int = 24) -> NerfViewTrace:
    """A view through random fog, thin and thick."""
    generator = torch.Generator().manual_seed(seed)
    rays = camera(height, width).generate_rays(camera_indices=0, keep_shape=True).flatten()
    num = height * width
    distances = (torch.rand(num, count, generator=generator) * 6 - 2).exp().sort(dim=-1).values
    weights = torch.rand(num, count, generator=generator) ** 6
    accumulation = torch.rand(num, generator=generator)
    weights = weights / weights.sum(-1, keepdim=True) * accumulation[:, None]
    ray = torch.arange(num)[:, None].expand(num, count).reshape(-1)
    positions = rays.origins[ray] + rays.directions[ray] * distances.reshape(-1, 1)
    samples = WeightedSamples(positions, weights.reshape(-1), ray, accumulation)
    depth = (weights * distances).sum(-1) / accumulation
    rgb = torch.rand(height, width, 3, generator=generator)
    return NerfViewTrace(samples, height, width, rgb, depth.reshape(height, width, 1), rays.origins, rays.directions)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), resolution=st.integers(2, 14), on=st.floats(0, 1))
def test_splat_is_the_adjoint_of_render(seed: int, resolution: int, on: float):
    trace, grid = pack(foggy(seed)), MaskGrid(resolution)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(grid.num_cells, 2, generator=generator)
    y = torch.rand(48, 2, generator=generator) * (torch.rand(48, 2, generator=generator) < on)
    forward = (trace.render(grid, x).double() * y).sum()
    adjoint = (x.double() * trace.backproject(grid, y)).sum()
    assert float(forward) == pytest.approx(float(adjoint), rel=1e-5, abs=1e-6)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), on=st.floats(0, 1))
def test_rows_are_those_of_the_trace(seed: int, on: float):
    grid, generator = MaskGrid(9), torch.Generator().manual_seed(seed)
    rays = (torch.rand(48, generator=generator) < on).nonzero()[:, 0]
    values, image = torch.rand(grid.num_cells, 1, generator=generator), torch.zeros(48, 1)
    image[rays, 0] = torch.rand(len(rays), generator=generator)
    for trace in (pack(foggy(seed)), foggy(seed)):
        rows = trace.rows(grid, rays)
        assert torch.allclose(rows.render(values[:, 0]), trace.render(grid, values)[rays, 0], atol=1e-5)
        out = torch.ones(grid.num_cells)
        rows.backproject(image[rays, 0], out)
        assert torch.allclose(out - 1, trace.backproject(grid, image)[:, 0], atol=1e-5)


def test_render_and_splat_are_those_of_the_atoms():
    """Compare with the plain trace of the same atoms, also after the trace has cached another place of the grid."""
    trace = pack(foggy(3))
    all_rays = slice(None)
    distances, weights = trace._decoded(trace.distances), trace._weights(all_rays)
    positions = trace.rays.origins_of(all_rays) + trace.rays.directions_of(all_rays) * distances[..., None]
    ray = torch.arange(48).expand(ATOMS, 48).reshape(-1)
    plain = NerfTrace(WeightedSamples(positions.reshape(-1, 3), weights.reshape(-1), ray, trace.accumulation))
    for center in (0.0, 0.3):
        grid = MaskGrid(9)
        grid.place(torch.full((3,), center), torch.ones(3))
        torch.manual_seed(0)
        x, y = torch.rand(grid.num_cells, 2), torch.rand(48, 2)
        y[::3, 0] = 0
        assert torch.allclose(trace.render(grid, x), plain.render(grid, x), atol=1e-5)
        assert torch.allclose(trace.backproject(grid, y), plain.backproject(grid, y), atol=1e-5)


def test_chunks_of_rays_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    trace, other, grid = pack(foggy(4)), pack(foggy(4)), MaskGrid(7)
    torch.manual_seed(0)
    x, y = torch.rand(grid.num_cells, 2), torch.rand(48, 2)
    whole = trace.render(grid, x), trace.backproject(grid, y)
    monkeypatch.setattr(packed, "CPU_RAYS", 7)
    monkeypatch.setattr(packed, "MAX_CACHED_ATOMS", 0)
    assert torch.allclose(other.render(grid, x), whole[0], atol=1e-6)
    assert torch.allclose(other.backproject(grid, y), whole[1], atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_errors_are_within_what_is_stated(seed: int):
    view = foggy(seed)
    trace = pack(view)
    all_rays = slice(None)
    weights = trace._weights(all_rays)
    assert (trace.accumulation - view.samples.accumulation).abs().max() <= 2**-17 + 1e-6
    assert torch.allclose(weights.sum(0), trace.accumulation, atol=1e-5)
    assert (trace.depth / view.depth - 1).abs().max() <= trace.distance_error
    assert (trace.rgb - view.rgb).abs().max() <= 1 / 510 + 1e-6
    # A pixel of an image of 1008 pixels over 60 degrees is 0.001 of the distance wide.
    assert trace.distance_error < 0.1 * 0.001
    angle = pixel_angle(view.directions.reshape(6, 8, 3))
    distances, masses = atoms_of(view.samples, view.origins, view.directions, angle)
    occupied = trace.shares > 0
    assert (trace._decoded(trace.distances)[occupied] / distances[occupied] - 1).abs().max() <= trace.distance_error
    cumulative_error = weights.cumsum(0) / trace.accumulation - masses.cumsum(0) / view.samples.accumulation
    assert cumulative_error.abs().max() <= 1 / 510 + 1e-4


def test_atoms_lose_no_weight_and_keep_its_mean():
    view = foggy(5)
    distances, weights = atoms_of(view.samples, view.origins, view.directions, 0.01)
    assert distances.shape == weights.shape == (ATOMS, 48)
    assert torch.allclose(weights.sum(0), view.samples.accumulation, atol=1e-5)
    mean = (weights * distances).sum(0) / weights.sum(0)
    assert torch.allclose(mean, view.depth.reshape(-1), rtol=1e-4)
    assert (distances[1:] - distances[:-1])[(weights[1:] > 1e-9) & (weights[:-1] > 1e-9)].min() >= 0


def test_few_samples_stay_as_they_are():
    """A ray with no more samples than a surface has keeps them: none is mixed with a sample far behind."""
    rays = camera(1, 1).generate_rays(camera_indices=0, keep_shape=True).flatten()
    distances = torch.tensor([2.0, 2.01, 9.0])
    positions = rays.origins + rays.directions * distances[:, None]
    samples = WeightedSamples(positions, torch.tensor([0.5, 0.3, 0.2]), torch.zeros(3).long(), torch.ones(1))
    atom_distances, weights = atoms_of(samples, rays.origins, rays.directions, 0.01)
    assert atom_distances[weights > 0].tolist()[-1] == pytest.approx(9.0)
    assert weights[weights > 0].tolist()[-1] == pytest.approx(0.2)


def test_rays_without_samples_and_samples_out_of_order():
    view = foggy(6)
    selected = view.samples.ray_indices % 5 != 0
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    shuffled = (torch.arange(48)[:, None] * 24 + order).reshape(-1)

    def some(keep: torch.Tensor) -> WeightedSamples:
        samples = view.samples
        return WeightedSamples(
            samples.positions[keep], samples.weights[keep], samples.ray_indices[keep], samples.accumulation
        )

    inorder = atoms_of(some(selected.nonzero()[:, 0]), view.origins, view.directions, 0.01)
    mixed = atoms_of(some(shuffled[selected[shuffled]]), view.origins, view.directions, 0.01)
    assert torch.allclose(inorder[1], mixed[1], atol=1e-5)
    assert inorder[1][:, ::5].sum() == 0
    nothing = atoms_of(some(torch.zeros(0).long()), view.origins, view.directions, 0.01)
    assert nothing[1].sum() == 0


def test_samples_off_their_rays_are_noticed():
    view = foggy(7)
    view.samples.positions[view.samples.weights.argmax()] += 0.5
    with pytest.raises(NotOnRays):
        atoms_of(view.samples, view.origins, view.directions, 0.01)


def test_the_masks_of_surfaces_are_the_same():
    views = BallViews(6)
    grid = MaskGrid(40)
    grid.place(torch.tensor([0.0, 0.0, 0.3]), torch.full((3,), 0.4))
    for view in range(6):
        mask = (views.ids(view) == 1).reshape(-1, 1).float()
        hit, seen = pack(views.trace(view)).backproject(grid, torch.cat([mask, torch.ones_like(mask)], -1)).unbind(-1)
        grid.add(hit, seen)
    for view in range(6):
        truth = views.trace(view)
        expected, actual = render_probability(truth, grid)[0], render_probability(pack(truth), grid)[0]
        assert (expected - actual).abs().mean() < 1e-3
        assert ((expected > 0.5) != (actual > 0.5)).sum() <= 2
        assert torch.allclose(pack(truth).surface_points()[truth.depth.reshape(-1) < 100],
                              truth.surface_points()[truth.depth.reshape(-1) < 100], atol=2e-3)  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_packs(method: str):
    model = masked(small_model(method))
    model.config.eval_num_rays_per_chunk = 37
    trace, plain = model.compressed_view(camera()), model.trace_view(camera())
    assert isinstance(trace, CompressedTrace)
    assert isinstance(plain, NerfViewTrace)
    assert trace.num_bytes <= 40 * 140
    assert torch.allclose(trace.accumulation, plain.accumulation, atol=1e-4)
    assert torch.allclose(trace.rgb, plain.rgb.clamp(0, 1), atol=0.003)
    grid = MaskGrid(8)
    x = grid.cell_positions().clamp(-2, 2) + 3
    # Coarse cells depend little on the exact position of weight; the plain trace drops weights below MIN_WEIGHT.
    difference = (trace.render(grid, x) - plain.render(grid, x)).abs()
    assert difference.mean() < 0.05 * float(plain.render(grid, x).mean()) + 1e-3


def test_views_of_one_lens_share_their_directions():
    shared_directions: list[torch.Tensor] = []
    turned = camera()
    turned.camera_to_worlds = torch.cat([torch.tensor([[[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]]), torch.ones(1, 3, 1)], -1)
    first, second, third = (
        camera_rays(camera(), shared_directions),
        camera_rays(turned, shared_directions),
        camera_rays(camera(8, 9), shared_directions),
    )
    assert first.local is second.local
    assert len(shared_directions) == 2
    assert third.local.shape == (72, 3)
    bundle = turned.generate_rays(camera_indices=0, keep_shape=True).flatten()
    assert torch.allclose(second.directions_of(slice(None)), bundle.directions, atol=1e-6)
    assert torch.allclose(second.origins_of(slice(None)).expand(140, 3), bundle.origins)


def test_what_goes_to_disk_comes_back():
    trace = pack(foggy(8))
    restored = CompressedTrace.restored(trace.tensors(), trace.numbers(), trace.rays)
    grid = MaskGrid(5)
    values = torch.rand(125, 2)
    assert torch.equal(restored.render(grid, values), trace.render(grid, values))
    assert torch.equal(restored.depth, trace.depth)
    with pytest.raises(ValueError, match="rays"):
        CompressedTrace.restored(trace.tensors(), {**trace.numbers(), "height": 7}, trace.rays)
    with pytest.raises(TypeError):
        CompressedTrace.restored({}, trace.numbers(), trace.rays)


def test_views_of_one_lens_share_their_directions_and_others_count_their_own():
    shared_directions: list[torch.Tensor] = []
    zooms = [1.0, 1.0, *(1 + 0.1 * number for number in range(1, 10))]
    views = []
    for zoom in zooms:
        view = camera(6, 8)
        view.fx = view.fx * zoom
        views.append(camera_rays(view, shared_directions))
    assert views[0].local is views[1].local
    assert len(shared_directions) == view_rays.LENSES
    assert [rays.num_bytes for rays in views] == [0] * 9 + [6 * 8 * 3 * 4] * 2


def test_rays_are_those_of_full_precision_whatever_products_of_matrices_are(monkeypatch: pytest.MonkeyPatch):
    """Containers may allow TF32, in which matrix products have 10 bits."""
    model, view = masked(small_model("nerfacto")), camera(12, 16)
    view.camera_to_worlds[0, :, :3] = torch.linalg.qr(torch.rand(3, 3, generator=torch.Generator().manual_seed(0)))[0]
    trace = model.compressed_view(view)
    assert isinstance(trace, CompressedTrace)
    expected, field = trace.rays.directions_of(slice(None)), MaskGrid(16)
    image = torch.rand(192, 1)
    lifted = trace.backproject(field, image)
    packed.forget()
    product = torch.Tensor.__matmul__

    def tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return product(*(x.half().to(x) if x.dtype == torch.float32 else x for x in (a, b)))

    monkeypatch.setattr(torch.Tensor, "__matmul__", tf32)
    rays = camera_rays(view)
    assert torch.allclose(rays.directions_of(slice(None)), expected, atol=1e-6)
    assert torch.allclose(trace.rays.directions_of(slice(None)), expected, atol=1e-6)
    assert torch.allclose(trace.backproject(field, image), lifted, atol=1e-5)


def test_what_all_rays_give_a_grid_is_kept_until_it_moves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed._ALL_RAYS_CACHE, "_budget", None)  # none where memory has run out in an earlier test
    model, grid = masked(small_model("nerfacto")), MaskGrid(12)
    trace = model.compressed_view(camera(12, 16))
    assert isinstance(trace, CompressedTrace)
    mask, weights = torch.rand(192) > 0.7, torch.where(torch.rand(192) > 0.1, 3.0, 0.0)
    expected = trace.backproject(grid, torch.stack([weights * mask, weights], dim=-1))
    lifted = 0
    original = trilinear.add

    def add(out: torch.Tensor, values: torch.Tensor, *rest: Any) -> None:
        nonlocal lifted
        lifted += len(values)
        original(out, values, *rest)

    monkeypatch.setattr(trilinear, "add", add)
    num_lifted = []
    for _ in range(2):
        lifting, lifted = EvidenceLifting(grid.fresh()), 0
        lifting.add(trace, mask, weights)
        num_lifted.append(lifted)
        assert torch.allclose(lifting.field.hit, expected[:, 0], atol=1e-5)
        assert torch.allclose(lifting.field.seen, expected[:, 1], atol=1e-4)
    assert num_lifted[0] - num_lifted[1] == 192 * ATOMS
    moved = grid.fresh()
    moved.place(torch.full((3,), 0.1), torch.ones(3))
    assert torch.allclose(trace.backproject_all(moved), trace.backproject(moved, torch.ones(192, 1))[:, 0])
    assert packed._ALL_RAYS_CACHE.reclaim() > 0
    assert packed._ALL_RAYS_CACHE.num_bytes == 0
