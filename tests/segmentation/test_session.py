"""The loop over views, on a scene with an exact ground truth."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import RIM_WIDTH, MaskGrid
from sa3d_nerfstudio.prompts.prompt import CandidateName, Prompt
from sa3d_nerfstudio.segmentation.progress import print_report
from sa3d_nerfstudio.segmentation.self_prompting import Agreement
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import FreeView
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BALLS, BallSegmenter, BallViews


def session_on(
    ball: int, views: BallViews | None = None, wrong: dict[int, torch.Tensor] | None = None, **settings
) -> SegmentationSession:
    """Session with a prompt on one ball in view 0."""
    views = views or BallViews()
    session = SegmentationSession(views, BallSegmenter.of(views, wrong), MaskGrid(64), SessionSettings(**settings))
    session.prompt(0, point_on(views, 0, ball))
    return session


def point_on(views: BallViews, view: int, ball: int) -> Prompt:
    y, x = (views.ids(view) == ball).nonzero().float().mean(0).round().tolist()
    return Prompt.from_points(views.height, views.width, [(x, y)])


def iou_in_unseen_views(session: SegmentationSession, ball: int) -> float:
    views = BallViews(count=7, distance=2.5)
    scores = []
    for view in range(len(views)):
        probability, _ = render_probability(views.trace(view), session.grid)
        mask, truth = probability.reshape(views.height, views.width) > 0.5, views.ids(view) == ball
        scores.append(float((mask & truth).sum() / (mask | truth).sum()))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("ball", [1, 2, 3])
def test_one_click_finds_the_whole_ball(ball: int):
    session = session_on(ball)
    report = session.run()
    assert iou_in_unseen_views(session, ball) > 0.93
    assert report.converged
    grid = session.grid
    assert isinstance(grid, MaskGrid)
    points, _ = grid.object_points()
    x, y, z, radius = BALLS[ball - 1].tolist()
    cell = 2 * float(grid.half_extent.max()) * (1 + RIM_WIDTH) / (grid.resolution - 1)
    assert (points - torch.tensor([x, y, z])).norm(dim=-1).max() < radius + 1.8 * cell


def test_the_published_update_finds_it_too():
    session = session_on(3, lifting="gradient", max_passes=1, view_order="file")
    session.run()
    assert iou_in_unseen_views(session, 3) > 0.8


def test_a_view_is_embedded_once_and_visited_every_pass():
    session = session_on(1)
    report = session.run()
    segmenter = session.segmenter
    assert isinstance(segmenter, BallSegmenter)
    assert sorted(segmenter.embedded) == sorted(set(segmenter.embedded))
    passes = len(report.changes) + 1
    assert [record.number_of_pass for record in report.records] == sorted(
        number for number in range(1, passes + 1) for _ in range(12)
    )


def test_the_same_masks_again_are_the_end_of_it():
    # The grid moves after the first pass, from the surface in the prompted view to the whole ball.
    session = session_on(2)
    report = session.run()
    assert report.changes == [0.0]
    assert report.converged


def test_the_same_masks_are_not_the_end_while_the_object_outgrows_its_cells():
    # The user has painted one end of a rod; the segmenter finds the whole rod in each of the other views.
    x = torch.linspace(-0.9, 0.9, 60)
    rod = torch.stack([x, 0 * x, 0 * x + 0.3, 0 * x + 0.08], dim=-1)
    views = BallViews(24, balls=rod, numbers=torch.ones(len(x), dtype=torch.long))
    painted = views.ids(6) == 1
    first = int(painted.any(dim=0).nonzero()[0])
    painted[:, first + 16 :] = False
    session = SegmentationSession(views, BallSegmenter.of(views), MaskGrid(64), SessionSettings(min_agreement=0.0))
    session.prompt(6, Prompt(views.height, views.width, mask=painted))
    report = session.run()
    assert len(report.changes) > 1
    low, high = session.grid.object_points()[0].aminmax(dim=0)
    assert high[0] - low[0] > 1.7


def test_a_view_that_disagrees_is_rejected_and_told():
    views = BallViews()
    other_ball = views.ids(4) == 3
    session = session_on(1, views, {4: other_ball})
    report = session.run()
    record = report.last()[4]
    assert record.state == "rejected"
    assert record.reason.startswith("IoU with the rendered mask is 0.0")
    assert iou_in_unseen_views(session, 1) > 0.93


def test_without_rejection_the_same_view_does_harm():
    views = BallViews()
    wrong = {view: views.ids(view) == 3 for view in (2, 4, 6, 8, 10)}
    guarded, unguarded = session_on(1, views, wrong), session_on(1, views, wrong, min_agreement=0.0)
    guarded.run()
    unguarded.run()
    assert iou_in_unseen_views(guarded, 1) > iou_in_unseen_views(unguarded, 1) + 0.005


@pytest.mark.parametrize(("views_that_disagree", "told"), [(3, False), (8, True)])
def test_many_rejected_views_are_worth_a_word(views_that_disagree: int, told: bool):
    views = BallViews()
    session = session_on(1, views, {view: views.ids(view) == 3 for view in range(2, 2 + views_that_disagree)})
    session.run()
    console = Console(file=io.StringIO(), width=60)
    print_report(session, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert ("warning: most views were rejected" in printed) is told
    assert (session.report.advice is not None) is told


def test_an_empty_answer_is_rejected():
    views = BallViews()
    session = session_on(1, views, {3: torch.zeros(views.height, views.width, dtype=torch.bool)})
    assert session.run().last()[3].reason == "the segmenter found nothing"


def test_stopping_keeps_what_is_known_so_far():
    session = session_on(1)
    steps = session.steps()
    for _ in range(3):
        next(steps)
    steps.close()
    assert not session.grid.is_empty


def test_views_that_cannot_see_the_object_are_skipped():
    views = BallViews()
    # Turn one camera around.
    views.poses[5, :, 0] *= -1
    views.poses[5, :, 2] *= -1
    report = session_on(1, views).run()
    assert (report.last()[5].state, report.last()[5].reason) == ("skipped", "object not in view")


def test_two_prompted_views_are_both_kept():
    views = BallViews()
    session = session_on(1, views)
    session.prompt(6, point_on(views, 6, 1))
    report = session.run()
    assert {record.view for record in report.records if record.state == "prompt"} == {0, 6}


@pytest.mark.parametrize("prompt", [Prompt.from_points(48, 64), Prompt.from_points(48, 64, negative=[(5, 5)])])
def test_a_prompt_without_anything_positive_selects_nothing(prompt: Prompt):
    views = BallViews()
    session = SegmentationSession(
        views, BallSegmenter.of(views, {0: views.ids(0) == 1}), MaskGrid(8), SessionSettings()
    )
    with pytest.raises(SA3DError, match=r"selects nothing in 000\.png"):
        session.prompt(0, prompt)


def test_a_prompt_on_nothing_selects_nothing():
    views = BallViews()
    session = SegmentationSession(views, BallSegmenter.of(views), MaskGrid(8), SessionSettings())
    with pytest.raises(SA3DError, match="selects nothing"):
        session.prompt(0, Prompt.from_points(48, 64, [(0, 0)]))


def test_running_without_a_prompt_is_refused():
    views = BallViews()
    with pytest.raises(SA3DError, match="prompt a view first"):
        SegmentationSession(views, BallSegmenter.of(views), MaskGrid(8), SessionSettings()).run()


def test_a_given_mask_is_taken_as_it_is():
    views = BallViews()
    session = SegmentationSession(views, BallSegmenter.of(views), MaskGrid(64), SessionSettings())
    prompt = Prompt(views.height, views.width, mask=views.ids(0) == 3)
    session.prompt(0, prompt)
    assert isinstance(session.segmenter, BallSegmenter)
    assert session.segmenter.prompts == []
    session.run()
    assert iou_in_unseen_views(session, 3) > 0.93


def test_segmenters_see_pictures_of_training_views_and_renders_of_others():
    class Photographed(BallViews):
        def picture(self, view: int, side: int | None = None) -> torch.Tensor:
            return torch.full((self.height, self.width, 3), 0.25)

    class Recording(BallSegmenter):
        def embed(self, image: SegmenterImage) -> int:
            self.embedded.append(image.name)
            images.append(image)
            return 0

    images: list[SegmenterImage] = []
    views = Photographed()
    session = SegmentationSession(views, Recording(views, {}, [], []), MaskGrid(8), SessionSettings())
    trace = views.trace(0)
    session.free["mine"] = FreeView(trace, views.camera_to_worlds[0])
    for view in (0, "mine"):
        session.predictor.embed(view)
    assert (images[0].rgb == 0.25).all()
    assert torch.equal(images[1].rgb, trace.rgb)
    for image in images:
        assert image.depth is not None
        assert torch.equal(image.depth, trace.depth[..., 0])


class PartObjectWhole(BallSegmenter):
    """Answers with the ball's upper half, the ball, and the two touching balls, and scores the last highest."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        ball = super().predict(embedding, prompt).masks[0]
        height = self.views.trace(embedding).surface_points()[:, 2].reshape(ball.shape)
        ids = self.views.ids(embedding)
        return Candidates(
            torch.stack([ball & (height > BALLS[0, 2]), ball, (ids == 1) | (ids == 2)]), torch.arange(3.0)
        )


