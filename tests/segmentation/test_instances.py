"""Matching of the instances of single views in 3D."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.instances import ObjectInstance, match_instances, spread_views
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from tests.analytic import BallViews

VIEWS = (0, 2, 4, 6, 8, 10)


@pytest.fixture(scope="module")
def balls() -> BallViews:
    return BallViews()


def found_in(balls: BallViews, view: int, numbers: tuple[int, ...] = (1, 2, 3)) -> list[tuple[Tensor, float]]:
    """Masks and scores of the balls in a view, in an order that depends on the view."""
    ids = balls.ids(view)
    ordered = [numbers[(index + view) % len(numbers)] for index in range(len(numbers))]
    return [(ids == number, 0.5 + number / 10) for number in ordered if (ids == number).any()]


def matched(balls: BallViews, found: dict[int, list[tuple[Tensor, float]]]) -> list[ObjectInstance]:
    return match_instances(SessionViews(balls, {}, SessionReport()), found, lambda: MaskGrid(32))


def ball_of(balls: BallViews, instance: ObjectInstance) -> int:
    """Number of the ball that all masks of an instance show."""
    numbers = {int(balls.ids(view)[mask].unique().item()) for view, mask in instance.masks.items()}
    assert len(numbers) == 1, "different things in different views"
    return numbers.pop()


def test_each_ball_is_one_object_in_all_views(balls: BallViews):
    objects = matched(balls, {view: found_in(balls, view) for view in VIEWS})
    assert sorted(ball_of(balls, instance) for instance in objects) == [1, 2, 3]
    for instance in objects:
        assert len(instance.masks) >= 5
    assert [instance.score for instance in objects] == sorted((instance.score for instance in objects), reverse=True)


def test_what_is_missing_or_too_much_in_a_view_misleads_nobody(balls: BallViews):
    masks = {view: found_in(balls, view) for view in VIEWS}
    masks[4] = found_in(balls, 4, (1, 3))
    # A mask of the floor in one view.
    masks[6].append((balls.ids(6) == 0, 0.4))
    objects = matched(balls, masks)
    assert [len(instance.masks) for instance in objects[:3]] >= [5, 4, 4]
    assert sorted(ball_of(balls, instance) for instance in objects[:3]) == [1, 2, 3]
    assert len(objects) == 4 and list(objects[3].masks) == [6]


def test_front_and_back_are_joined(balls: BallViews):
    """Opposite views share almost no surface; with views that see both sides, the ball is one object, not two."""
    objects = matched(balls, {view: found_in(balls, view, (3,)) for view in (0, 6, 3, 9)})
    assert len(objects) == 1
    assert sorted(objects[0].masks) == [0, 3, 6, 9]


def test_nothing_found(balls: BallViews):
    assert matched(balls, {0: [], 3: [(torch.zeros(48, 64, dtype=torch.bool), 0.9)]}) == []


def test_views_to_look_in_are_spread_and_each_near_to_another(balls: BallViews):
    chosen = spread_views(SessionViews(balls, {}, SessionReport()), 4)
    assert len(set(chosen)) == 4
    gaps = sorted((b - a) % 12 for a, b in zip(sorted(chosen), [*sorted(chosen)[1:], sorted(chosen)[0]], strict=True))
    assert gaps[-1] <= 4
    assert len(spread_views(SessionViews(balls, {}, SessionReport()), 99)) == 12
