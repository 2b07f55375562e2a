"""Sessions that trace windows: the same object for a fraction of the rays, on a scene with an exact ground truth."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation import windows
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import TOGETHER, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.windows import enlargement, on_same_pixels
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.traces.nerf import NerfViewTrace, WeightedSamples
from sa3d_nerfstudio.traces.window import Window, touched_sides
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import iou_in_unseen_views, point_on


class WindowedBallViews(BallViews):
    """The same views, with windows traced at any size up to ``most`` times the working size."""

    has_windows, has_photos = True, False

    def __init__(self, most: int = 1, **options: Any) -> None:
        super().__init__(**options)
        self.most = most
        self.rays = 0
        """Number of rays traced in windows and coarse views; each pixel of a view at one size counts once."""
        self._seen: dict[tuple[int, int], Tensor] = {}

    def is_rendered(self, view: int) -> bool:
        return view in self.traced

    def frame(self, view: int, factor: float = 1.0) -> Window:
        factor = min(factor, self.most)
        size = (round(self.height * factor), round(self.width * factor))
        return Window.whole(size, size[1], factor)

    def sized(self, long_side: int) -> BallViews:
        return self

    def at(self, window: Window) -> BallViews:
        views = BallViews(len(self), *window.size, balls=self.balls, numbers=self.numbers, floater=self.floater)
        views.poses = self.poses
        return views

    def window_trace(self, view: int, window: Window) -> NerfViewTrace:
        pixels = window.pixels().indices
        seen = self._seen.setdefault((view, window.long_side), torch.zeros(window.size, dtype=torch.bool).reshape(-1))
        self.rays += int((~seen[pixels]).sum())
        seen[pixels] = True
        return part_of(self.at(window).trace(view), window)

    def window_picture(self, view: int, window: Window) -> Tensor:
        return self.window_trace(view, window).rgb


class PhotographedBallViews(WindowedBallViews):
    """Views with photos, which need no trace."""

    def picture(self, view: int, side: int | None = None) -> Tensor:
        return self.ids(view)[..., None].expand(self.height, self.width, 3) / 3.0


def part_of(trace: NerfViewTrace, window: Window) -> NerfViewTrace:
    """A window's part of the trace of a whole view."""
    pixels, samples = window.pixels().indices, trace.samples
    number = torch.full((len(samples.accumulation),), -1)
    number[pixels] = torch.arange(len(pixels))
    inside = number[samples.ray_indices] >= 0
    rays = number[samples.ray_indices[inside]]
    parts = WeightedSamples(samples.positions[inside], samples.weights[inside], rays, samples.accumulation[pixels])
    rows, columns = window.rows, window.columns
    return NerfViewTrace(
        parts, window.height, window.width, trace.rgb[rows, columns], trace.depth[rows, columns],
        trace.origins[pixels], trace.directions[pixels],
    )  # fmt: skip


class WindowedBallSegmenter(BallSegmenter):
    """Answers with the ball under the first point, within the window that it is shown."""

    def embed(self, image: SegmenterImage) -> Any:
        view = super().embed(image)
        y0, x0, y1, x1 = image.window or (0.0, 0.0, 1.0, 1.0)
        height, width = round(image.height / (y1 - y0)), round(image.width / (x1 - x0))
        whole_views = copy.copy(self.views)
        whole_views.height, whole_views.width = height, width
        top, left = round(y0 * height), round(x0 * width)
        return whole_views.ids(view)[top : top + image.height, left : left + image.width]

    def predict(self, embedding: Any, prompt: Prompt) -> Candidates:
        x, y = prompt.positive[0].long().tolist()
        mask = (embedding == embedding[y, x]) & (embedding > 0)
        return Candidates(mask[None], torch.ones(1))


def session_on(views: BallViews, ball: int, sized: Any = None, **settings: Any) -> SegmentationSession:
    segmenter = WindowedBallSegmenter.of(views)
    session = SegmentationSession(views, segmenter, MaskGrid(64), SessionSettings(**settings), sized=sized)
    session.prompt(0, point_on(views, 0, ball))
    return session


