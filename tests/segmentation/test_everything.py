"""Segmentation of every object in a scene with an exact ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.everything import SceneSegmentation, SceneSettings
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.view_selection import focus
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.segmenters.proposals import grid_proposals
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BallSegmenter, BallViews


@dataclass
class ProposingSegmenter(BallSegmenter):
    """Proposes every ball of a view, and the further masks in ``more``."""

    more: dict[int, list[Tensor]] = field(default_factory=dict)

    def propose(self, embedding: int) -> Candidates:
        ids = self.views.ids(embedding)
        masks = [ids == number for number in ids.unique().tolist() if number > 0] + self.more.get(embedding, [])
        return Candidates(torch.stack(masks), torch.ones(len(masks)))


def scene_of(
    views: BallViews, more: dict[int, list[Tensor]] | None = None, **settings
) -> tuple[SceneSegmentation, list[SegmentationSession]]:
    """Segmentation of a whole scene, and the list of the sessions that it has begun."""
    segmenter = ProposingSegmenter(views, {}, [], [], more or {})
    sessions: list[SegmentationSession] = []

    def new_session() -> SegmentationSession:
        sessions.append(SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings()))
        return sessions[-1]

    predictor = MaskPredictor(segmenter, SessionViews(views, {}, SessionReport()))
    return SceneSegmentation(views, predictor, new_session, SceneSettings(num_views=4, **settings)), sessions


def balls_of(fields: Iterable[MaskField]) -> dict[int, float]:
    """Map each ball that best matches an object in an unseen view to the highest IoU of such an object."""
    views = BallViews(count=5, distance=2.6)
    ids = views.ids(1)
    ious_of_balls: dict[int, float] = {}
    for mask_field in fields:
        mask = render_probability(views.trace(1), mask_field)[0].reshape(ids.shape) > 0.5
        ious = {ball: float((mask & (ids == ball)).sum() / (mask | (ids == ball)).sum()) for ball in (1, 2, 3)}
        best_ball = max(ious, key=ious.__getitem__)
        ious_of_balls[best_ball] = max(ious_of_balls.get(best_ball, 0.0), ious[best_ball])
    return ious_of_balls


@pytest.fixture(scope="module")
def taken_apart() -> SceneSegmentation:
    scene, _ = scene_of(BallViews())
    scene.run()
    return scene


def test_every_ball_is_found_once(taken_apart: SceneSegmentation):
    assert list(taken_apart.objects) == ["object 1", "object 2", "object 3"]
    ious_of_balls = balls_of(item.field for item in taken_apart.objects.values())
    assert sorted(ious_of_balls) == [1, 2, 3]
    assert min(ious_of_balls.values()) > 0.9
    assert taken_apart.report.sessions == 3
    assert taken_apart.report.ending == "nothing is left"
    assert taken_apart.pool.explained > 0.95
    assert taken_apart.cut == list(taken_apart.objects)
    assert all(item.support > 0.9 for item in taken_apart.objects.values())


def test_bounds_end_it():
    scene, _ = scene_of(BallViews(), max_objects=2)
    assert scene.run().ending == "as many objects as wanted"
    assert len(scene.objects) == 2
    # Without time, one object is segmented, so that a job with a short limit comes to its end by repetition.
    late, _ = scene_of(BallViews(), max_seconds=0.0)
    report = late.run()
    assert report.ending == "out of time"
    assert report.sessions == len(late.objects) == 1


def test_what_was_stopped_goes_on(taken_apart: SceneSegmentation):
    first, _ = scene_of(BallViews())
    steps = first.steps()
    next(progress for progress in steps if progress.found is not None)
    for _ in range(5):  # in the middle of the second object's session
        next(steps)
    steps.close()
    assert list(first.objects) == ["object 1"]
    resumed, _ = scene_of(BallViews())
    resumed.resume({"object 1": first.objects["object 1"].field}, first.tried)
    report = resumed.run()
    assert report.sessions == 2
    assert list(resumed.objects) == ["object 1", "object 2", "object 3"]
    for name, item in resumed.objects.items():
        assert item.area == pytest.approx(taken_apart.objects[name].area, rel=0.02)


def test_what_one_view_alone_calls_an_object_is_none():
    views = BallViews()
    ids = {view: views.ids(view) for view in range(len(views))}
    # One view proposes two separate balls as one object, and this is the largest proposal of all.
    scene, _ = scene_of(views, more={0: [(ids[0] == 1) | (ids[0] == 3)]})
    scene.run()
    ious_of_balls = balls_of(scene.objects[name].field for name in scene.cut)
    assert sorted(ious_of_balls) == [1, 2, 3]
    assert min(ious_of_balls.values()) > 0.9
    assert len(scene.cut) == 3


class Overlooking(ProposingSegmenter):
    """Proposes small balls in one view only, as a grid of points may, but finds them in all views when prompted."""

    def propose(self, embedding: int) -> Candidates:
        ids = self.views.ids(embedding)
        masks = [ids == number for number in ids.unique().tolist() if number > 0]
        masks = [mask for mask in masks if mask.sum() >= ids.numel() / 256 or embedding == 0]
        return Candidates(torch.stack(masks), torch.ones(len(masks)))


def test_what_proposals_overlook_is_asked_for():
    balls = torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.5, 0.3, 0.08, 0.08]])
    views = BallViews(height=96, width=128, balls=balls)
    small = [int((views.ids(view) == 2).sum()) for view in range(len(views))]
    assert max(small) < 96 * 128 / 256, "a grid of points may miss it"
    segmenter = Overlooking(views, {}, [], [])
    predictor = MaskPredictor(segmenter, SessionViews(views, {}, SessionReport()))

    def new_session() -> SegmentationSession:
        return SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings())

    scene = SceneSegmentation(views, predictor, new_session, SceneSettings(num_views=4))
    scene.run()
    assert len(scene.cut) == 2
    assert scene.objects["object 2"].support > 0.8
    assert scene.report.sessions == 2, "answers to what is asked are no proposals"
    # Proposals from another source, such as words, are complete: the segmenter is not prompted for more.
    words = SceneSegmentation(views, predictor, new_session, SceneSettings(num_views=4), predictor.propose)
    words.run()
    assert len(words.objects) == 1


class Levels(ProposingSegmenter):
    """Also proposes the two touching balls as one object; answers with the proposal most like the prior."""

    def propose(self, embedding: int) -> Candidates:
        ids = self.views.ids(embedding)
        masks = [ids == 1, ids == 2, ids == 3, (ids == 1) | (ids == 2)]
        return Candidates(torch.stack([mask for mask in masks if mask.any()]), torch.ones(4)[: len(masks)])

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        masks = self.propose(embedding).masks
        assert prompt.prior is not None
        known, prior = ~prompt.prior.isnan(), prompt.prior.nan_to_num(0.0) > 0.5
        ious = (masks & prior).flatten(1).sum(1) / ((masks & known) | prior).flatten(1).sum(1)
        return Candidates(masks[ious.argmax()][None], torch.ones(1))


def test_parts_and_wholes_make_a_tree():
    views = BallViews()
    segmenter = Levels(views, {}, [], [])
    predictor = MaskPredictor(segmenter, SessionViews(views, {}, SessionReport()))
    scene = SceneSegmentation(
        views,
        predictor,
        lambda: SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings()),
        SceneSettings(num_views=4),
    )
    scene.run()
    tree = scene.tree
    assert len(scene.objects) == 4
    whole = next(name for name in tree if tree.children(name))
    assert len(tree.children(whole)) == 2
    assert len(tree.roots) == 2
    ious_of_balls = balls_of(scene.objects[name].field for name in tree.children(whole))
    assert sorted(ious_of_balls) == [1, 2]
    # The cut holds either the whole or its two parts.
    assert sorted(scene.cut) in (sorted(tree.roots), sorted({*tree.children(whole), *tree.roots} - {whole}))


def test_a_segmenter_without_proposals_is_asked_at_a_grid_of_points():
    views = BallViews()
    segmenter = BallSegmenter.of(views)
    proposals = grid_proposals(segmenter, 0, views.height, views.width)
    ids = views.ids(0)
    truth = [ids == number for number in ids.unique().tolist() if number > 0]
    assert sorted(int(mask.sum()) for mask in proposals.masks) == sorted(int(mask.sum()) for mask in truth)


def test_cameras_in_a_ring_look_at_its_middle():
    assert torch.allclose(focus(BallViews().camera_to_worlds), torch.tensor([0.0, 0.1, 0.2]), atol=1e-3)
    side_by_side = torch.eye(3, 4).repeat(3, 1, 1)
    side_by_side[:, 0, 3] = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.equal(focus(side_by_side), torch.zeros(3))
