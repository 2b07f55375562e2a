"""Windows of photos as images of a network: prompts and masks are mapped to the right pixels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.photo_windows import photo_window, prompt_between
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.windows import CloseViews
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.window import Window
from tests.analytic import BALLS, BallViews
from tests.segmentation.test_session import point_on
from tests.segmentation.test_windows import WindowedBallSegmenter, WindowedBallViews
from tests.tiny_sam import tiny_sam


class LargePhotos(WindowedBallViews):
    """Views with photos that are eight times as large as the working size."""

    has_photos = True

    def __init__(self, **options: Any) -> None:
        super().__init__(most=8, **options)

    def photo(self, view: int, frame: Window) -> Tensor:
        """Balls in shades by their numbers, with stripes as texture for networks."""
        ids = self.at(frame).ids(view).float()
        y, x = torch.meshgrid(*(torch.arange(side) / frame.scale for side in frame.size), indexing="ij")
        return torch.stack([ids / 3, torch.sin(x * 2) / 2 + 0.5, torch.cos(y) / 2 + 0.5], dim=-1)

    def picture(self, view: int, side: int | None = None) -> Tensor:
        return self.photo(view, self.frame(view, (side or self.width) / self.width))

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        return self.frame(view, (side or self.width) / self.width).size

    def window_picture(self, view: int, window: Window) -> Tensor:
        return self.photo(view, window.frame)[window.rows, window.columns]


def frame_of(size: tuple[int, int], long_side: int) -> Window:
    """Window of a whole view whose camera has 1024 pixels along its longer side."""
    return Window.whole(size, long_side, long_side / 1024)


def frames(length: float) -> Window:
    """Window of a whole photo of 1024 x 768 pixels, at a length of at most 1024."""
    side = min(round(length), 1024)
    return frame_of((side * 3 // 4, side), side)


@pytest.mark.parametrize(
    ("where", "size", "long_side"),
    [((40, 48), 8, 256), ((0, 0), 16, 256), ((86, 110), 10, 128), ((64, 100), 12, 256)],
)
def test_a_small_object_gets_a_window_of_the_photo_around_it(where: tuple[int, int], size: int, long_side: int):
    whole = frames(long_side)
    window = Window(*where, size, size, whole.size, whole.long_side, whole.scale)
    part = photo_window(window, 256, frames)
    assert part is not None
    assert max(part.height, part.width) <= 256 + 16
    assert part.scale >= 2 * 256 / 1024
    y0, x0, y1, x1 = (a * b for a, b in zip(window.shares, (*part.size, *part.size), strict=True))
    # The object's window lies within it, with room on each side that is not the photo's border.
    room = max(part.height, part.width) / 8 - 8
    assert part.top == 0 or y0 - part.top >= room
    assert part.left == 0 or x0 - part.left >= room
    assert part.bottom == part.size[0] or part.bottom - y1 >= room
    assert part.right == part.size[1] or part.right - x1 >= room
    # It stays when the object's window moves a little, so that neighbouring objects share it.
    moved = Window(where[0] + 1, where[1] + 1, size, size, whole.size, whole.long_side, whole.scale)
    assert photo_window(moved, 256, frames, part) == part


def test_large_objects_and_small_photos_are_shown_whole():
    whole = frames(256)
    large = Window(16, 16, 96, 96, whole.size, whole.long_side, whole.scale)
    small = Window(40, 48, 8, 8, whole.size, whole.long_side, whole.scale)
    assert photo_window(large, 256, frames) is None
    assert photo_window(small, 1024, frames) is None
    assert photo_window(small, 900, frames) is None


def test_a_priors_unknown_stays_unknown():
    whole, fine = frames(128), frames(512)
    window = Window(16, 32, 16, 16, whole.size, whole.long_side, whole.scale)
    part = Window(48, 112, 96, 96, fine.size, fine.long_side, fine.scale)
    prior = torch.full((16, 16), torch.nan)
    prior[4:12, 4:12] = 0.75
    prompt = prompt_between(Prompt.from_points(16, 16, [(7, 9)], box=(4, 4, 12, 12), prior=prior), window, part)
    assert (prompt.height, prompt.width) == (96, 96)
    assert prompt.points.tolist() == [[7.5 * 4 + 32 * 4 - 112 - 0.5, 9.5 * 4 + 16 * 4 - 48 - 0.5]]
    assert prompt.box is not None
    assert prompt.box.tolist() == [32, 32, 64, 64]
    assert prompt.prior is not None
    known = prompt.prior.isfinite()
    assert known[34:62, 34:62].all()
    assert torch.allclose(prompt.prior[known], torch.tensor(0.75), atol=1e-6)
    # All pixels of the prior but the four corners.
    assert int(known.sum()) == 32 * 32 - 4


def test_sam_is_asked_and_answers_in_the_windows_pixels():
    """Compare with SAM, prompted by hand on the same part of the photo."""
    views = LargePhotos(height=96, width=128)
    segmenter = SamSegmenter(tiny_sam())
    close = CloseViews(views, {}, SessionReport(), 0.5)
    whole = views.frame(3)
    close.placed[3] = Window(40, 56, 16, 16, whole.size, whole.long_side, whole.scale)
    predictor = MaskPredictor(segmenter, close)
    window_prompt = Prompt.from_points(16, 16, [(5, 7), (10, 3)], [(1, 14)])
    candidates = predictor.predict(3, window_prompt)
    part = close.photo_window(3, segmenter.input_side)
    assert part is not None
    assert part.scale == 8
    assert predictor.segmenter is segmenter

    photo = views.photo(3, part.frame)[part.top : part.bottom, part.left : part.right]
    points = [
        ((x + 56 + 0.5) * 8 - part.left - 0.5, (y + 40 + 0.5) * 8 - part.top - 0.5)
        for x, y in window_prompt.points.tolist()
    ]
    prompt = Prompt.from_points(part.height, part.width, points[:2], points[2:])
    expected = segmenter.predict(segmenter.embed(SegmenterImage(photo, "003.png")), prompt)
    assert expected.logits is not None
    top, left = 40 * 8 - part.top, 56 * 8 - part.left
    blocks = expected.logits[:, top : top + 128, left : left + 128].reshape(-1, 16, 8, 16, 8).mean((2, 4))
    assert len(candidates.masks) == 4
    assert candidates.single == 3
    assert torch.allclose(candidates.scores, expected.scores, atol=1e-5)
    assert (candidates.masks == (blocks > 0)).float().mean() > 0.999
    # The embedding is that of this window; the whole photo has another.
    assert list(predictor._embeddings) == [(3, part)]
    close.use_whole_view(3)
    predictor.embed(3)
    assert list(predictor._embeddings) == [(3, part), 3]


def test_images_between_sizes_that_do_not_divide():
    """A plane stays the same to 0.002 of the larger pixels; pixels beyond the window have the fill value."""
    coarse, fine = Window.whole((75, 100), 100, 0.1), Window.whole((226, 301), 301, 0.301)
    for first, second in ((coarse, fine), (fine, coarse)):
        whole = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in first.size), indexing="ij")).double()
        images = whole[:, first.rows, first.columns] / first.scale
        y0, x0, y1, x1 = (side * second.scale / 0.1 for side in (20, 30, 45, 62))
        window = second.snapped((y0, x0, y1, x1))
        plane = window.drawn_from(first, images)
        y, x = ((torch.arange(n).double() + 0.5) / second.scale for n in second.size)
        assert torch.allclose(plane[0], y[window.rows, None].expand(plane[0].shape), atol=0.02)
        assert torch.allclose(plane[1], x[window.columns].expand(plane[1].shape), atol=0.02)
    inner = fine.snapped((48, 48, 96, 96))
    drawn = coarse.drawn_from(inner, torch.ones(1, inner.height, inner.width), -1.0)[0]
    covered = inner.covers(coarse)
    assert (drawn[~covered] < 1).all()
    assert float(drawn.min()) == -1
    assert float(drawn[20:30, 20:30].min()) == pytest.approx(1)


SMALL_BALLS = torch.cat([BALLS, torch.tensor([[0.2, -0.5, 0.06, 0.06]])])


def iou_of_small_ball(session: SegmentationSession) -> float:
    unseen = BallViews(count=5, height=192, width=256, distance=2.5, balls=SMALL_BALLS)
    scores = []
    for view in range(len(unseen)):
        mask = render_probability(unseen.trace(view), session.grid)[0].reshape(unseen.height, unseen.width) > 0.5
        truth = unseen.ids(view) == 4
        if truth.any():
            scores.append(float((mask & truth).sum() / (mask | truth).sum()))
    return sum(scores) / len(scores)


def test_the_loop_is_sharper_for_it():
    """A ball of about five pixels at the working size, with a network of 64 pixels and photos of 1024."""
    outcomes = {}
    for close in (True, False):
        views = LargePhotos(height=96, width=128, balls=SMALL_BALLS)
        segmenter = WindowedBallSegmenter.of(views)
        segmenter.input_side = 64  # type: ignore[attr-defined]
        settings = SessionSettings(close_photos=close)
        session = SegmentationSession(views, segmenter, MaskGrid(64), settings)
        session.prompt(0, point_on(views, 0, 4))
        session.run()
        outcomes[close] = iou_of_small_ball(session)
        # One embedding a view, although windows move between passes; the prompted view is shown whole, then closer.
        assert len(segmenter.embedded) <= len(set(segmenter.embedded)) + 2 + close
        kinds = {isinstance(key, tuple) for key in session.predictor._embeddings}
        assert kinds == ({True, False} if close else {False})
    assert outcomes[True] > outcomes[False] + 0.2, outcomes
    assert outcomes[True] > 0.75, outcomes


def test_views_that_are_shown_whole_stay_as_they_are():
    """Where photos are no larger than the network's images, one embedding serves all objects."""
    views = BallViews()
    assert np.prod(views.picture_size(0)) == views.height * views.width
    close = CloseViews(LargePhotos(height=96, width=128), {}, SessionReport(), 0.5)
    whole = close.training.frame(3)
    close.placed[3] = Window(40, 56, 16, 16, whole.size, whole.long_side, whole.scale)
    assert close.photo_window(3, 1024) is None
    assert close.embedding_key(3, 1024) == 3
    assert close.photo_window(3, None) is None


