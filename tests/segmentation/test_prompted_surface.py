"""The surface of the prompted views decides between candidates in other views that see the same surface."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing
from sa3d_nerfstudio.segmentation.prompted_surface import PromptedSurface, joint_surface
from sa3d_nerfstudio.segmentation.self_prompting import Agreement, best_agreeing
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import point_on


@pytest.fixture(scope="module")
def views() -> BallViews:
    return BallViews(count=12, height=48, width=64)


def lower_half(views: BallViews, view: int, ball: int) -> Tensor:
    """Pixels of a view that show the lower half of a ball."""
    height = views.trace(view).surface_points()[:, 2].reshape(views.height, views.width)
    return (views.ids(view) == ball) & (height < views.balls[ball - 1, 2])


def surface_of(views: BallViews, view: int, mask: Tensor) -> PromptedSurface:
    trace = views.trace(view)
    surface = joint_surface([trace.surface_points()], [mask.reshape(-1)], float(pixel_spacing(trace, mask)))
    assert surface is not None
    return surface


def test_a_part_and_more_than_the_object_agree_less_where_the_same_is_seen(views: BallViews):
    surface = surface_of(views, 0, views.ids(0) == 1)
    for view in (0, 1, 11):
        ids, trace = views.ids(view), views.trace(view)
        masks = torch.stack([ids == 1, lower_half(views, view, 1), (ids == 1) | (ids == 3), torch.ones_like(ids) > 0])
        ball, part, two_balls, everything = surface.agreement(masks, trace, ids == 1).tolist()
        assert ball > 0.7 and ball > part + 0.2 and ball > everything + 0.2
        assert ball >= two_balls


def test_the_other_side_says_nothing(views: BallViews):
    surface = surface_of(views, 0, views.ids(0) == 1)
    ids, trace = views.ids(6), views.trace(6)
    assert (ids == 1).any()
    assert surface.agreement((ids == 1)[None], trace, ids == 1).max() < 0.35


def test_rays_that_end_nowhere_and_masks_of_nothing(views: BallViews):
    points = views.trace(0).surface_points().clone()
    mask = (views.ids(0) == 1).reshape(-1)
    spacing = float(pixel_spacing(views.trace(0), views.ids(0) == 1))
    assert PromptedSurface.of(points, mask & ~mask, spacing) is None
    assert joint_surface([], [], spacing) is None
    with_others = PromptedSurface.of(points, mask, spacing)
    points[~mask] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    object_only = PromptedSurface.of(points, mask, spacing)
    assert with_others is not None and object_only is not None
    assert torch.equal(with_others.corner, object_only.corner) and not object_only.off.any() and with_others.off.any()
    one_pixel = torch.zeros_like(mask)
    one_pixel[int(mask.nonzero()[0])] = True
    single = PromptedSurface.of(points, one_pixel, 0.0)
    assert single is not None and single.on.any()


class FondOfParts(BallSegmenter):
    """Answers with three masks and prefers the lower half, except in the user's view, where it prefers the ball."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        ids = self.views.ids(embedding)
        ball = ids == 1
        masks = torch.stack([lower_half(self.views, embedding, 1), ball, ball | (ids == 3)])
        return Candidates(masks, torch.tensor([0.7, 0.95, 0.6] if embedding == 0 else [0.95, 0.62, 0.6]))


class Noting(SegmentationSession):
    """Records the agreement of candidates."""

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        self.told = [*getattr(self, "told", []), agreement]
        return super().choose_candidate(candidates, agreement)


@pytest.mark.parametrize("max_passes", [1, 2])
def test_the_loop_ranks_by_it_in_every_pass(views: BallViews, max_passes: int):
    session = Noting(views, FondOfParts.of(views), MaskGrid(48), SessionSettings(max_passes=max_passes))
    session.prompt(0, point_on(views, 0, 1))
    session.run()
    last = session.told[-11:]
    assert len(session.told) == 11 * max_passes
    assert all(agreement.prompted[1] >= agreement.prompted[2] for agreement in last)
    assert sum(agreement.prompted[1] > agreement.prompted[0] + 0.2 for agreement in last) >= 4
    assert all(record.state != "rejected" for record in session.report.records)
    for view in range(len(views)):
        on = render_probability(views.trace(view), session.grid)[0].reshape(views.height, views.width) > 0.5
        truth = views.ids(view) == 1
        assert float((on & truth).sum() / (on | truth).sum()) > 0.9


def test_where_nothing_else_decides_the_users_view_does():
    """The scores are equal, and the field has shrunk to a part."""
    with_field = [0.9, 0.7]
    assert best_agreeing(torch.tensor([0.8, 0.8]), Agreement(with_field, with_field, [0.0, 0.0]), 0.5) == 0
    assert best_agreeing(torch.tensor([0.8, 0.8]), Agreement(with_field, with_field, [0.5, 0.7]), 0.5) == 1
