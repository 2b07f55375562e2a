"""Self-prompts from rendered masks, agreement of masks with them, and the order of visits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.segmentation import self_prompting
from sa3d_nerfstudio.segmentation.self_prompting import (
    Agreement,
    SelfPrompts,
    agreement,
    best_agreeing,
    points_in_view,
    self_prompt,
    spread_points,
)
from sa3d_nerfstudio.segmentation.view_selection import view_order
from tests.analytic import BallViews

EVERYWHERE = torch.ones(20, 30, dtype=torch.bool)


def two_blobs() -> torch.Tensor:
    mask = torch.zeros(20, 30)
    mask[5:10, 3:9], mask[5:10, 20:26] = 0.9, 0.8
    mask[7, 5] = 1.0
    return mask


def test_the_first_published_point_is_the_most_certain():
    prompt = self_prompt(two_blobs(), EVERYWHERE, torch.ones(20, 30), num_points=1, rule="published")
    assert prompt is not None
    assert prompt.positive.tolist() == [[5, 7]]


def test_further_published_points_stay_near_in_depth():
    depth = torch.ones(20, 30)
    depth[:, :15] = 5.0
    mask = two_blobs()
    mask[7, 22] = 0.95
    near = self_prompt(mask, EVERYWHERE, torch.ones(20, 30), num_points=2, rule="published")
    far = self_prompt(mask, EVERYWHERE, depth, num_points=2, rule="published")
    assert near is not None and far is not None
    # 0.45 - d 0.5 at the other blob against 0.4 - d 0.5 beside the first point: the depth decides.
    assert far.positive[1, 0] < 15
    # By hand: the chosen point maximises M - 0.5 - d(p, q) (M(q) - 0.5) over the remaining pixels.
    score = mask - 0.5
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    distance = (((y - 7) / 20) ** 2 + ((x - 5) / 30) ** 2).sqrt()
    objective = score - distance * 0.5
    objective[5:10, 3:8] = -1
    objective[mask <= 0.5] = -1
    best = int(objective.argmax())
    assert near.positive[1].tolist() == [best % 30, best // 30]


def test_nothing_to_prompt_from():
    assert self_prompt(torch.full((20, 30), 0.4), EVERYWHERE, torch.ones(20, 30)) is None
    assert self_prompt(two_blobs(), ~EVERYWHERE, torch.ones(20, 30)) is None


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 8), rule=st.sampled_from(["spread", "published"]))
def test_points_lie_on_the_mask_and_apart(seed: int, number: int, rule: SelfPrompts):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(20, 30, generator=generator)
    known = torch.rand(20, 30, generator=generator) > 0.3
    prompt = self_prompt(mask, known, torch.rand(20, 30, generator=generator), number, rule=rule)
    assert prompt is not None
    points = prompt.positive.long()
    assert 1 <= len(points) <= number
    assert (mask[points[:, 1], points[:, 0]] > 0.5).all()
    assert known[points[:, 1], points[:, 0]].all()
    apart = (points[:, None] - points[None]).float().norm(dim=-1) + 100 * torch.eye(len(points))
    assert apart.min() > 2
    assert prompt.prior is not None
    assert torch.equal(prompt.prior.isnan(), ~known)


def test_spread_points_reach_all_over_the_inside():
    # A bar whose probability is saturated at its upper left corner, where the published rule begins.
    mask = torch.zeros(40, 80)
    mask[10:26, 8:72] = 0.9
    mask[10:14, 8:20] = 1.0
    points = torch.tensor(spread_points(mask - 0.5, 5)).float()
    published = self_prompt(mask, torch.ones(40, 80) > 0, torch.ones(40, 80), 1, rule="published")
    assert published is not None and published.positive.tolist() == [[8, 10]]
    x, y = points.unbind(-1)
    inset = torch.stack([x - 7.5, 71.5 - x, y - 9.5, 25.5 - y]).amin(0)
    assert inset[0] > 0.6 * 8, "the first point is near the outline"
    assert inset.min() > 2
    assert x.min() < 18 and x.max() > 62


@pytest.mark.parametrize("thickness", [1, 9, 200])
def test_spread_points_of_a_large_mask_reach_as_far(monkeypatch: pytest.MonkeyPatch, thickness: int):
    """Not all pixels of a large mask are compared; a diagonal is favoured by no raster."""
    y, x = torch.meshgrid(torch.arange(600), torch.arange(900), indexing="ij")
    mask = ((y - 0.7 * x).abs() <= thickness).float()
    sampled = torch.tensor(spread_points(mask - 0.5, 5)).float()
    monkeypatch.setattr(self_prompting, "MAX_POINT_PIXELS", 1 << 30)
    exact = torch.tensor(spread_points(mask - 0.5, 5)).float()
    assert len(sampled) == len(exact) == 5
    apart = [float(torch.nn.functional.pdist(points).min()) for points in (sampled, exact)]
    assert apart[0] > 0.9 * apart[1]
    assert bool((mask[sampled[:, 1].long(), sampled[:, 0].long()] > 0).all())


def test_spread_points_in_what_is_thin():
    mask = torch.zeros(40, 80)
    mask[20, 10:70] = 1.0
    points = torch.tensor(spread_points(mask - 0.5, 3))
    assert (points[:, 1] == 20).all()
    assert points[:, 0].max() - points[:, 0].min() > 50


def test_score_counts_as_much_as_distance():
    mask = torch.zeros(40, 80)
    mask[5:25, 5:25], mask[5:21, 50:66] = 0.6, 1.0
    assert spread_points(mask - 0.5, 1)[0][0] > 40


def test_points_in_space_are_found_where_they_are_seen():
    views = BallViews()
    trace = views.trace(0)
    cells = trace.surface_points().reshape(views.height, views.width, 3)
    ids = views.ids(0)
    y, x = (ids == 2).nonzero()[(ids == 2).sum() // 2].tolist()
    point = cells[y, x][None]
    empty = torch.zeros(views.height, views.width, dtype=torch.bool)
    seen = points_in_view(point, trace, views.camera_to_worlds[0][:, 3], empty)
    assert seen.tolist() == [[x, y]]
    num_visible = 0
    for view in range(len(views)):
        trace, camera = views.trace(view), views.camera_to_worlds[view][:, 3]
        offset = point[0] - camera
        pixels = points_in_view(point, trace, camera, empty)
        # By hand: the point is visible if the ray towards it ends there.
        cosine = torch.nn.functional.normalize(trace.surface_points() - camera, dim=-1) @ (offset / offset.norm())
        depth = trace.depth.reshape(-1)[int(cosine.argmax())]
        assert len(pixels) == (abs(float(depth / offset.norm()) - 1) < 0.02)
        num_visible += len(pixels)
        if len(pixels):
            assert views.ids(view)[int(pixels[0, 1]), int(pixels[0, 0])] == 2
    assert 1 < num_visible < len(views)


def test_points_beyond_the_border_or_at_the_outline_are_left_out():
    views = BallViews()
    trace, camera = views.trace(0), views.camera_to_worlds[0]
    cells = trace.surface_points().reshape(views.height, views.width, 3)
    empty = torch.zeros(views.height, views.width, dtype=torch.bool)
    # Ten pixels beyond the right border, at the same distance.
    beyond = cells[40, -1] + 10 * (cells[40, -1] - cells[40, -2])
    assert len(points_in_view(beyond[None], trace, camera[:, 3], empty)) == 0
    mask = empty.clone()
    mask[30:40, 10:20] = True
    points = torch.stack([cells[35, 21], cells[35, 30]])
    assert points_in_view(points, trace, camera[:, 3], mask).tolist() == [[30, 35]]


def test_the_best_candidate_has_score_and_agreement():
    def best(scores: list[float], agreements: list[float], prompted: tuple[float, ...] = ()) -> int | None:
        agreement_of_each = Agreement(agreements, agreements, list(prompted) or [0.0] * len(scores))
        return best_agreeing(torch.tensor(scores), agreement_of_each, 0.5)

    assert best([0.9, 0.7, 0.8], [0.3, 0.9, 0.6]) == 1
    assert best([0.9, 0.7, 0.8], [0.6, 0.65, 0.62]) == 0
    assert best([0.9, 0.7, 0.8], [0.6, 0.7, 0.62]) == 1
    assert best([0.9, 0.7, 0.8], [0.49, 0.1, 0.2]) is None
    # Scores beyond the range of an IoU cannot outvote the agreement.
    assert best([30.0, 1.0], [0.6, 0.9]) == 1
    # Agreement with the prompted views outvotes both.
    assert best([0.9, 0.7], [0.85, 0.8], (0.6, 0.9)) == 1


def test_what_little_is_known_of_does_not_count_as_disagreement():
    # Views have seen the left half of a square; rays have grazed the right half and passed it.
    square, seen = torch.zeros(20, 30, dtype=torch.bool), torch.zeros(20, 30)
    square[5:15, 5:15] = True
    seen[5:15, 5:10] = 1.0
    left = square & (seen > 0)
    certainty = torch.where(left, 1.0, 0.05)
    whole, half = (agreement(mask, seen, EVERYWHERE, 0.5, certainty) for mask in (square, left))
    assert (whole, half) == pytest.approx((1 / 1.05, 1.0))
    assert agreement(square, seen, EVERYWHERE) == 0.5


def test_agreement_ignores_what_is_unknown():
    mask, rendered = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4)
    mask[:, :2] = True
    rendered[0, :2] = 1.0
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0] = True
    assert agreement(mask, rendered, known) == 1.0
    assert agreement(mask, rendered, torch.ones(4, 4, dtype=torch.bool)) == pytest.approx(0.25)
    assert agreement(mask, rendered, torch.zeros(4, 4, dtype=torch.bool)) == 0.0


def ring(angles: list[float]) -> torch.Tensor:
    poses = torch.eye(4)[:3].repeat(len(angles), 1, 1)
    for index, angle in enumerate(angles):
        poses[index, :, 3] = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    return poses


def test_views_are_visited_from_near_to_far():
    order = view_order(ring([0.0, 3.0, 0.4, 0.2, -0.5]), torch.zeros(3), [0])
    assert order == [3, 2, 4, 1]


def test_two_prompted_views_grow_side_by_side():
    order = view_order(ring([0.0, 0.5, 2.6, 3.0, 0.9]), torch.zeros(3), [0, 3])
    assert order == [2, 4, 1] or order == [2, 1, 4]
