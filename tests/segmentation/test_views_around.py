"""Virtual views around an object whose visited views show it from one side."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.views_around import REACH, camera_towards, directions_around
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.traces.nerf import NerfViewTrace
from tests.analytic import BALLS, BallViews
from tests.segmentation.test_session import iou_in_unseen_views, point_on


class AnywhereBallViews(BallViews):
    """The same scene, rendered from any pose."""

    def render_from(self, pose: Tensor, angle: float, side: int) -> NerfViewTrace:
        views = BallViews(1, side, side, balls=self.balls, numbers=self.numbers)
        views.poses, views.focal = pose[None], side / (2 * math.tan(angle / 2))
        return views.trace(0)


class ShadeSegmenter:
    """Distinguishes balls by their shades, in any image."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, image: SegmenterImage) -> Tensor:
        self.seen.append(image.name)
        return (image.rgb[..., 0] * 3).round()

    def predict(self, embedding: Tensor, prompt: Prompt) -> Candidates:
        x, y = prompt.positive[0].long().tolist()
        mask = (embedding == embedding[y, x]) & (embedding > 0)
        return Candidates(mask[None], torch.ones(1))


def test_directions_are_new_and_near_to_training_cameras():
    views = BallViews()
    center = BALLS[0, :3]
    visited = views.camera_to_worlds[:2]
    chosen = directions_around(center, views.camera_to_worlds, visited, 6)
    assert chosen.shape == (6, 3)

    def degrees(poses: Tensor, ways: Tensor) -> Tensor:
        offsets = torch.nn.functional.normalize(poses[:, :, 3] - center, dim=-1)
        return torch.rad2deg(torch.arccos((ways @ offsets.T).clamp(-1, 1)))

    assert (degrees(views.camera_to_worlds, chosen).amin(1) < REACH).all()
    # The first is far from the visited views, and no two are neighbours.
    assert degrees(visited, chosen)[0].min() > 90
    between = torch.rad2deg(torch.arccos((chosen @ chosen.T).clamp(-1, 1))) + 180 * torch.eye(6)
    assert between.min() > 25
    assert len(directions_around(center, views.camera_to_worlds, visited, 1000)) < 400


def test_cameras_look_at_the_object_upright_and_from_as_far_as_the_others():
    views = BallViews()
    center = BALLS[0, :3]
    for direction in directions_around(center, views.camera_to_worlds, views.camera_to_worlds[:1], 8):
        pose = camera_towards(center, direction, views.camera_to_worlds)
        assert torch.allclose(pose[:, :3].T @ pose[:, :3], torch.eye(3), atol=1e-5)
        assert float(torch.linalg.det(pose[:, :3])) > 0.99
        assert torch.allclose(pose[:, 2], direction, atol=1e-5)
        assert pose[2, 1] > 0, "upright"
        distances = (views.camera_to_worlds[:, :, 3] - center).norm(dim=-1)
        assert distances.min() - 1e-4 <= (pose[:, 3] - center).norm() <= distances.max() + 1e-4


def session_on(ball: int, **settings: int) -> SegmentationSession:
    views = AnywhereBallViews()
    session = SegmentationSession(views, ShadeSegmenter(), MaskGrid(64), SessionSettings(**settings))  # type: ignore[arg-type]
    session.prompt(0, point_on(views, 0, ball))
    return session


def test_few_views_and_virtual_ones_show_more_than_few_views():
    few, around = session_on(3, num_views=1), session_on(3, num_views=1, views_around=6)
    few.run()
    report = around.run()
    assert iou_in_unseen_views(around, 3) > max(iou_in_unseen_views(few, 3), 0.9)
    virtual = {name: record for name, record in report.last().items() if isinstance(name, str)}
    assert len(virtual) == 6
    assert around.num_visits == 8
    assert {record.state for record in virtual.values()} <= {"used", "skipped"}
    used = [name for name, record in virtual.items() if record.state == "used"]
    assert len(used) >= 4
    for name in used:
        trace = around.trace(name)
        mask = (trace.rgb[..., 0] * 3).round() == 3
        y, x = (mask.nonzero().float().mean(0) / trace.height).tolist()
        # The object lies near the middle of an image no larger than a window around it.
        assert abs(x - 0.5) < 0.2
        assert abs(y - 0.5) < 0.2
        assert 0.1 < mask.float().mean() < 0.7
        assert trace.height <= 64
    # Rendered and embedded once, whatever the number of passes.
    assert isinstance(around.segmenter, ShadeSegmenter)
    assert all(around.segmenter.seen.count(name) == 1 for name in used)


def test_there_are_none_unless_they_are_asked_for():
    session = session_on(1)
    report = session.run()
    assert all(isinstance(view, int) for view in report.last())
    # There are none either where the scene cannot be rendered from other poses.
    views = BallViews()
    session = SegmentationSession(views, ShadeSegmenter(), MaskGrid(32), SessionSettings(views_around=4))
    session.prompt(0, point_on(views, 0, 1))
    assert all(isinstance(view, int) for view in session.run().last())
