"""Checks of masks by depth, on a scene with an exact ground truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.visits import counted
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.segmentation.mask_depth import (
    FoundMask,
    _without_far_parts_on_device,
    background_rim,
    pixel_spacing,
    without_far_parts,
)
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.nerf import NerfViewTrace, WeightedSamples
from tests.analytic import BallSegmenter, BallViews
from tests.pretended_device import a_cuda_device

GAP = SessionSettings().part_gap


def grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask[None].float(), 2 * pixels + 1, 1, pixels)[0] > 0


def middle(mask: Tensor) -> Tensor:
    y, x = mask.nonzero().float().mean(0).round().long()
    return torch.stack([x, y])[None]


def a_piece(views: BallViews, view: int, ball: int) -> Tensor:
    """Pixels in the middle of a ball, as a segmenter may add them by mistake."""
    x, y = middle(views.ids(view) == ball)[0].tolist()
    piece = torch.zeros(views.height, views.width, dtype=torch.bool)
    piece[y - 1 : y + 2, x - 1 : x + 2] = True
    return piece & (views.ids(view) == ball)


def piece(trace: Any, mask: Tensor, gap: float = GAP, between: Any = None, **said: Any) -> Tensor:
    """Solid part of one mask, after the check by depth."""
    return without_far_parts([FoundMask(trace, mask, pixel_spacing(trace, mask), **said)], gap, between)[0]


@pytest.fixture
def views() -> BallViews:
    return BallViews()


@pytest.mark.parametrize("said", ["nothing", "a point", "what is known"])
def test_what_is_elsewhere_in_space_is_left_out(views: BallViews, said: str):
    trace, ball = views.trace(0), views.ids(0) == 1
    mask = ball | a_piece(views, 0, 3)
    points = middle(ball) if said == "a point" else None
    known = ball if said == "what is known" else None
    solid = piece(trace, mask, points=points, known=known)
    assert torch.equal(solid, ball)


def test_both_are_kept_where_the_user_points_at_both(views: BallViews):
    trace, ball = views.trace(0), views.ids(0) == 1
    mask = ball | a_piece(views, 0, 3)
    points = torch.cat([middle(ball), middle(mask & ~ball)])
    assert torch.equal(piece(trace, mask, points=points), mask)


def test_most_of_a_mask_is_never_left_out(views: BallViews):
    # The point lies on the small part, so depth is not trusted.
    trace, ball = views.trace(0), views.ids(0) == 1
    mask = ball | a_piece(views, 0, 3)
    points = middle(mask & ~ball)
    assert torch.equal(piece(trace, mask, points=points), mask)


def rod_behind_a_ball() -> BallViews:
    """Views of a rod, number 1; view 0 shows it on both sides of a ball, number 2."""
    y = torch.linspace(-0.8, 0.8, 80)
    rod = torch.stack([0 * y - 0.5, y, 0 * y + 0.3, 0 * y + 0.08], dim=-1)
    balls = torch.cat([rod, torch.tensor([[0.9, 0.0, 0.78, 0.3]])])
    return BallViews(24, 96, 128, balls=balls, numbers=torch.tensor([*[1] * 80, 2]))


def test_what_joins_two_parts_out_of_sight_is_one_thing_with_them():
    views = rod_behind_a_ball()
    trace, mask = views.trace(0), views.ids(0) == 1
    ball = views.ids(0) == 2
    left = mask & (torch.arange(views.width) < int(ball.any(0).nonzero().float().mean()))
    assert left.any() and (mask & ~left).any()

    def solid(places: Tensor) -> Tensor:
        return piece(trace, mask, known=left, between=lambda: places)

    known = views.balls[:80, :3]
    assert torch.equal(solid(known[:0]), left)
    assert torch.equal(solid(known + 1.0), left)
    assert torch.equal(solid(known), mask)


def test_a_large_part_of_what_the_user_was_shown_stays():
    views = rod_behind_a_ball()
    trace, mask = views.trace(0), views.ids(0) == 1
    point = torch.tensor([[int(mask.any(0).nonzero()[0]) + 1, 0]])
    point[0, 1] = mask[:, point[0, 0]].nonzero()[0]
    assert torch.equal(piece(trace, mask, points=point), mask)


def test_a_thing_that_is_seen_on_both_sides_of_another_is_found_whole():
    views = rod_behind_a_ball()
    session = SegmentationSession(views, BallSegmenter.of(views), MaskGrid(64), SessionSettings())
    mask = views.ids(0) == 1
    x = int(mask.any(0).nonzero()[0]) + 1
    y = int(mask[:, x].nonzero().float().mean().round())
    session.prompt(0, Prompt.from_points(views.height, views.width, [(x, y)]))
    session.run()
    points = session.grid.object_points()[0]
    assert points[:, 1].min() < -0.8 and points[:, 1].max() > 0.8
    probability, known = render_probability(views.trace(0), session.grid)
    rendered = ((probability > 0.5) & known).reshape(mask.shape)
    assert float((rendered & mask).sum() / (rendered | mask).sum()) > 0.95


@pytest.mark.parametrize("mask", ["ball", "nothing", "one pixel"])
def test_masks_in_one_piece_stay_as_they_are(views: BallViews, mask: str):
    ball = views.ids(0) == 1
    prompted = {"ball": ball, "nothing": ball & ~ball, "one pixel": ball & ~ball}[mask]
    if mask == "one pixel":
        x, y = middle(ball)[0]
        prompted[y, x] = True
    trace = views.trace(0)
    for gap in (0.0, GAP):
        solid = piece(trace, prompted, gap, points=torch.zeros(0, 2, dtype=torch.long))
        assert torch.equal(solid, prompted)
    assert mask == "ball" or not background_rim(trace, prompted, pixel_spacing(trace, prompted)).any()


def test_an_outline_that_is_too_wide_sees_past_the_object():
    views = BallViews(height=96, width=128)
    for view in range(len(views)):
        trace, ball = views.trace(view), views.ids(view) == 3
        mask = grown(ball, 2)
        past = background_rim(trace, mask, pixel_spacing(trace, mask))
        assert not (past & ball).any(), "what the ball hides nothing of is the ball"
        # Where the floor adjoins the ball, depth does not separate them.
        behind = mask & ~ball & (trace.depth[..., 0] > trace.depth[..., 0][ball].max() + 0.5)
        assert past[behind].all()
        assert behind.sum() > 20


def test_a_thin_thing_keeps_its_outline():
    # A rod about three pixels wide: in a real field, many pixels of an exact mask see past it.
    rod = torch.stack([torch.tensor([0.0, 0.3, 0.1 + 0.02 * step, 0.05]) for step in range(40)])
    views = BallViews(balls=rod, numbers=torch.ones(40, dtype=torch.long))
    trace, mask = views.trace(0), grown(views.ids(0) == 1, 1)
    assert mask.sum() > 40
    assert not background_rim(trace, mask, pixel_spacing(trace, mask)).any()


def test_rays_that_count_nothing_say_nothing(views: BallViews):
    trace, mask = views.trace(0), (views.ids(0) == 1).reshape(-1)
    weight = torch.rand(len(mask), generator=torch.Generator().manual_seed(0)) * 2
    weight[::2] = 0
    fields = [MaskGrid(32) for _ in range(3)]
    for field, weights in zip(fields, (weight, 0.5 * weight, torch.zeros_like(weight)), strict=True):
        EvidenceLifting(field).add(trace, mask, weights)
    assert torch.allclose(fields[0].seen, 2 * fields[1].seen, atol=1e-6)
    assert not fields[2].seen.any() and not fields[2].hit.any()
    by_number, by_ray = MaskGrid(32), MaskGrid(32)
    EvidenceLifting(by_number).add(trace, mask, 2.0)
    EvidenceLifting(by_ray).add(trace, mask, torch.full_like(weight, 2.0))
    assert torch.equal(by_number.hit, by_ray.hit) and torch.equal(by_number.seen, by_ray.seen)


class Careless(BallSegmenter):
    """Answers a user's prompt with an outline two pixels too wide, and with a piece of another ball."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        answer = super().predict(embedding, prompt)
        if prompt.prior is not None:
            return answer
        return Candidates((grown(answer.masks[0], 2) | a_piece(self.views, embedding, 1))[None], answer.scores)


