"""Common causes of wrong lifted masks, with one scene for each."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import RIM_WIDTH, MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.base import render_probability
from tests.analytic import BALLS, BallSegmenter, BallViews


def segmented(views: BallViews, number: int, view: int = 0, segmenter: BallSegmenter | None = None):
    """Session after a click on an object and a run of the loop."""
    session = SegmentationSession(views, segmenter or BallSegmenter.of(views), MaskGrid(96), SessionSettings())
    y, x = (views.ids(view) == number).nonzero().float().mean(0).round().tolist()
    session.prompt(view, Prompt.from_points(views.height, views.width, [(x, y)]))
    session.run()
    return session


def masks_in_unseen_views(session: SegmentationSession, views: BallViews, number: int) -> list[tuple[Tensor, Tensor]]:
    """Rendered and true masks of views nearer to the object, between the training cameras."""
    unseen = BallViews(7, 72, 96, 2.6, views.balls, views.numbers, noise=views.noise, floater=views.floater)
    pairs = []
    for view in range(len(unseen)):
        probability, _ = render_probability(unseen.trace(view), session.grid)
        pairs.append((probability.reshape(unseen.height, unseen.width) > 0.5, unseen.ids(view) == number))
    return pairs


def mean_iou(pairs: list[tuple[Tensor, Tensor]]) -> float:
    return float(np.mean([float((a & b).sum() / (a | b).sum()) for a, b in pairs]))


def object_points(session: SegmentationSession) -> tuple[Tensor, float]:
    """Positions of the object's cells, and the side of a cell."""
    grid = session.grid
    assert isinstance(grid, MaskGrid)
    cell = 2 * float(grid.half_extent.max()) * (1 + RIM_WIDTH) / (grid.resolution - 1)
    return grid.object_points()[0], cell


def test_speckle() -> None:
    # Rays end up to a pixel's width before or behind the surface, by another distance in every view.
    views = BallViews(24, noise=0.02)
    session = segmented(views, 3)
    pairs = masks_in_unseen_views(session, views, 3)
    assert mean_iou(pairs) > 0.93
    for mask, _ in pairs:
        for side in (mask, ~mask):
            sizes = cv2.connectedComponentsWithStats(side.numpy().astype(np.uint8), connectivity=8)[2][1:, 4]
            assert len(sizes) == 1, "a mask has holes or islands"


def test_thin_parts() -> None:
    # A rod as thick as 1.3 pixels at the cameras' distance.
    rod = torch.stack([torch.tensor([0.0, 0.3, 0.1 + 0.02 * step, 0.03]) for step in range(40)])
    balls = torch.cat([BALLS[2:], rod])
    views = BallViews(24, balls=balls, numbers=torch.tensor([1, *[2] * 40]))
    pairs = masks_in_unseen_views(segmented(views, 2), views, 2)
    assert min(float((mask & truth).sum() / truth.sum()) for mask, truth in pairs) > 0.9, "the rod is broken"
    assert mean_iou(pairs) > 0.7


def test_touching_look_alikes() -> None:
    session = segmented(BallViews(), 1)
    points, cell = object_points(session)
    neighbour = BALLS[1]
    assert float((points - neighbour[:3]).norm(dim=-1).min()) > float(neighbour[3]) - 2 * cell


def test_half_hidden_in_the_prompted_view() -> None:
    views = BallViews(24)
    num_pixels = torch.tensor([float((views.ids(view) == 2).sum()) for view in range(len(views))])
    share = num_pixels / num_pixels.max()
    half_hidden = int((share - 0.5).abs().argmin())
    assert 0.3 < share[half_hidden] < 0.75
    assert mean_iou(masks_in_unseen_views(segmented(views, 2, half_hidden), views, 2)) > 0.93


def test_views_that_see_only_the_back() -> None:
    # Half of the views show none of the clicked surface; no self-prompt may lie beside the object.
    views = BallViews()
    segmenter = BallSegmenter.of(views)
    session = segmented(views, 3, segmenter=segmenter)
    for name, prompt in segmenter.prompts:
        x, y = prompt.positive.long().unbind(-1)
        assert (views.ids(int(name.removesuffix(".png")))[y, x] == 3).all(), f"prompted beside the object in {name}"
    assert all(record.state in ("prompt", "used") for record in session.report.last().values())


class UpperHalf(BallSegmenter):
    """Answers with the upper half of a ball, as if the user had pointed at a part."""

    def predict(self, embedding: int, prompt: Prompt) -> Candidates:
        candidates = super().predict(embedding, prompt)
        height = self.views.trace(embedding).surface_points()[:, 2].reshape(candidates.masks.shape[1:])
        return Candidates(candidates.masks & (height > BALLS[2, 2]), candidates.scores)


def test_a_part_stays_a_part() -> None:
    views = BallViews(24)
    session = segmented(views, 3, segmenter=UpperHalf(views, {}, [], []))
    points, cell = object_points(session)
    low, high = float(points[:, 2].min()), float(points[:, 2].max())
    middle, radius = float(BALLS[2, 2]), float(BALLS[2, 3])
    assert low > middle - 2 * cell
    assert high > middle + radius - 2 * cell


def test_floaters() -> None:
    # Haze between the first cameras and the ball. Some rays pass through it to the ball, but it is not the object.
    floater = torch.tensor([0.2, 0.35, 0.55, 0.15])
    views = BallViews(24, floater=floater)
    session = segmented(views, 3)
    points, cell = object_points(session)
    assert float((points - BALLS[2, :3]).norm(dim=-1).max()) < float(BALLS[2, 3]) + 2 * cell
    assert mean_iou(masks_in_unseen_views(session, views, 3)) > 0.9


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_leak_to_the_floor_it_stands_on(number: int) -> None:
    session = segmented(BallViews(24), number)
    points, cell = object_points(session)
    ball = BALLS[number - 1]
    on_the_floor = points[points[:, 2] < 2 * cell]
    reach = (on_the_floor[:, :2] - ball[:2]).norm(dim=-1)
    # Radius of the ball at a height of two cells.
    radius = float((ball[3] ** 2 - (ball[3] - 2 * cell) ** 2).sqrt())
    assert len(on_the_floor) == 0 or float(reach.max()) < radius + 2 * cell
    assert float(points[:, 2].min()) > -2 * cell