@pytest.mark.parametrize("candidate", [0, 1, 2])
def test_other_views_follow_the_candidate_that_the_user_has_picked(candidate: int):
    views = BallViews()
    segmenter = PartObjectWhole.of(views)
    session = SegmentationSession(views, segmenter, MaskGrid(64), SessionSettings())
    session.prompt(0, point_on(views, 0, 1))
    session.choose(0, candidate)
    session.run()
    unseen = BallViews(count=7, distance=2.5)
    for view in range(len(unseen)):
        probability, _ = render_probability(unseen.trace(view), session.grid)
        mask = probability.reshape(unseen.height, unseen.width) > 0.5
        ids = unseen.ids(view)
        height = unseen.trace(view).surface_points()[:, 2].reshape(ids.shape)
        truth = [(ids == 1) & (height > BALLS[0, 2]), ids == 1, (ids == 1) | (ids == 2)][candidate]
        assert float((mask & truth).sum() / (mask | truth).sum()) > 0.85


@pytest.mark.parametrize(("name", "candidate"), [("small", 0), ("medium", 1), ("large", 2), ("auto", 2)])
def test_a_candidate_is_named_by_its_size(name: CandidateName, candidate: int):
    views = BallViews()
    segmenter = Shuffled.of(views)
    session = SegmentationSession(views, segmenter, MaskGrid(8), SessionSettings())
    prompt = point_on(views, 0, 1)
    prompt.candidate = name
    session.prompt(0, prompt)
    expected = PartObjectWhole.of(views).predict(0, prompt).masks[candidate]
    assert torch.equal(session.mask_of(0), expected)
    assert session.prompted[0].picked is (name != "auto")