@pytest.mark.parametrize("ball", [1, 2, 3])
def test_the_same_object_for_fewer_rays(ball: int):
    whole, views = BallViews(height=96, width=128), WindowedBallViews(height=96, width=128)
    expected, session = session_on(whole, ball), session_on(views, ball)
    expected.run()
    report = session.run()
    assert report.converged
    assert iou_in_unseen_views(session, ball) > iou_in_unseen_views(expected, ball) - 0.005
    # The coarse views have a sixteenth of the rays, and the prompted view is traced whole.
    assert views.rays < 0.35 * 12 * 96 * 128
    assert set(views.traced) == {0}
    # Evidence from a window counts the same as that from a whole view.
    assert float(session.grid.seen.sum()) == pytest.approx(float(expected.grid.seen.sum()), rel=0.1)


def test_a_further_run_traces_nothing():
    views = WindowedBallViews(height=96, width=128)
    session_on(views, 1).run()
    before = views.rays
    session = session_on(views, 1)
    session.run()
    assert views.rays == before


def test_traces_of_windows_are_kept_from_pass_to_pass_where_there_is_room(monkeypatch: pytest.MonkeyPatch):
    class Counting(WindowedBallViews):
        made = 0

        def window_trace(self, view: int, window: Window) -> NerfViewTrace:
            self.made += not window.is_whole
            return super().window_trace(view, window)

    made, fields, held = [], [], []
    for share in (0.0, windows.SHARE_KEPT):
        monkeypatch.setattr(windows, "SHARE_KEPT", share)
        views = Counting(height=96, width=128)
        session = session_on(views, 1)
        session.run()
        made.append(views.made)
        fields.append(session.grid.probability())
        close = session._views
        assert isinstance(close, windows.CloseViews)
        held.append(len(close._newest))
    assert made[1] < 0.7 * made[0]
    assert torch.equal(*fields)
    assert held == [TOGETHER, len(views) - 1], "beside the prompted view, which has no window"
    # Where memory runs out, they are dropped first and no more are kept, so that a second call frees nothing.
    assert close.reclaim() > 0 and close.reclaim() == 0
    session.run()
    assert len(close._newest) <= TOGETHER


def test_networks_see_whole_photos_once_whatever_the_window():
    """Prompts and masks are mapped from the window to the photo and back; without photos, whole views are rendered."""
    views = PhotographedBallViews(height=96, width=128)
    segmenter = BallSegmenter.of(views)
    segmenter.input_side = 128  # type: ignore[attr-defined]
    for photos in (True, False):
        views.has_photos, segmenter.embedded[:] = photos, []
        session = SegmentationSession(views, segmenter, MaskGrid(64), SessionSettings())
        session.prompt(0, point_on(views, 0, 1))
        session.run()
        assert iou_in_unseen_views(session, 1) > 0.93
        assert len(segmenter.embedded) == len(set(segmenter.embedded)) == 12
        assert (session.window(3) is not None) == photos
        if photos:
            assert set(views.traced) == {0}


def test_windows_follow_an_object_that_the_prompted_view_shows_little_of():
    # The user has painted one end of a rod; the segmenter finds all of the rod that is in the window.
    x = torch.linspace(-0.9, 0.9, 60)
    rod = torch.stack([x, 0 * x, 0 * x + 0.3, 0 * x + 0.08], dim=-1)
    views = WindowedBallViews(count=24, height=96, width=128, balls=rod, numbers=torch.ones(len(x), dtype=torch.long))
    painted = views.ids(6) == 1
    first = int(painted.any(dim=0).nonzero()[0])
    painted[:, first + 32 :] = False
    session = SegmentationSession(
        views, WindowedBallSegmenter.of(views), MaskGrid(64), SessionSettings(min_agreement=0.0)
    )
    session.prompt(6, Prompt(views.height, views.width, mask=painted))
    session.run()
    low, high = session.grid.object_points()[0].aminmax(dim=0)
    assert high[0] - low[0] > 1.7
    for view in range(24):
        window, ids = session.window(view), views.ids(view)
        if window is not None:
            assert int((ids == 1).sum()) == int((ids[window.rows, window.columns] == 1).sum())


