"""Preparation of views on another thread: order, distance ahead, errors, and the end of the thread on a stop."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.predictor import Prefetcher
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from tests.analytic import BallSegmenter, BallViews
from tests.segmentation.test_session import point_on


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("sa3d-ahead")]


def test_views_are_ready_when_they_are_come_to():
    done: list[tuple[int, str]] = []
    views = [4, 2, 7, 1, 3]
    with Prefetcher(lambda view: done.append((view, threading.current_thread().name)), count=2) as ahead:
        for index, view in enumerate(views):
            ahead.begin([view], views[index + 1 :])
            ahead.check(view)
            prepared = [item for item, _ in done]
            assert index == 0 or view in prepared
            assert len(prepared) <= index + 2
    assert [view for view, _ in done] == views[1:]
    assert all(name.startswith("sa3d-ahead") for _, name in done)
    assert threads() == []


def test_what_goes_wrong_is_told_where_it_is_needed():
    def prepare(view: int) -> None:
        if view == 3:
            raise SA3DError("the photo is gone.")

    with Prefetcher(prepare) as ahead:
        ahead.begin([1], [2, 3])
        ahead.begin([2], [3])
        ahead.check(2)
        ahead.begin([3], [])
        with pytest.raises(SA3DError, match="the photo is gone"):
            ahead.check(3)


def test_ctrl_c_leaves_what_has_not_begun():
    done: list[int] = []

    def prepare(view: int) -> None:
        time.sleep(0.05)
        done.append(view)

    with pytest.raises(KeyboardInterrupt), Prefetcher(prepare, count=50) as ahead:
        ahead.begin([0], range(1, 51))
        raise KeyboardInterrupt
    assert len(done) < 50
    assert threads() == []
    ahead.check(1)


@dataclass
class Batches(BallSegmenter):
    """Embeds several views at once, and records their names."""

    batches: list[list[str]] = field(default_factory=list)

    def embed_all(self, images: list[SegmenterImage]) -> list[int]:
        self.batches.append([image.name for image in images])
        return [self.embed(image) for image in images]


@pytest.mark.parametrize("size", [1, 4])
def test_views_are_embedded_together_once_and_only_where_the_object_is(size: int):
    views = BallViews(count=12)
    # Two cameras look away from the balls.
    views.poses[5:7, :, :3] = views.poses[5:7, :, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    segmenter = Batches(views, {}, [], [])
    session = SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings(encode_batch=size))
    session.prompt(0, point_on(views, 0, 1))
    report = session.run()
    skipped = {record.name for record in report.last().values() if record.state == "skipped"}
    assert skipped == {"005.png", "006.png"}
    assert sorted(segmenter.embedded) == sorted({views.name(view) for view in range(12)} - skipped)
    assert max(map(len, segmenter.batches), default=1) == size
    assert {view for view, _ in views.preloaded} <= set(range(1, 12))
    assert threads() == []


def test_stopping_between_two_views_stops_the_thread():
    views = BallViews()
    session = SegmentationSession(views, BallSegmenter.of(views), MaskGrid(16), SessionSettings())
    session.prompt(0, point_on(views, 0, 1))
    steps = session.steps()
    for _ in range(3):
        next(steps)
    assert len(threads()) == 1
    steps.close()
    assert threads() == []
    session.predictor.embed(7)