class Shuffled(PartObjectWhole):
    """Answers with the same three masks, the largest first; the single-mask answer, the largest, comes last."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        candidates = super().predict(embedding, prompt)
        return Candidates(candidates.masks[[2, 0, 1, 2]], torch.tensor([0.5, 0.9, 0.8, 0.7]), single=3)


class Fickle(PartObjectWhole):
    """Prefers part, object and whole in turn from view to view, and the object in the prompted view."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        scores = torch.tensor([0.7, 0.75, 0.7])
        scores[1 if embedding == 0 else embedding % 3] = 0.95
        return Candidates(super().predict(embedding, prompt).masks, scores)


def test_a_fickle_favourite_does_not_mislead_the_loop():
    views = BallViews()
    session = SegmentationSession(views, Fickle.of(views), MaskGrid(64), SessionSettings())
    session.prompt(0, point_on(views, 0, 1))
    report = session.run()
    assert iou_in_unseen_views(session, 1) > 0.9
    assert all(record.state in ("prompt", "used") for record in report.last().values())


class FittingPriors(BallSegmenter):
    """Segmenter whose scores measure how well masks fit the prior."""

    fits_prior = True


@pytest.mark.parametrize(("kind", "chosen"), [(BallSegmenter, 0), (FittingPriors, 1)])
def test_what_is_known_counts_once_where_scores_tell_of_it(kind: type[BallSegmenter], chosen: int):
    """If the rendered mask counted twice, any excess of it would grow from view to view."""
    views = BallViews()
    session = SegmentationSession(views, kind.of(views), MaskGrid(8), SessionSettings())
    session.prompt(0, point_on(views, 0, 1))
    candidates = Candidates(torch.zeros(2, 4, 4, dtype=torch.bool), torch.tensor([0.5, 0.55]))
    assert session.choose_candidate(candidates, Agreement([0.9, 0.8], [0.9, 0.8], [0.5, 0.48])) == chosen
    # Agreement with the prompted view counts in any case; candidates below the least agreement are excluded.
    assert session.choose_candidate(candidates, Agreement([0.9, 0.8], [0.9, 0.8], [0.6, 0.5])) == 0
    assert session.choose_candidate(candidates, Agreement([0.9, 0.2], [0.9, 0.2], [0.5, 0.48])) == 0