def beside_the_ball(views: BallViews, **settings: object) -> int:
    """Number of rendered object pixels beside the ball in the other views, after a click on it, before the loop."""
    session = SegmentationSession(views, Careless.of(views), MaskGrid(64), SessionSettings(**settings))  # type: ignore[arg-type]
    session.prompt(0, Prompt.from_points(views.height, views.width, middle(views.ids(0) == 3).tolist()))
    session.lift_prompts()
    count = 0
    for view in range(1, len(views)):
        rendered = render_probability(views.trace(view), session.grid)[0].reshape(views.height, views.width) > 0.5
        count += int((rendered & ~grown(views.ids(view) == 3, 1)).sum())
    return count


def test_a_careless_segmenter_does_less_harm():
    views = BallViews(height=96, width=128)
    ways: list[dict] = [{}, {"part_gap": 0.0}, {"part_gap": 0.0, "trim_outline": False}]
    both, trimmed, neither = (beside_the_ball(views, **settings) for settings in ways)
    assert both < trimmed < 0.8 * neither


def test_the_published_update_takes_masks_as_they_are():
    views, fields = BallViews(height=96, width=128), []
    for settings in ({}, {"part_gap": 0.0, "trim_outline": False}):
        field = MaskGrid(64)
        prompted = SessionSettings(lifting="gradient", max_passes=1, **settings)
        session = SegmentationSession(views, Careless.of(views), field, prompted)
        session.prompt(0, Prompt.from_points(views.height, views.width, middle(views.ids(0) == 3).tolist()))
        session.run()
        fields.append(field)
    assert torch.equal(fields[0].hit, fields[1].hit)


