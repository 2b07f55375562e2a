"""Prompts in whole pixels: the parts of a prior that are believed, and the points that still say something."""

from __future__ import annotations

import pytest
import torch

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.grabcut.placed_prompt import place


def prior_of(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """60 x 80 pixels, 1 in these boxes (x0, y0, x1, y1) and 0 elsewhere."""
    prior = torch.zeros(60, 80)
    for x0, y0, x1, y1 in boxes:
        prior[y0:y1, x0:x1] = 1
    return prior


def test_points_and_box() -> None:
    prompt = Prompt.from_points(120, 160, [(10, 21)], [(159, 119)], box=[20, 40, 60, 300])
    placed = place(prompt, (60, 80))
    assert placed.positive == [(10, 5)]
    assert placed.negative == [(59, 79)]
    assert placed.inside is not None
    assert placed.inside.sum() == 20 * 40
    assert placed.inside[20:60, 10:30].all()
    assert placed.probable is None


def test_islands_of_a_prior_are_unknown() -> None:
    prior = prior_of((10, 10, 40, 40), (60, 10, 63, 13))
    placed = place(Prompt.from_points(60, 80, [(20, 20)], prior=prior), (60, 80))
    assert placed.probable is not None
    assert placed.known is not None
    assert placed.log_odds is not None
    assert placed.probable[20, 20]
    assert not placed.probable[11, 61]
    assert not placed.known[11, 61]
    assert placed.log_odds[11, 61] == pytest.approx(0, abs=1e-6)
    assert placed.log_odds[20, 20] == pytest.approx(-placed.log_odds[50, 70], rel=1e-5)


def test_an_object_may_be_seen_in_two_parts() -> None:
    prior = prior_of((10, 10, 30, 40), (34, 10, 50, 40))
    placed = place(Prompt.from_points(60, 80, [(20, 20)], prior=prior), (60, 80))
    assert placed.probable is not None
    assert placed.probable.sum() == prior.sum()


def test_only_points_that_the_prior_does_not_cover_count() -> None:
    """A click on what the prior claims adds nothing, nor one on an island of it; one that contradicts it does."""
    prior = prior_of((10, 10, 40, 40), (60, 10, 63, 13))
    prior[50:] = torch.nan
    prompt = Prompt.from_points(60, 80, [(20, 20), (61, 11), (70, 40), (70, 55)], [(30, 30)], prior=prior)
    placed = place(prompt, (60, 80))
    assert placed.positive == [(40, 70), (55, 70)]
    assert placed.negative == [(30, 30)]


def test_expected_area() -> None:
    prior = prior_of((20, 15, 50, 45))
    prompt = Prompt.from_points(60, 80, [(1, 1)], prior=prior)
    assert place(prompt, (60, 80)).expected_area == pytest.approx(900)
    prior[:, 40:] = torch.nan
    assert 1.25 * 600 < place(prompt, (60, 80)).expected_area < 2 * 600
    assert place(Prompt.from_points(60, 80, [(1, 1)]), (60, 80)).expected_area == 0


def test_spread() -> None:
    for points, spread in (([], 0), ([(3, 3)], 0), ([(3, 3), (6, 7)], 5), ([(0, 0), (6, 8), (3, 4)], 10)):
        box = None if points else [0, 0, 9, 9]
        assert place(Prompt.from_points(60, 80, points, box=box), (60, 80)).spread == spread
