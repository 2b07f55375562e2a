"""The likelihood: its gradient, its descent, the weights of views, and the fitted field."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.fields.base import FAR_LOGIT
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation import likelihood
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.segmentation.likelihood import UNCHECKED, MaskedView, MaskLikelihood
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing, surface_of
from sa3d_nerfstudio.traces import compressed
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BALLS, BallViews
from tests.traces.test_compressed import pack

VIEWS = BallViews(height=36, width=48, noise=0.03)
TRACES = [pack(VIEWS.trace(view)) for view in range(len(VIEWS))]
IDS = [VIEWS.ids(view) for view in range(len(VIEWS))]


def lifted_ball(ball: int, spoilt: dict[int, torch.Tensor] | None = None) -> tuple[MaskGrid, list[MaskedView]]:
    """Grid that is too coarse for the ball, with the masks of all views lifted into it, and the views."""
    masks = {view: ids == ball for view, ids in enumerate(IDS)}
    visible = [view for view, mask in masks.items() if mask.any()]
    grid = MaskGrid(32)
    points = [surface_of(TRACES[view], masks[view], VIEWS.camera_to_worlds[view][:, 3]) for view in visible]
    grid.prepare(torch.cat(points), 2 * float(pixel_spacing(TRACES[visible[0]], masks[visible[0]])))
    masks |= spoilt or {}
    views = [MaskedView(TRACES[view], mask.reshape(-1)) for view, mask in masks.items()]
    for view in views:
        EvidenceLifting(grid).add(view.trace, view.mask)
    return grid, views


def wrong_mask(view: int) -> torch.Tensor:
    """Mask of another ball, instead of the prompted one."""
    return IDS[view] == 3


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31), ball=st.integers(1, len(BALLS)))
def test_the_gradient_is_that_of_the_loss(seed: int, ball: int):
    grid, views = lifted_ball(ball)
    likelihood = MaskLikelihood(grid, views)
    generator = torch.Generator().manual_seed(seed)
    logits = likelihood.start + torch.randn(grid.num_cells, generator=generator)
    direction = torch.randn(grid.num_cells, generator=generator) * grid.known()
    slope = float((likelihood.gradient(logits).double() * direction).sum())
    step = 1e-2
    difference = (likelihood.loss(logits + step * direction) - likelihood.loss(logits - step * direction)) / (2 * step)
    assert slope == pytest.approx(difference, rel=1e-2, abs=0.05)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**31))
def test_the_loss_is_convex(seed: int):
    grid, views = lifted_ball(1)
    likelihood = MaskLikelihood(grid, views)
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(grid.num_cells, generator=generator) * 4 for _ in range(2))
    assert likelihood.loss((first + second) / 2) <= (likelihood.loss(first) + likelihood.loss(second)) / 2 + 1e-3


@pytest.mark.parametrize("ball", range(1, len(BALLS) + 1))
def test_steps_go_down(ball: int):
    grid, views = lifted_ball(ball)
    likelihood = MaskLikelihood(grid, views)
    before = likelihood.loss(likelihood.start)
    report = likelihood.fit(12)
    assert all(after < earlier for earlier, after in itertools.pairwise(report.losses[:3]))
    assert grid.logits is not None and likelihood.loss(grid.logits) < 0.9 * before
    assert len(report.losses) == report.steps + 1 <= 13
    assert report.held_out[report.begun] < report.held_out[0]


@pytest.mark.parametrize("ball", range(1, len(BALLS) + 1))
def test_unseen_views_are_explained_better_than_by_averages(ball: int):
    unseen = BallViews(count=7, height=36, width=48, noise=0.03)
    grid, views = lifted_ball(ball)

    def iou() -> float:
        scores = []
        for view in range(len(unseen)):
            truth = unseen.ids(view).reshape(-1) == ball
            on = render_probability(unseen.trace(view), grid)[0] > 0.5
            scores.append(float((on & truth).sum() / (on | truth).sum()))
        return sum(scores) / len(scores)

    averages = iou()
    MaskLikelihood(grid, views).fit(15)
    assert iou() > averages + 0.003


@pytest.mark.parametrize("ball", range(1, len(BALLS) + 1))
def test_of_many_views_those_left_out_need_a_few_steps_more_only(ball: int, monkeypatch: pytest.MonkeyPatch):
    """A fit of many views takes ``FURTHER`` steps; from the averages, it takes the chosen number again."""
    all_views = BallViews(count=40, height=36, width=48, noise=0.03)
    grid, _ = lifted_ball(ball)
    views = []
    field = grid.fresh()
    for view in range(len(all_views)):
        mask = all_views.ids(view).reshape(-1) == ball
        EvidenceLifting(field).add(all_views.trace(view), mask)
        views.append(MaskedView(all_views.trace(view), mask))
    same_field = field.fresh()
    same_field.copy_from(field)
    report = MaskLikelihood(field, views).fit(25)
    monkeypatch.setattr(likelihood, "MANY_VIEWS", len(views) + 1)
    from_averages = MaskLikelihood(same_field, views).fit(25)
    assert report.held_out == from_averages.held_out and report.begun == from_averages.begun
    assert report.steps == likelihood.FURTHER < from_averages.steps == from_averages.begun
    assert report.losses[-1] < 1.1 * from_averages.losses[-1] < 0.5 * from_averages.losses[0]


def test_outlines_that_wobble_are_not_learnt_by_heart():
    generator = torch.Generator().manual_seed(0)
    wobbling = {}
    for view, ids in enumerate(IDS):
        wide = F.max_pool2d((ids == 1)[None].float(), 3, stride=1, padding=1)[0] > 0
        narrow = F.max_pool2d((ids != 1)[None].float(), 3, stride=1, padding=1)[0] == 0
        wobbling[view] = wide if torch.rand((), generator=generator) < 0.5 else narrow
    exact = MaskLikelihood(*lifted_ball(1)).fit(25)
    assert MaskLikelihood(*lifted_ball(1, wobbling)).fit(25).begun < exact.begun


def test_what_depth_left_out_is_the_object_where_all_views_together_say_so():
    """In every third view, depth wrongly leaves out half of the ball, and rightly leaves out another ball."""
    lifted, full_masks = {}, {}
    for view in range(0, len(IDS), 3):
        ids = IDS[view]
        half = torch.arange(ids.shape[1]) < (ids == 1).nonzero()[:, 1].float().mean()
        lifted[view] = (ids == 1) & half
        full_masks[view] = ((ids == 1) | (ids == 3)).reshape(-1)

    def explained(whole: bool) -> tuple[float, float]:
        grid, views = lifted_ball(1, lifted)
        for view, mask in full_masks.items():
            views[view].lifted = views[view].mask
            views[view].mask = mask if whole else views[view].mask
        MaskLikelihood(grid, views).fit(15)
        half_shares, other_shares = [], []
        for view in full_masks:
            on = render_probability(TRACES[view], grid)[0] > 0.5
            half_shares.append(float(on[(lifted[view].logical_not() & (IDS[view] == 1)).reshape(-1)].float().mean()))
            other_shares.append(float(on[(IDS[view] == 3).reshape(-1)].float().mean()))
        return sum(half_shares) / len(half_shares), max(other_shares)

    half_share, other_share = explained(whole=True)
    assert half_share > 0.97 and other_share == 0
    assert half_share > explained(whole=False)[0]


def test_few_views_are_all_used():
    grid, views = lifted_ball(1)
    few = grid.fresh()
    for view in views[:5]:
        EvidenceLifting(few).add(view.trace, view.mask)
    report = MaskLikelihood(few, views[:5]).fit(25)
    assert report.steps == UNCHECKED and not report.held_out


def test_the_order_of_views_and_the_size_of_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    grid, views = lifted_ball(2)
    same_grid = grid.fresh()
    same_grid.copy_from(grid)
    MaskLikelihood(grid, views[:7]).fit(5)
    monkeypatch.setattr(compressed, "CPU_RAYS", 100)
    compressed.forget()
    MaskLikelihood(same_grid, reversed(views[:7])).fit(5)
    assert grid.logits is not None and same_grid.logits is not None
    assert torch.allclose(grid.logits, same_grid.logits, atol=1e-3)


def test_how_many_views_are_worked_on_together_does_not_matter(monkeypatch: pytest.MonkeyPatch):
    """Views are weighted and held out one by one even if their rows are joined."""
    grid, views = lifted_ball(1, {2: wrong_mask(2)})
    same_grid = grid.fresh()
    same_grid.copy_from(grid)
    together = MaskLikelihood(grid, views)
    report = together.fit(12)
    assert len(together._equations) == 2, "those that are left out, and those that are not"
    monkeypatch.setattr(likelihood, "CPU_ATOMS", 1)
    one_by_one = MaskLikelihood(same_grid, views)
    other_report = one_by_one.fit(12)
    assert len(one_by_one._equations) == len(views)
    assert grid.logits is not None and same_grid.logits is not None
    assert torch.allclose(grid.logits, same_grid.logits, atol=1e-3)
    assert (report.begun, report.steps) == (other_report.begun, other_report.steps)
    assert report.trust == pytest.approx(other_report.trust, abs=1e-3)
    assert report.held_out == pytest.approx(other_report.held_out, rel=1e-3)


def test_a_view_that_counts_thrice_is_one_that_is_there_three_times():
    once, views = lifted_ball(2)
    thrice = once.fresh()
    thrice.copy_from(once)
    EvidenceLifting(once).add(views[0].trace, views[0].mask, 2.0)
    EvidenceLifting(thrice).add(views[0].trace, views[0].mask, 2.0)
    # Prompted views keep their weight; otherwise the tolerated misfit, a median over views, would differ.
    alike = [MaskedView(view.trace, view.mask, prompted=True) for view in views[:5]]
    heavy = MaskedView(views[0].trace, views[0].mask, 3.0, prompted=True)
    MaskLikelihood(once, [*alike[1:], heavy]).fit(6)
    MaskLikelihood(thrice, [*alike[1:], *[alike[0]] * 3]).fit(6)
    assert once.logits is not None and thrice.logits is not None
    assert torch.allclose(once.logits, thrice.logits, atol=1e-3)


def test_views_that_err_lose_their_weight_unless_the_user_prompted_them():
    wrong = {view: wrong_mask(view) for view in (2, 7)}
    clean, clean_views = lifted_ball(1)
    grid, views = lifted_ball(1, wrong)
    report = MaskLikelihood(grid, views).fit(12)
    trust = torch.tensor(report.trust)
    assert (trust[[2, 7]] < 0.05).all() and trust[[view for view in range(12) if view not in wrong]].min() > 0.5
    MaskLikelihood(clean, clean_views).fit(12)
    renders = [[render_probability(trace, field)[0] > 0.5 for trace in TRACES] for field in (grid, clean)]
    agreements = [
        float((mask & clean_mask).sum() / (mask | clean_mask).sum()) for mask, clean_mask in zip(*renders, strict=True)
    ]
    assert min(agreements) > 0.85 and sum(agreements) / len(agreements) > 0.95
    views[2].prompted = True
    assert MaskLikelihood(grid, views).fit(12).trust[2] == 1


def test_cells_too_far_out_never_hold_the_object():
    grid, views = lifted_ball(1)
    everything = [MaskedView(view.trace, torch.ones_like(view.mask)) for view in views]
    MaskLikelihood(grid, everything).fit(10)
    assert grid.logits is not None
    far = ~grid._near() & grid.known()
    assert far.any() and grid.logits[far].max() <= FAR_LOGIT < grid.logits[~far].max()


def test_cells_that_no_view_has_seen_say_nothing():
    grid, views = lifted_ball(1)
    MaskLikelihood(grid, views).fit(4)
    assert grid.logits is not None
    unknown = ~grid.known()
    assert unknown.any() and not grid.logits[unknown].any() and not grid.probability()[unknown].any()


def test_fewer_rays_stand_in_for_all_where_memory_is_scarce():
    grid, views = lifted_ball(1)
    thinned = grid.fresh()
    thinned.copy_from(grid)
    every = MaskLikelihood(grid, views)
    least = max(len(equations.mask) for equations in every._equations)
    some = MaskLikelihood(thinned, views, most_rays=least // 2)
    assert max(len(equations.mask) for equations in some._equations) <= least // 2
    weights = [sum(float(equations.weight.sum()) for equations in each._equations) for each in (some, every)]
    assert weights[0] == pytest.approx(weights[1], rel=0.05)
    every.fit(8)
    some.fit(8)
    assert grid.logits is not None and thinned.logits is not None
    on, on_thinned = grid.logits > 0, thinned.logits > 0
    assert (on & on_thinned).sum() > 0.95 * (on | on_thinned).sum()
