"""The cut is the cheapest one."""

from __future__ import annotations

import itertools

import numpy as np

from sa3d_nerfstudio.segmenters.grabcut.tv_cut import tv_cut


def cost(u: np.ndarray, unary: np.ndarray, weight: np.ndarray) -> float:
    """The functional that tv_cut says it minimises."""
    x, y = np.zeros_like(u), np.zeros_like(u)
    x[:, :-1] = u[:, 1:] - u[:, :-1]
    y[:-1] = u[1:] - u[:-1]
    return float((unary * u).sum() + (weight * np.hypot(x, y)).sum())


def test_cheapest_of_all_binary_cuts() -> None:
    """Small enough to try every cut: none may be cheaper than the solution, nor the solution than its own threshold."""
    generator = np.random.default_rng(0)
    for _ in range(5):
        unary = generator.normal(size=(3, 4))
        weight = generator.uniform(0.05, 0.8, size=(3, 4))
        u = tv_cut(unary[None], weight, np.full((1, 3, 4), 0.5), 3000)[0].astype(float)
        least = min(
            cost(np.array(bits, float).reshape(3, 4), unary, weight) for bits in itertools.product((0, 1), repeat=12)
        )
        assert cost(u, unary, weight) <= least + 1e-3


def test_without_borders_each_pixel_decides() -> None:
    unary = np.random.default_rng(0).normal(size=(2, 20, 30))
    u = tv_cut(unary, np.zeros((20, 30)), np.full(unary.shape, 0.5), 200)
    assert np.array_equal(u > 0.5, unary < 0)


def test_noise_is_smoothed_and_the_border_runs_along_edges() -> None:
    generator = np.random.default_rng(0)
    truth = np.zeros((40, 40), bool)
    truth[10:30, 8:25] = True
    unary = np.where(truth, -0.3, 0.3) + generator.normal(size=truth.shape)
    edge = np.zeros(truth.shape, bool)
    edge[:, 1:] |= truth[:, 1:] != truth[:, :-1]
    edge[:, :-1] |= truth[:, 1:] != truth[:, :-1]
    edge[1:] |= truth[1:] != truth[:-1]
    edge[:-1] |= truth[1:] != truth[:-1]
    found = tv_cut(unary[None], np.where(edge, 0.1, 2.0), np.full((1, 40, 40), 0.5), 500)[0] > 0.5
    assert ((unary < 0) == truth).mean() < 0.7
    assert (found == truth).mean() > 0.97


def test_stack_and_start() -> None:
    """Images of a stack do not see each other, and the end does not depend on the beginning."""
    generator = np.random.default_rng(1)
    unary = generator.normal(size=(3, 15, 15))
    weight = generator.uniform(0.3, 1, size=(15, 15))
    together = tv_cut(unary, weight, np.zeros_like(unary), 2000)
    for number in range(3):
        alone = tv_cut(unary[number : number + 1], weight, np.ones((1, 15, 15)), 2000)
        assert np.array_equal(alone[0] > 0.5, together[number] > 0.5)
    assert together.min() >= 0
    assert together.max() <= 1
