"""Larger images for small objects, in steps, with everything else unchanged."""

from __future__ import annotations

import pytest
import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import FreeView
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.view_selection import magnification
from sa3d_nerfstudio.segmenters.base import Candidates
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import iou_in_unseen_views, point_on


def box(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(120, 160, dtype=torch.bool)
    mask[5 : 5 + height, 7 : 7 + width] = True
    return mask


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(16, 3, 1), (2, 16, 1), (90, 90, 1), (15, 9, 2**0.5), (12, 5, 2**0.5), (11, 11, 2), (2, 1, 2), (0, 0, 1)],
)
def test_steps(height: int, width: int, expected: float):
    assert magnification([box(height, width)]) == pytest.approx(expected)


def test_the_view_that_shows_most_decides_at_any_size():
    assert magnification([box(3, 3), box(20, 4)]) == 1
    assert magnification([]) == 1
    assert magnification([box(6, 6)]) == 2
    assert magnification([box(6, 6)[:60, :80]]) == 2**0.5


@pytest.mark.parametrize("lifting", ["evidence", "gradient"])
def test_a_small_object_is_segmented_in_larger_views(lifting: str):
    """The prompt is repeated in these, evidence weighs as at the usual size, and a further run keeps their size."""
    small, large, called_with = (
        BallViews(height=24, width=32, distance=9.0),
        BallViews(height=48, width=64, distance=9.0),
        [],
    )
    segmenter, embedded = BallSegmenter.of(small), {}

    def sized(factor: float):
        called_with.append(factor)
        segmenter.views = large if factor > 1 else small
        return segmenter.views, embedded

    settings = SessionSettings(lifting=lifting, max_passes=2)  # type: ignore[arg-type]
    session = SegmentationSession(small, segmenter, MaskGrid(24), settings, sized=sized)
    session.prompt(0, point_on(small, 0, 3))
    assert session.mask_of(0).shape == (24, 32)
    enlargement = magnification([session.mask_of(0)])
    assert enlargement > 1
    session.run()
    assert called_with == [enlargement]
    assert session.views is large
    assert session.mask_of(0).shape == (48, 64)
    assert set(large.traced) >= set(range(12))
    assert len(small.traced) <= 3
    if lifting == "evidence":
        weight = sum(large.trace(view).accumulation.sum() for view in range(12)) / 4
        assert float(session.grid.seen.sum()) == pytest.approx(float(weight), rel=0.25)
    session.run()
    assert session.views is large


def test_free_views_keep_their_size_and_their_weight():
    """Training views get larger and their rays lighter, whichever view was prompted last."""
    small, large = BallViews(height=24, width=32, distance=9.0), BallViews(height=48, width=64, distance=9.0)
    segmenter = BallSegmenter.of(small)
    answers = segmenter.predict

    def predict(embedding: int, prompt: Prompt) -> Candidates:
        """Answer in the free view at that view's size."""
        used, segmenter.views = segmenter.views, small if prompt.height == 24 else segmenter.views
        try:
            return answers(embedding, prompt)
        finally:
            segmenter.views = used

    def sized(factor: float):
        segmenter.views = large if factor > 1 else small
        return segmenter.views, {}

    segmenter.predict = predict  # type: ignore[method-assign]
    session = SegmentationSession(small, segmenter, MaskGrid(24), SessionSettings(max_passes=1), sized=sized)
    session.free["6"] = FreeView(small.trace(6), small.camera_to_worlds[6])
    session.prompt(0, point_on(small, 0, 3))
    session.prompt("6", point_on(small, 6, 3))
    for _ in range(2):
        session.run()
        assert session.views is large
        assert session._views.ray_weight(0) == 0.25
        assert session._views.ray_weight("6") == 1.0
        assert session.mask_of("6").shape == (24, 32)


def test_a_large_object_stays_at_the_usual_size():
    views = BallViews()
    session = SegmentationSession(
        views, BallSegmenter.of(views), MaskGrid(64), SessionSettings(), sized=lambda factor: (views, {})
    )
    session.prompt(0, point_on(views, 0, 3))
    session.run()
    assert session.views is views
    assert iou_in_unseen_views(session, 3) > 0.9


def test_masks_that_were_painted_are_asked_again_as_they_were_painted():
    small, large = BallViews(height=24, width=32, distance=9.0), BallViews(height=48, width=64, distance=9.0)
    segmenter = BallSegmenter.of(large)
    session = SegmentationSession(
        small, segmenter, MaskGrid(24), SessionSettings(max_passes=1), sized=lambda factor: (large, {})
    )
    painted = large.ids(0) == 3
    session.prompt(0, Prompt(48, 64, mask=painted))
    session.run()
    assert torch.equal(session.mask_of(0), painted)