def test_a_small_object_is_looked_at_closely():
    small = {"height": 48, "width": 64, "distance": 9.0}
    plain, views = WindowedBallViews(**small), WindowedBallViews(most=4, **small)
    expected, session = session_on(plain, 3), session_on(views, 3, sized=lambda factor: (views, {}))
    expected.run()
    session.run()
    window = session.window(5)
    assert window is not None
    assert window.size == (192, 256)
    assert iou_in_unseen_views(session, 3) > iou_in_unseen_views(expected, 3) + 0.02
    assert views.rays < 12 * 48 * 64
    assert views.rays < 0.1 * 12 * 192 * 256


def test_an_object_smaller_than_the_coarse_pixels_is_found():
    ball = torch.tensor([[0.0, 0.0, 0.3, 0.05]])
    views = WindowedBallViews(height=96, width=128, balls=ball)
    session = session_on(views, 1)
    session.run()
    states = [record.state for record in session.report.last().values()]
    assert states.count("used") == 11


def test_images_of_whole_views_are_sharp_in_the_window():
    views = WindowedBallViews(height=96, width=128)
    session = session_on(views, 1)
    session.run()
    window, image = session.window(3), session.image(3, lambda trace: trace.rgb)
    assert window is not None
    assert image.shape == (96, 128, 3)
    rgb = views.trace(3).rgb
    assert torch.equal(image[window.rows, window.columns], rgb[window.rows, window.columns])
    assert (image - rgb).abs().mean() < 0.1


def test_the_published_update_and_what_cannot_be_cropped_look_at_whole_views():
    views = WindowedBallViews()
    for changes in ({"windows": False}, {"lifting": "gradient", "max_passes": 1}):
        session = session_on(views, 1, **changes)
        session.run()
        assert session.window(3) is None
    views.has_windows = False
    session = session_on(views, 1)
    session.run()
    assert session.window(3) is None
    assert views.rays == 0


@pytest.mark.parametrize(("pixels", "expected"), [(130, 1), (80, 2), (40, 4), (3, 4)])
def test_how_close(pixels: int, expected: int):
    mask = torch.zeros(120, 160, dtype=torch.bool)
    mask[10 : 11 + pixels // 8, 20 : 20 + pixels] = True
    assert enlargement([mask], 160) == expected
    assert enlargement([mask, torch.zeros(120, 160, dtype=torch.bool)], 160) == expected
    assert enlargement([], 160) == 1


def test_no_closer_than_costs_what_whole_views_do():
    mask = torch.zeros(120, 160, dtype=torch.bool)
    mask[10:90, 20:100] = True
    assert enlargement([mask], 160) == 1
    mask[70:] = mask[:, 40:] = False
    assert enlargement([mask], 160) == 2


def test_windows_grow_where_a_mask_leaves_them():
    frame = Window.whole((96, 128), 128, 1.0)
    window = frame.snapped((32, 32, 64, 64))
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[10:20, 10:20] = True

    def grown_by(mask: Tensor, window: Window = window) -> Window:
        return window.grown(touched_sides(mask[None])[0].tolist())

    assert grown_by(mask) is window
    mask[10, 0] = True
    grown = grown_by(mask)
    assert (grown.top, grown.bottom, grown.left, grown.right) == (32, 64, 16, 64)
    mask[-1, 5] = True
    assert grown_by(mask).bottom == 80
    assert grown_by(torch.ones(96, 128, dtype=torch.bool), frame) == frame


def test_masks_of_two_windows_are_compared_on_the_same_pixels():
    frame = Window.whole((96, 128), 128, 1.0)
    old, new = frame.snapped((32, 32, 64, 64)), frame.snapped((24, 40, 64, 80))
    whole = torch.zeros(96, 128, dtype=torch.bool)
    whole[40:50, 45:60] = True
    before, after = ({cast(ViewKey, 0): whole[window.rows, window.columns].reshape(-1)} for window in (old, new))
    first, second = on_same_pixels(before, {0: old}, after, {0: new})
    assert torch.equal(first[0], second[0])
    assert int(first[0].sum()) == 150
