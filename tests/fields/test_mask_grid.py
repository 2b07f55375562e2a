"""The mask grid against slow, obvious references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.visits import counted
from sa3d_nerfstudio.fields.mask_grid import MaskGrid, may_show, passing, robust_bounds
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.nerf import NerfTrace, WeightedSamples
from tests.pretended_device import a_cuda_device


def placed_grid(resolution: int = 9) -> MaskGrid:
    grid = MaskGrid(resolution)
    grid.place(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 1.0, 0.25]))
    return grid


def trilinear_by_hand(grid: MaskGrid, values: torch.Tensor, position: torch.Tensor) -> float:
    """Trilinear interpolation of eight corners, one at a time."""
    r = grid.resolution
    u = (grid.contract(position[None])[0] + 1) / 2 * (r - 1)
    total = 0.0
    for corner in range(8):
        weight, index = 1.0, 0
        for axis, stride in enumerate((1, r, r * r)):
            low = min(int(u[axis]), r - 2)
            up = corner >> axis & 1
            share = float(u[axis]) - low
            weight *= share if up else 1 - share
            index += (low + up) * stride
        total += weight * float(values[index])
    return total


def test_gather_is_trilinear():
    torch.manual_seed(0)
    grid = placed_grid()
    values = torch.rand(grid.num_cells, 1)
    positions = torch.randn(50, 3)
    expected = [trilinear_by_hand(grid, values[:, 0], position) for position in positions]
    assert grid.gather(values, positions)[:, 0].tolist() == pytest.approx(expected, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 100), resolution=st.integers(2, 12))
def test_scatter_is_the_adjoint_of_gather(seed: int, spread: float, resolution: int):
    generator = torch.Generator().manual_seed(seed)
    grid = placed_grid(resolution)
    x = torch.rand(grid.num_cells, 2, generator=generator)
    positions = torch.randn(64, 3, generator=generator) * spread
    y = torch.rand(64, 2, generator=generator)
    forward = (grid.gather(x, positions).double() * y).sum()
    adjoint = (x.double() * grid.scatter(y, positions)).sum()
    assert float(forward) == pytest.approx(float(adjoint), rel=1e-5)


def test_scatter_keeps_all_weight_near_and_far():
    grid = placed_grid()
    positions = torch.tensor([[0.3, -0.2, 1.0], [1e6, 0.0, 0.0], [-1e3, 1e3, 5.0], [0.8, 0.8, 1.25]])
    assert float(grid.scatter(torch.ones(4, 1), positions).sum()) == pytest.approx(4.0, rel=1e-5)


def test_cell_positions_invert_the_contraction():
    grid = placed_grid(11)
    line = torch.linspace(-1, 1, 11)
    u = grid.contract(grid.cell_positions()).reshape(11, 11, 11, 3)
    # The border represents infinity by a finite distance, which limits the accuracy.
    assert torch.allclose(u[5, 5, :, 0], line, atol=1e-3)
    assert torch.allclose(u[:, 5, 5, 2], line, atol=1e-3)


def test_contraction_is_smooth_at_the_border_of_the_box():
    grid = placed_grid()
    x = torch.zeros(3, 3) + grid.center
    x[:, 0] += grid.half_extent[0] * torch.tensor([1 - 1e-3, 1.0, 1 + 1e-3])
    u = grid.contract(x)[:, 0]
    assert float(u[1] - u[0]) == pytest.approx(float(u[2] - u[1]), rel=1e-2)


def test_unknown_is_not_the_same_as_no():
    grid = placed_grid(3)
    hit, seen = torch.zeros(27), torch.zeros(27)
    seen[0], seen[1], hit[1] = 5.0, 5.0, 4.0
    grid.add(hit, seen)
    assert grid.known().nonzero()[:, 0].tolist() == [0, 1]
    assert grid.probability()[:3].tolist() == pytest.approx([0.0, 0.8, 0.0])


def test_filling_takes_the_inside_from_the_shell():
    grid = MaskGrid(32)
    position = grid.cell_positions()
    radius = position.norm(dim=-1)
    shell = (radius > 0.35) & (radius < 0.5)
    outside = (radius > 0.7) & (radius < 0.9)
    grid.add(shell.float(), (shell | outside).float())
    filled = grid.filled_probability()
    assert (filled[radius < 0.3] > 0.5).all()
    assert (filled[radius > 0.75] < 0.5).all()
    assert torch.equal(filled[shell | outside], grid.probability()[shell | outside])


def test_the_tails_of_rays_far_behind_are_not_the_object():
    grid = MaskGrid(32)
    distance = grid.cell_positions().norm(dim=-1)
    near, far = distance < 0.5, distance > 20
    grid.add((near | far).float() * 5, torch.full((grid.num_cells,), 5.0))
    assert far.any()
    assert torch.equal(grid.object_cells(), near)
    assert not (grid.filled_probability()[far] > 0.5).any()


def test_masks_end_where_cells_are_too_large_to_say():
    # Evidence in a coarse cell behind the object must not be rendered as a blob on the wall.
    grid = MaskGrid(32)
    grid.add(torch.full((grid.num_cells,), 5.0), torch.full((grid.num_cells,), 5.0))
    rendered = grid.gather(grid.cells(), torch.tensor([[0.0, 0.0, 1.05], [0.0, 0.0, 3.0], [0.0, 0.0, 50.0]]))
    assert rendered[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert rendered[:, 1].tolist() == pytest.approx([1.0, 1.0, 1.0])


def test_cells_that_are_hardly_seen_are_not_the_object():
    grid = MaskGrid(32)
    distance = grid.cell_positions().norm(dim=-1)
    near, speck = distance < 0.4, (distance > 0.9) & (distance < 1.0)
    grid.add(near.float() * 5 + speck * 0.01, near.float() * 5 + speck * 0.01)
    assert speck.any()
    assert torch.equal(grid.object_cells(), near)


def test_hits_finds_every_ray_through_the_object_and_few_others():
    grid = MaskGrid(64)
    on = grid.cell_positions().norm(dim=-1) < 0.4
    grid.add(on.float(), torch.ones(grid.num_cells))
    torch.manual_seed(0)
    origins = torch.nn.functional.normalize(torch.randn(4000, 3), dim=-1) * 3
    directions = torch.nn.functional.normalize(torch.rand(4000, 3) * 1.6 - 0.8 - origins, dim=-1)
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1)
    hits = grid.hits(origins, directions)
    cell = 2 * 1.25 / 63
    assert hits[nearest < 0.4 - cell].all()
    assert not hits[nearest > 0.4 + 4 * cell].any()
    assert not grid.hits(origins, -directions).any()
    assert not grid.may_show(origins, -directions).any()


def test_rays_that_may_show_the_object_are_few_and_all():
    """Whether a ray shows a ball depends on the distribution of its weight, which is random and rough here."""
    torch.manual_seed(0)
    grid = MaskGrid(24)
    grid.place(torch.zeros(3), torch.ones(3))
    positions = grid.cell_positions()
    grid.set((positions.norm(dim=-1) < 0.4).float(), torch.ones(grid.num_cells))
    cell = float(grid.cell_size)
    origins = torch.tensor([[0.0, 0.0, 3.0]]).expand(4000, 3)
    targets = torch.rand(4000, 3) * 1.6 - 0.8
    directions = torch.nn.functional.normalize(targets - origins, dim=-1)
    nearest = torch.linalg.cross(origins, directions).norm(dim=-1)
    may_show = grid.may_show(origins, directions)
    assert may_show[nearest < 0.4 - cell].all()
    assert not may_show[nearest > 0.4 + cell].any()
    assert may_show.sum() < 0.7 * grid.hits(origins, directions).sum()
    weights = torch.rand(4000, 60) ** 8 * (torch.rand(4000, 60) < 0.3)
    weights /= weights.sum(-1, keepdim=True).clamp(min=1e-9)
    along = torch.linspace(2.3, 3.7, 60).expand(4000, 60)
    samples = WeightedSamples(
        (origins[:, None] + directions[:, None] * along[..., None]).reshape(-1, 3),
        weights.reshape(-1),
        torch.arange(4000).repeat_interleave(60),
        weights.sum(-1),
    )
    shown = render_probability(NerfTrace(samples), grid)[0] > 0.5
    assert shown.sum() > 200
    assert (shown & ~may_show).sum() <= 0.002 * shown.sum()


def test_robust_bounds_leave_out_strays():
    torch.manual_seed(0)
    points = torch.rand(1000, 3)
    points[:5] = 100.0
    low, high = robust_bounds(points)
    assert (low.abs() < 0.05).all()
    assert ((high - 1).abs() < 0.05).all()


def test_a_grid_of_another_resolution_loads():
    saved = placed_grid(7)
    saved.add(torch.rand(343), torch.ones(343))
    grid = MaskGrid(4)
    grid.load_state_dict(saved.state_dict())
    assert grid.resolution == 7
    assert torch.equal(grid.probability(), saved.probability())
    assert torch.equal(grid.center, saved.center)


def test_resampling_in_the_same_place_changes_nothing():
    saved = placed_grid(9)
    saved.add(torch.rand(729), torch.ones(729))
    resampled = saved.resampled(saved.fresh())
    inner = torch.ones(9, 9, 9, dtype=torch.bool)
    inner[[0, -1]] = inner[:, [0, -1]] = inner[:, :, [0, -1]] = False
    assert torch.allclose(resampled.probability()[inner.reshape(-1)], saved.probability()[inner.reshape(-1)], atol=1e-4)


def with_logits(resolution: int = 7) -> MaskGrid:
    grid = placed_grid(resolution)
    grid.add(torch.rand(resolution**3), torch.ones(resolution**3))
    grid.set_logits(grid.bounded(torch.randn(resolution**3) * 3))
    return grid


def test_logits_are_saved_and_those_of_older_runs_are_absent():
    torch.manual_seed(0)
    saved, older = with_logits(), placed_grid(7)
    older.add(torch.rand(343), torch.ones(343))
    assert "logits" not in older.state_dict()
    grid = MaskGrid(4)
    grid.load_state_dict(saved.state_dict())
    assert grid.logits is not None and torch.equal(grid.cells(), saved.cells())
    grid.load_state_dict(older.state_dict())
    assert grid.logits is None and torch.equal(grid.cells(), older.cells())


def test_everything_is_read_from_logits_until_there_is_new_evidence():
    torch.manual_seed(0)
    grid = with_logits()
    assert grid.logits is not None
    assert torch.equal(grid.probability(), grid.logits.sigmoid())
    assert (grid.object_cells() <= (grid.logits > 0)).all()
    copy = grid.fresh()
    assert copy.logits is None
    copy.copy_from(grid)
    assert torch.equal(copy.cells(), grid.cells())
    resampled = grid.resampled(grid.fresh())
    inner = torch.zeros(7, 7, 7, dtype=torch.bool)
    inner[1:-1, 1:-1, 1:-1] = True
    assert resampled.logits is not None
    assert torch.allclose(resampled.logits[inner.reshape(-1)], grid.logits[inner.reshape(-1)], atol=1e-3)
    grid.add(torch.zeros(343), torch.ones(343))
    assert grid.logits is None and torch.equal(grid.probability(), grid.average())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), threshold=st.sampled_from([0.2, 0.5, 0.8]))
def test_no_ray_that_shows_an_object_by_its_logits_is_left_out(seed: int, threshold: float):
    generator = torch.Generator().manual_seed(seed)
    grid = MaskGrid(9)
    grid.add(torch.rand(729, generator=generator), torch.ones(729))
    on = grid.cell_positions().norm(dim=-1) < 0.5
    grid.set_logits(torch.where(on, 4.0, -4.0) + torch.randn(729, generator=generator))
    origins = torch.randn(200, 3, generator=generator) * 3
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator) - origins / 3, dim=-1)
    steps = torch.arange(0, 6, 0.05)
    positions = origins[:, None] + directions[:, None] * steps[:, None]
    weights = torch.rand(200, len(steps), generator=generator) ** 8
    weights /= weights.sum(-1, keepdim=True)
    ray = torch.arange(200)[:, None].expand_as(weights).reshape(-1)
    trace = NerfTrace(WeightedSamples(positions.reshape(-1, 3), weights.reshape(-1), ray, torch.ones(200)))
    shown = render_probability(trace, grid)[0] > threshold
    assert (shown <= grid.may_show(origins, directions, threshold)).all()


def test_a_gpu_is_not_waited_for_to_tell_which_rays_pass_the_object():
    grid = MaskGrid(24)
    ball = (grid.cell_positions().norm(dim=-1) < 0.3).float()
    grid.set(ball * torch.linspace(1, 5, len(ball)), 5 * torch.linspace(0.2, 1, len(ball)))
    generator = torch.Generator().manual_seed(0)
    origins = torch.randn(500, 3, generator=generator) * 0.2 + torch.tensor([0.0, 0.0, 3.0])
    towards = torch.randn(500, 3, generator=generator) * 0.15 - torch.tensor([0.0, 0.0, 1.0])
    directions = torch.nn.functional.normalize(towards, dim=-1)
    expected, shown = (test(grid, origins, directions) for test in (passing, may_show))
    assert 100 < int(expected.sum()) < 400
    with a_cuda_device():
        grid_on_gpu = grid.fresh().cuda()
        grid_on_gpu.place(grid.center.cuda(), grid.half_extent.cuda())
        grid_on_gpu.set(grid.hit.cuda(), grid.seen.cuda())
        rays = origins.cuda(), directions.cuda()
        with counted() as count:
            passing_on_gpu = passing(grid_on_gpu, *rays)
        assert count.operations > 10
        assert not count.waits
        assert torch.equal(passing_on_gpu.cpu(), expected)
        assert torch.equal(may_show(grid_on_gpu, *rays).cpu(), shown)
        assert float(grid_on_gpu.firm_evidence()) == pytest.approx(float(grid.firm_evidence()))
        grid_on_gpu.set(grid_on_gpu.hit * 0, grid_on_gpu.seen)
        assert not passing(grid_on_gpu, *rays).any()
