"""Figures for masks and points, against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sa3d_nerfstudio.evaluation.metrics import boundary_iou, iou, panoptic_scores, pixel_accuracy, point_scores


def square(low: int, high: int, size: int = 100) -> np.ndarray:
    mask = np.zeros((size, size), dtype=bool)
    mask[low:high, low:high] = True
    return mask


def test_counts_by_hand() -> None:
    a, b = square(10, 30), square(20, 40)
    assert iou(a, b) == pytest.approx(100 / 700)
    assert pixel_accuracy(a, b) == pytest.approx(1 - 600 / 10000)
    assert iou(square(0, 0), square(0, 0)) == 1.0
    assert iou(a, square(0, 0)) == 0.0


def test_boundary_iou_sees_the_outline_only() -> None:
    # One pixel less all around a square of 60: three pixels of its outline count (2 % of a diagonal of 141).
    truth, smaller = square(20, 80), square(21, 79)
    shared = 58**2 - 54**2  # the smaller one lies in the other, and its rim starts one pixel further in
    assert boundary_iou(smaller, truth) == pytest.approx(shared / (60**2 - 52**2))
    assert boundary_iou(smaller, truth) < iou(smaller, truth)
    holed = truth.copy()
    holed[45:55, 45:55] = False
    assert boundary_iou(truth, truth) == 1.0
    assert boundary_iou(holed, truth) < 1.0


def test_the_border_of_the_image_is_outline() -> None:
    whole = np.ones((50, 50), dtype=bool)
    assert boundary_iou(whole, square(1, 49, 50)) < 1.0


@given(st.integers(0, 2**32 - 1))
def test_figures_are_shares_and_symmetric(seed: int) -> None:
    a, b = np.random.default_rng(seed).random((2, 24, 31)) > 0.5
    for figure in (iou, boundary_iou, pixel_accuracy):
        assert 0 <= figure(a, b) <= 1
        assert figure(a, b) == figure(b, a)
        assert figure(a, a) == 1.0


def test_points_near_a_surface() -> None:
    surface = np.stack(np.meshgrid(np.arange(10.0), np.arange(10.0), [0.0]), axis=-1).reshape(-1, 3)
    half = surface[surface[:, 0] < 5]
    stray = np.array([[3.0, 3.0, 7.0]])
    scores = point_scores(np.concatenate([half, stray]), surface, tolerance=0.1)
    assert scores.recall == pytest.approx(0.5)
    assert scores.precision == pytest.approx(50 / 51)
    nothing = point_scores(np.zeros((0, 3)), surface, tolerance=0.1)
    assert nothing.precision == nothing.recall == 0.0


def test_panoptic_quality_by_hand() -> None:
    truth = np.zeros((10, 10), dtype=int)
    truth[:5, :4], truth[:5, 6:] = 1, 2
    predicted = np.zeros_like(truth)
    predicted[:5, :3] = 7  # 15 of 20 pixels
    predicted[:2, 6:] = 8  # 8 of 20: no match, and wrong
    predicted[7:, :] = 9  # where nothing is labelled
    scores = panoptic_scores([(predicted, truth)])
    assert (scores.matched, scores.missed, scores.wrong) == (1, 1, 1)
    assert scores.segmentation == pytest.approx(0.75)
    assert scores.recognition == pytest.approx(0.5)
    assert scores.quality == pytest.approx(0.375)
    assert panoptic_scores([(truth * 3, truth), (truth, truth)]).quality == 1.0
    assert panoptic_scores([(truth, truth)], min_share=0.3).matched == 0
    assert panoptic_scores([]).quality == 1.0
