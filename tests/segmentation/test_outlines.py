"""Outlines against edges in depth: the offset of masks that are too wide or too narrow, and masks without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing
from sa3d_nerfstudio.segmentation.neighborhoods import dilated
from sa3d_nerfstudio.segmentation.outlines import (
    FEWEST_VIEWS,
    TOLERATED,
    common_offset,
    outline_measures,
    scale_of,
    without_offset,
)
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import point_on

BALL = 1


@pytest.fixture(scope="module")
def views() -> BallViews:
    return BallViews(count=10, height=120, width=160)


def changed(mask: Tensor, pixels: int) -> Tensor:
    """A mask dilated by so many pixels, or eroded where the number is negative."""
    return dilated(mask, pixels) if pixels >= 0 else ~dilated(~mask, -pixels)


def measures_of(views: BallViews, masks: list[Tensor]) -> list[list[float]]:
    traces = [views.trace(view) for view in range(len(views))]
    return [
        outline_measures(trace, mask, pixel_spacing(trace, mask), scale_of(mask, None)).tolist()
        for trace, mask in zip(traces, masks, strict=True)
    ]


@pytest.mark.parametrize(("width", "pixels"), [(120, -1), (120, 1), (240, -2), (240, -1), (240, 0), (240, 1), (240, 2)])
def test_the_offset_of_all_masks_is_found_and_removed(width: int, pixels: int):
    views = BallViews(count=10, height=width * 3 // 4, width=width)
    truths = [views.ids(view) == BALL for view in range(len(views))]
    masks = [changed(truth, pixels) for truth in truths]
    scale = scale_of(masks[0], None)
    offset = common_offset(measures_of(views, masks))
    assert offset == pytest.approx(pixels / scale, abs=0.3)
    removed = [without_offset(mask, offset, scale) for mask in masks]
    before, after = (
        sum(int((mask ^ truth).sum()) for mask, truth in zip(each, truths, strict=True)) for each in (masks, removed)
    )
    assert after <= 0.3 * before


def test_masks_of_some_views_have_no_common_offset(views: BallViews):
    """Outlines that wobble from view to view are for the fit, which averages them."""
    masks = [changed(views.ids(view) == BALL, (-1, 0, 0, 1, 0)[view % 5]) for view in range(len(views))]
    assert common_offset(measures_of(views, masks)) == 0


def test_what_is_not_known_well_is_left_alone(views: BallViews):
    wide = [[20.0, 20.0]] * (FEWEST_VIEWS - 1)
    assert common_offset(wide) == 0
    assert common_offset([*wide, [0.5, 0.5]]) == 0, "an outline of half a pixel"
    assert common_offset([*wide, [20.0, 20.0]]) == 1
    assert common_offset([[TOLERATED * 20, 20.0]] * 10) == common_offset([[-TOLERATED * 20, 20.0]] * 10) == 0
    mask = views.ids(0) == BALL
    assert torch.equal(without_offset(mask, 0.4, 1.0), mask)
    empty = torch.zeros(9, 9, dtype=torch.bool)
    assert outline_measures(views.trace(0), torch.zeros_like(mask), 0.1, 1.0).tolist() == [0, 0]
    assert torch.equal(without_offset(empty, -3.0, 1.0), empty)


@pytest.mark.parametrize("pixels", [1, -1])
def test_the_fit_has_outlines_where_depth_ends(views: BallViews, pixels: int):
    truths = {view: views.ids(view) == BALL for view in range(len(views))}
    ious = []
    for trim in (False, True):
        wrong = {view: changed(mask, pixels) for view, mask in truths.items()}
        settings = SessionSettings(max_passes=2, trim_outline=trim, min_agreement=0.2)
        session = SegmentationSession(views, BallSegmenter.of(views, wrong), MaskGrid(64), settings)
        session.prompt(0, point_on(views, 0, BALL))
        report = session.run()
        assert report.likelihood is not None
        assert report.likelihood.outline_offset == pytest.approx(pixels * trim, abs=0.3)
        overlaps = []
        for view, truth in truths.items():
            on = render_probability(views.trace(view), session.grid)[0].reshape(truth.shape) > 0.5
            overlaps.append(float((on & truth).sum() / (on | truth).sum()))
        ious.append(sum(overlaps) / len(overlaps))
    assert 1 - ious[1] < 0.5 * (1 - ious[0])


def test_outlines_are_measured_before_the_depth_check(views: BallViews):
    """The check leaves out most of what is beyond the edges, so that outlines seemed right."""
    wide = {view: changed(views.ids(view) == BALL, 2) for view in range(len(views))}
    session = SegmentationSession(views, BallSegmenter.of(views, wide), MaskGrid(64), SessionSettings(max_passes=2))
    session.prompt(0, point_on(views, 0, BALL))
    session.run()
    measures = session._lifter._own_outlines()
    assert len(measures) == len(views) - 1
    assert min(area / length for area, length in measures) > 1.5