class OnlyLarge(PartObjectWhole):
    """Answers in reverse order in larger images."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        answer = super().predict(embedding, prompt)
        return answer if self.views.height < 48 else Candidates(answer.masks.flip(0), answer.scores)


def test_what_was_taken_is_found_again_in_larger_images():
    small, large = BallViews(height=24, width=32, distance=4.0), BallViews(height=48, width=64, distance=4.0)
    session = SegmentationSession(
        small, OnlyLarge.of(small), MaskGrid(16), SessionSettings(max_passes=1), sized=lambda factor: (large, {})
    )
    prompt = point_on(small, 0, 1)
    prompt.candidate = "small"
    session.prompt(0, prompt)
    session.segmenter.views = large  # type: ignore[attr-defined]
    area = int(session.mask_of(0).sum())
    list(session.steps())
    assert session.prompted[0].picked
    assert int(session.mask_of(0).sum()) == pytest.approx(4 * area, rel=0.35)


def test_points_beside_the_object_go_along():
    views = BallViews(24)
    segmenter = BallSegmenter.of(views)
    session = SegmentationSession(views, segmenter, MaskGrid(64), SessionSettings(max_passes=1))
    on, beside = point_on(views, 0, 1).points, point_on(views, 0, 2).points
    session.prompt(0, Prompt.from_points(views.height, views.width, on, beside))
    session.run()
    num_points = 0
    for name, prompt in segmenter.prompts[1:]:
        ids = views.ids(int(name.removesuffix(".png")))
        for x, y in prompt.negative.long().tolist():
            assert ids[y, x] == 2, f"a point on the other ball is somewhere else in {name}"
            num_points += 1
    assert 3 < num_points < len(views)


@pytest.mark.parametrize("method", ["embed", "predict"])
def test_a_segmenter_that_does_not_fit_into_memory_ends_in_a_sentence(method: str, monkeypatch: pytest.MonkeyPatch):
    def too_large(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(BallSegmenter, method, too_large)
    with pytest.raises(SA3DError, match=r"memory is full: segment with a smaller --pipeline.segmenter"):
        session_on(1)