def test_a_mask_that_the_user_gives_is_taken_as_it_is(views: BallViews):
    mask = (views.ids(0) == 1) | a_piece(views, 0, 3)
    grid = MaskGrid(64)
    session = SegmentationSession(views, BallSegmenter.of(views), grid, SessionSettings())
    session.prompt(0, Prompt(views.height, views.width, mask=mask))
    session.lift_prompts()
    points = views.trace(0).surface_points()[(mask & (views.ids(0) == 3)).reshape(-1)]
    assert (grid.probability_at(points) > 0.1).all()


@pytest.mark.parametrize("said", ["nothing", "a point", "what is known"])
@pytest.mark.parametrize("gap", [GAP, 0.02])
def test_a_gpu_finds_the_same_parts(views: BallViews, said: str, gap: float):
    """The GPU's implementation, which takes all views at once, on tensors of the CPU."""
    left_out = 0
    for ball in range(1, 4):
        masks = []
        for view in range(0, len(views), 3):
            trace, ids = views.trace(view), views.ids(view)
            mask = (ids == ball) | a_piece(views, view, 1 + ball % 3) if (ids == ball).any() else ids == ball
            points = middle(ids == ball) if said == "a point" and mask.any() else None
            known = (ids == ball) if said == "what is known" else None
            masks.append(FoundMask(trace, mask, torch.tensor(pixel_spacing(trace, mask)), points, known))
        between = (lambda: views.balls[:2, :3]) if said == "what is known" else None
        expected = [without_far_parts([item], gap, between)[0] for item in masks]
        left_out += sum(int((item.mask & ~solid).sum()) for item, solid in zip(masks, expected, strict=True))
        for solid, on_device in zip(expected, _without_far_parts_on_device(masks, gap, between), strict=True):
            assert torch.equal(on_device, solid)
    assert left_out > 0


def test_nothing_is_waited_for_on_a_gpu(views: BallViews):
    trace, mask = views.trace(0), (views.ids(0) == 1) | a_piece(views, 0, 3)
    spacing = pixel_spacing(trace, mask)
    solid, past = piece(trace, mask, known=views.ids(0) == 1), background_rim(trace, mask, spacing)
    with a_cuda_device():
        moved = NerfViewTrace(**{name: _moved(value) for name, value in vars(trace).items()})
        mask, known = mask.cuda(), (views.ids(0) == 1).cuda()
        with counted() as count:
            spacing_on_gpu = pixel_spacing(moved, mask)
            (solid_on_gpu,) = without_far_parts([FoundMask(moved, mask, spacing_on_gpu, known=known)], GAP)
            past_on_gpu = background_rim(moved, mask, spacing_on_gpu)
        assert count.operations > 50
        assert not count.waits
        assert not count.copies
        assert float(spacing_on_gpu) == pytest.approx(float(spacing))
        assert torch.equal(solid_on_gpu.cpu(), solid)
        assert torch.equal(past_on_gpu.cpu(), past)


def _moved(value: Any) -> Any:
    if isinstance(value, WeightedSamples):
        return WeightedSamples(**{name: _moved(field) for name, field in vars(value).items()})
    return value.cuda() if isinstance(value, Tensor) else value