def test_the_users_view_is_looked_at_closely_as_well():
    """A click is answered from the whole photo; the closer look follows when segmentation begins."""
    masks = {}
    for close in (True, False):
        views = LargePhotos(height=96, width=128, balls=SMALL_BALLS)
        segmenter = WindowedBallSegmenter.of(views)
        segmenter.input_side = 64  # type: ignore[attr-defined]
        session = SegmentationSession(views, segmenter, MaskGrid(64), SessionSettings(close_photos=close, max_passes=1))
        session.prompt(0, point_on(views, 0, 4))
        first = session.mask_of(0)
        assert len(segmenter.embedded) == 1
        next(session.steps())
        masks[close] = [first, session.mask_of(0)]
    assert torch.equal(*masks[False])
    truth = views.ids(0) == 4
    overlap = [float((mask & truth).sum() / (mask | truth).sum()) for mask in masks[True]]
    assert overlap[1] > overlap[0] + 0.1, overlap
    assert torch.equal(masks[True][0], masks[False][0])


def test_the_users_view_stays_as_it_was_where_a_closer_look_shows_something_else():
    views = LargePhotos(height=96, width=128, balls=SMALL_BALLS)
    segmenter = WindowedBallSegmenter.of(views)
    segmenter.input_side = 64  # type: ignore[attr-defined]
    close = CloseViews(views, {}, SessionReport(), 0.5)
    predictor = MaskPredictor(segmenter, close)
    prompted = predictor.answer(0, point_on(views, 0, 4))
    # A mask beside the object under the point.
    other_mask = prompted.mask.roll(12, 1)
    assert not (other_mask & prompted.mask).any()
    beside = replace(prompted, candidates=Candidates(other_mask[None], torch.ones(1)))
    assert predictor.look_closer(0, beside) is beside
    # A mask that the user has given stays as it is, and a point far away does not change the window.
    given_mask = predictor.answer(0, Prompt(96, 128, mask=prompted.mask))
    assert predictor.look_closer(0, given_mask) is given_mask
    prompt = prompted.prompt
    far = Prompt.from_points(96, 128, prompt.positive.numpy(), [(127, 95)])
    near = predictor.look_closer(0, predictor.answer(0, prompt))
    assert torch.equal(predictor.look_closer(0, predictor.answer(0, far)).mask, near.mask)
    two_points = replace(
        prompted, prompt=Prompt.from_points(96, 128, [*prompt.positive.tolist(), (127, 95)]), original=None
    )
    assert predictor.look_closer(0, two_points) is two_points
