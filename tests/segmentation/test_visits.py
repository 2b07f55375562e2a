"""Joint visits of views in later passes: the same object, with fewer waits and with joint prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from benchmarks.visits import costs_of
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation import mask_lifter
from sa3d_nerfstudio.segmentation.likelihood import BYTES_PER_RAY
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.atoms import atoms_of
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.view_rays import ViewRays
from tests.analytic import BallSegmenter, BallViews
from tests.pretended_device import a_cuda_device
from tests.segmentation.test_session import point_on


@dataclass
class AskedTogether(BallSegmenter):
    """Answers several prompts at once, with two candidates each, and records the number of prompts."""

    at_once: int = 4
    asked: list[int] = field(default_factory=list)

    def predict_all(self, questions: Sequence[tuple[Any, Prompt]]) -> list[Candidates]:
        self.asked.append(len(questions))
        return [self.predict(*question) for question in questions]

    def predict(self, embedding: Any, prompt: Prompt) -> Candidates:
        candidates = super().predict(embedding, prompt)
        return Candidates(torch.cat([candidates.masks, torch.ones_like(candidates.masks)]), torch.tensor([0.8, 0.9]))


def session_of(at_once: int, views: BallViews) -> tuple[SegmentationSession, AskedTogether]:
    segmenter = AskedTogether(views, {}, [], [], at_once=at_once)
    session = SegmentationSession(views, segmenter, MaskGrid(48), SessionSettings(min_agreement=0.3))
    session.prompt(0, point_on(views, 0, 1))
    return session, segmenter


def test_views_of_later_passes_are_asked_about_together():
    results = []
    for at_once in (1, 4):
        session, segmenter = session_of(at_once, BallViews(count=12))
        report = session.run()
        results.append((report.records, report.changes, session.grid.hit, session.grid.seen))
        # The user's prompt and the eleven visits of the first pass one by one; later visits by four, four and three.
        assert segmenter.asked[:12] == [1] * 12
        assert segmenter.asked[12:15] == ([1, 1, 1] if at_once == 1 else [4, 4, 3])
    one_by_one, together = results
    assert together[:2] == one_by_one[:2]
    assert all(torch.equal(a, b) for a, b in zip(together[2:], one_by_one[2:], strict=True))


def test_a_pass_may_be_left_between_views_that_are_visited_together():
    session, _ = session_of(4, BallViews(count=12))
    steps = session.steps()
    records = [next(steps) for _ in range(12 + 3)]
    steps.close()
    assert [record.number_of_pass for record in records[-3:]] == [2, 2, 2]
    assert [record.view for record in records[-2:]] == [record.view for record in records[1:3]]


class ViewsOnCuda(BallViews):
    """Views with compressed traces on the device."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.kept: dict[int, CompressedTrace] = {}

    def trace(self, view: int) -> Any:
        if view not in self.kept:
            exact = super().trace(view)
            origins, directions = exact.origins, exact.directions
            rays = ViewRays.of(origins, directions, self.poses[view][:, :3])
            atoms = atoms_of(exact.samples, origins, directions, 1 / self.width)
            accumulation = exact.samples.accumulation
            packed = CompressedTrace.pack(*atoms, accumulation, exact.rgb, exact.depth.clamp(max=20), rays)
            tensors = {name: tensor.cuda() for name, tensor in packed.tensors().items()}
            rays = replace(rays, origins=rays.origins.cuda(), local=rays.local.cuda(), rotation=rays.rotation.cuda())
            self.kept[view] = CompressedTrace(**tensors, **packed.numbers(), rays=rays)
        return self.kept[view]


def test_the_host_waits_for_a_gpu_once_a_visit():
    """In the first pass, a view's rendered mask is read together with the overlaps of the previous view's candidates
    with theirs, unless a mask has to be taken back; in later passes, eight views share a wait."""
    size: dict[str, Any] = {"count": 10, "height": 24, "width": 32}
    settings = SessionSettings(max_passes=2, likelihood_steps=0, part_gap=0.0, view_order="file")
    views = BallViews(**size)
    # In one view, the segmenter answers with another ball.
    segmenters = [BallSegmenter.of(views, {4: views.ids(4) == 3}) for _ in range(2)]
    expected = SegmentationSession(views, segmenters[0], MaskGrid(24), settings)
    expected.prompt(0, point_on(views, 0, 1))
    expected.run()
    with a_cuda_device():
        session = SegmentationSession(ViewsOnCuda(**size), segmenters[1], MaskGrid(24).cuda(), settings)
        session.prompt(0, point_on(views, 0, 1))
        costs = costs_of(session)
        first, later = costs["first pass"], costs["later passes"]
        assert (first.steps, later.steps) == (9, 9)
        # One for the first mask, and one more for each view after a mask that has been taken back.
        rejected = sum(record.state == "rejected" for record in session.report.records[:10])
        assert 0 < rejected < 9
        assert first.waits.total() <= 9 + 1 + rejected, first.waits
        assert later.waits.total() <= 2 * 2 + 1, later.waits
        assert later.copies == 2 * 9, "only the stand-in's masks and scores come from the host"
        session.grid.cpu()
    states = [[(record.view, record.state) for record in finished.report.records] for finished in (session, expected)]
    assert states[0] == states[1]
    assert (4, "rejected") in states[0]
    agree = (session.grid.probability() > 0.5) == (expected.grid.probability() > 0.5)
    assert agree.float().mean() > 0.99


def test_the_fit_takes_as_many_rays_as_memory_holds(monkeypatch: pytest.MonkeyPatch):
    session, _ = session_of(1, BallViews(count=10))
    session.run()
    with_all = session.report.likelihood
    monkeypatch.setattr(mask_lifter, "free_bytes", lambda device: 10 * 2 * BYTES_PER_RAY * 100)
    monkeypatch.setattr(mask_lifter, "FEWEST_FITTED", 1)
    session, _ = session_of(1, BallViews(count=10))
    session.run()
    with_some = session.report.likelihood
    assert with_all is not None and with_some is not None
    assert 0 < with_some.num_rays <= 10 * 100 < with_all.num_rays
