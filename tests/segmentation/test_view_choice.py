"""Choice of views that differ most from those chosen before."""

from __future__ import annotations

import io

import torch
from rich.console import Console

from sa3d_nerfstudio.segmentation.progress import run_with_progress
from sa3d_nerfstudio.segmentation.session_progress import followed
from sa3d_nerfstudio.segmentation.view_selection import covering_views
from tests.analytic import BallViews
from tests.segmentation.test_session import iou_in_unseen_views, session_on

CENTER = torch.tensor([0.0, 0.1, 0.2])


def test_they_lie_all_around():
    poses = BallViews(12).camera_to_worlds
    assert covering_views(poses, CENTER, [0], 1) == [6]
    assert sorted(covering_views(poses, CENTER, [0], 3)) == [3, 6, 9]


def test_each_comes_once_and_none_that_is_there():
    poses = BallViews(8).camera_to_worlds
    chosen = covering_views(poses, CENTER, [2, 5], 20)
    assert sorted([*chosen, 2, 5]) == list(range(8))


def test_those_that_look_away_come_last():
    poses = BallViews(8).camera_to_worlds.clone()
    poses[4, :, :3] *= -1
    chosen = covering_views(poses, CENTER, [0], 7)
    assert chosen[-1] == 4


def test_a_session_visits_the_same_few_in_every_pass():
    views = BallViews(12)
    session = session_on(1, views, num_views=4)
    assert session.num_visits == 5, "the one with the prompt comes on top"
    report = session.run()
    assert len(report.last()) == 5
    assert len(set(views.traced)) == 5
    assert len(report.changes) >= 1
    assert iou_in_unseen_views(session, 1) > 0.85


def test_without_a_number_it_is_all():
    session = session_on(1)
    assert len(session.run().last()) == session.num_visits == 12
    assert session_on(1, num_views=40).num_visits == 12, "there are no more"


def test_progress_counts_the_views_that_are_visited():
    session = session_on(1, num_views=4)
    steps = list(followed(session))
    assert {step.total for step in steps} == {5}
    assert max(step.done for step in steps) == 5
    console = Console(file=io.StringIO(), width=200)
    assert run_with_progress(session_on(1, num_views=4), console)
    assert "5/5 views" in console.file.getvalue()  # type: ignore[attr-defined]
