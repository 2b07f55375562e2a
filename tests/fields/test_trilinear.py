"""Sparse trilinear sums, compared with the mask grid's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.fields import trilinear
from sa3d_nerfstudio.fields.mask_grid import REACH, MaskGrid
from sa3d_nerfstudio.fields.trilinear import single_valued


def placed(resolution: int) -> MaskGrid:
    grid = MaskGrid(resolution)
    grid.place(torch.tensor([0.3, -0.2, 1.0]), torch.tensor([0.5, 1.0, 0.25]))
    return grid


def located(grid: MaskGrid, positions: torch.Tensor):
    return grid.located(*((positions - grid.center) / grid.half_extent).T.contiguous())


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 100), resolution=st.integers(2, 12), steps=st.integers(0, 3))
def test_reads_what_grid_sample_reads(seed: int, spread: float, resolution: int, steps: int):
    """Values of which many are equal are read as well, from one vertex instead of eight."""
    generator, grid = torch.Generator().manual_seed(seed), placed(resolution)
    values = torch.rand(grid.num_cells, generator=generator)
    values = (values * steps).round() if steps else values
    positions = torch.randn(64, 3, generator=generator) * spread
    index, fractions = located(grid, positions)
    expected = grid.gather(values[:, None], positions)[:, 0]
    actual = trilinear.read(values, index, fractions, resolution)
    assert torch.allclose(actual, expected, atol=1e-4 * max(steps, 1))
    weights, single = torch.rand(4, 16, generator=generator), single_valued(values, resolution)
    (sums,) = trilinear.read_sums([values], [single], weights, index, fractions, resolution)
    assert torch.allclose(sums, (expected.reshape(4, 16) * weights).sum(0), atol=4e-4 * max(steps, 1))
    both = torch.stack([values, 1 - values], dim=-1)
    together = trilinear.read_all(both, weights, index, fractions, grid.corner_offsets())
    assert torch.allclose(together, torch.stack([sums, weights.sum(0) - sums], dim=-1), atol=4e-4 * max(steps, 1))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 100), resolution=st.integers(2, 12))
def test_adds_what_scatter_adds(seed: int, spread: float, resolution: int):
    generator, grid = torch.Generator().manual_seed(seed), placed(resolution)
    values = torch.rand(64, generator=generator)
    positions = torch.randn(64, 3, generator=generator) * spread
    out = torch.zeros(grid.num_cells)
    trilinear.add(out, values, *located(grid, positions), resolution)
    assert torch.allclose(out, grid.scatter(values[:, None], positions)[:, 0], atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**31), spread=st.floats(0.01, 100), resolution=st.integers(2, 12))
def test_all_corners_at_once_are_adjoint(seed: int, spread: float, resolution: int):
    """``<A x, y> == <x, Aᵀ y>`` for the functions that a GPU uses."""
    generator, grid = torch.Generator().manual_seed(seed), placed(resolution)
    atoms = located(grid, torch.randn(64, 3, generator=generator) * spread)
    values, image = (torch.rand(count, 2, generator=generator) for count in (grid.num_cells, 16))
    weights, out = torch.rand(4, 16, generator=generator), torch.zeros(grid.num_cells, 2)
    read = trilinear.read_all(values, weights, *atoms, grid.corner_offsets())
    trilinear.add_all(out, image, weights, *atoms, grid.corner_offsets())
    assert torch.allclose((read * image).sum(0), (values * out).sum(0), rtol=1e-4, atol=1e-4)


def test_corners_follow_a_grid_that_is_placed_anew():
    grid = MaskGrid(32)
    assert grid.corner_offsets()[:, 0].tolist() == list(trilinear.corner_offsets(32))
    grid.place_around(torch.rand(100, 3), spacing=0.05)
    assert grid.resolution < 32
    assert grid.corner_offsets()[:, 0].tolist() == list(trilinear.corner_offsets(grid.resolution))


@pytest.mark.parametrize("step", [1.0, 1e-3, 1e-30, 1e-44])
def test_one_tells_what_eight_have_in_common(step: float):
    """Eight values that differ, however little, are distinguished from equal ones."""
    torch.manual_seed(0)
    volume = (torch.rand(6, 6, 6) < 0.85).float() * step
    single = single_valued(volume.reshape(-1), 6).reshape(6, 6, 6)
    uniform = 0
    for z, y, x in torch.cartesian_prod(*[torch.arange(5)] * 3).tolist():
        block = volume[z : z + 2, y : y + 2, x : x + 2]
        same = bool((block == block[0, 0, 0]).all())
        assert float(single[z, y, x]) == (float(volume[z, y, x]) if same else float("inf"))
        uniform += same
    assert 0 < uniform < 125


@pytest.mark.parametrize("resolution", [2, 16, 33])
def test_near_vertices_are_those_within_reach(resolution: int):
    grid = placed(resolution)
    distance = ((grid.cell_positions() - grid.center) / grid.half_extent).abs().amax(dim=-1)
    unsure = (distance - REACH).abs() < 1e-4
    assert torch.equal(grid._near()[~unsure], (distance <= REACH)[~unsure])
