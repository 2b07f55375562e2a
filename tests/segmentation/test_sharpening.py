"""Sharpening brings what a field renders closer to the masks that it was made from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Sharpening
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing, surface_of
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability
from tests.analytic import BALLS, BallViews


def lifted_ball(views: BallViews, ball: int) -> tuple[MaskGrid, Sequence[tuple[ViewTrace, torch.Tensor]]]:
    """A grid too coarse for the ball, with the true masks of all views lifted to it, and these."""
    masks = {view: views.ids(view) == ball for view in range(len(views))}
    shown = [view for view, mask in masks.items() if mask.any()]
    grid = MaskGrid(32)
    places = [surface_of(views.trace(view), masks[view], views.camera_to_worlds[view][:, 3]) for view in shown]
    grid.prepare(torch.cat(places), 2 * pixel_spacing(views.trace(shown[0]), masks[shown[0]]))
    pairs = [(views.trace(view), mask.reshape(-1)) for view, mask in masks.items()]
    for trace, mask in pairs:
        EvidenceLifting(grid).add(trace, mask)
    return grid, pairs


def error(grid: MaskGrid, pairs) -> float:
    """Squared difference of all renders to their masks."""
    total = 0.0
    for trace, mask in pairs:
        probability, known = render_probability(trace, grid)
        total += float((((mask.float() - probability) * known) ** 2).sum())
    return total


@pytest.mark.parametrize("ball", range(1, len(BALLS) + 1))
def test_each_sweep_brings_renders_closer_to_the_masks(ball: int):
    grid, pairs = lifted_ball(BallViews(), ball)
    seen, errors = grid.seen.clone(), [error(grid, pairs)]
    for _ in range(4):
        sweep = Sharpening(grid)
        for trace, mask in pairs:
            sweep.add(trace, mask)
        sweep.finish()
        errors.append(error(grid, pairs))
        probability = grid.probability()
        assert (probability >= 0).all() and (probability <= 1).all()
        assert torch.equal(grid.seen, seen)
        assert (grid.hit <= seen).all()
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_masks_that_the_field_renders_already_change_nothing():
    grid, pairs = lifted_ball(BallViews(), 1)
    before = grid.hit.clone()
    sweep = Sharpening(grid)
    for trace, _ in pairs:
        sweep.add(trace, render_probability(trace, grid)[0])
    sweep.finish()
    assert torch.allclose(grid.hit, before, atol=1e-5)


def test_weights_count_as_in_lifting():
    """A view that counts three times is one that is there three times."""
    first, pairs = lifted_ball(BallViews(), 2)
    second = first.fresh()
    second.copy_from(first)
    EvidenceLifting(first).add(*pairs[0], weight=2.0)
    for _ in range(2):
        EvidenceLifting(second).add(*pairs[0])
    sweeps = Sharpening(first), Sharpening(second)
    for trace, mask in pairs[1:]:
        sweeps[0].add(trace, mask)
        sweeps[1].add(trace, mask)
    sweeps[0].add(*pairs[0], weight=3.0)
    for _ in range(3):
        sweeps[1].add(*pairs[0])
    for sweep in sweeps:
        sweep.finish()
    assert torch.allclose(first.hit, second.hit, atol=1e-4)
