"""Edges lie where surfaces end or meet; codes tell colours and distances apart."""

from __future__ import annotations

import numpy as np
import pytest

from sa3d_nerfstudio.segmenters.grabcut.image_cues import Codes, depth_edges, inverse_depth, see

Y, X = np.indices((60, 80)).astype(np.float32)
DISC = (X - 40) ** 2 + (Y - 30) ** 2 < 15**2


def colored() -> np.ndarray:
    return np.where(DISC[..., None], np.array([0.8, 0.2, 0.2]), np.array([0.3, 0.4, 0.5]))


def near_rim(reach: float) -> np.ndarray:
    return np.abs(np.hypot(X - 40, Y - 30) - 15) < reach


def test_color_edges_lie_on_the_rim() -> None:
    edges = see(colored(), None).edges
    assert edges[near_rim(1)].min() > 0.4
    assert edges[~near_rim(4)].max() < 0.05


def test_planes_have_no_depth_edges_however_steep() -> None:
    """Inverse depth is linear over a plane; noise-free, nothing is left but rounding."""
    for inverse in (0.2 + 0.01 * Y, 0.5 - 0.004 * X + 0.003 * Y, np.full_like(X, 0.1)):
        assert depth_edges(inverse)[4:-4, 4:-4].max() < 0.01


def test_jumps_are_depth_edges() -> None:
    edges = depth_edges(np.where(DISC, 0.5, 0.4).astype(np.float32))
    assert (edges[near_rim(3)].reshape(-1) > 0.5).mean() > 0.3
    assert edges[~near_rim(6)].max() < 0.05


def test_concave_creases_are_edges_and_convex_ones_are_not() -> None:
    """A floor that meets a wall, seen from the room, against the edge of a box, seen from outside."""
    bend = np.abs(X - 40)
    concave, convex = depth_edges(0.3 + 0.01 * bend), depth_edges(0.8 - 0.01 * bend)
    assert concave[30, 38:43].max() > 0.2
    assert convex[5:-5, 30:50].max() < 0.01


def test_codes_tell_colors_and_depths_apart() -> None:
    depth = np.where(DISC, 1.0, 1.5).astype(np.float32)
    cues = see(colored(), depth)
    assert cues.shape == (60, 80)
    for codes in cues.codes:
        own, other = (codes.histogram(part.astype(float)) for part in (DISC, ~DISC))
        assert own.sum() == pytest.approx(1)
        assert np.minimum(own, other).sum() < 0.1
        rest = codes.histogram((~DISC & (X < 20)).astype(float))
        assert np.minimum(rest, other).sum() > 0.9
    assert len(see(colored(), None).codes) == 1


def test_kin_codes_share() -> None:
    codes = Codes(np.array([[0, 1], [2, 2]]), np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]))
    assert codes.histogram(np.array([[1.0, 0], [0, 0]])) == pytest.approx([2 / 3, 1 / 3, 0])
    assert codes.histogram(np.zeros((2, 2))) == pytest.approx([0, 0, 0])


def test_what_has_no_depth_lies_behind() -> None:
    inverse = inverse_depth(np.array([[1.0, 2.0, np.inf, np.nan, 0.0, -1.0]]))
    assert inverse[0, :2] == pytest.approx([1, 0.5])
    assert (inverse[0, 2:] < 0.5).all()
    assert (inverse > 0).all()
    assert np.isfinite(inverse_depth(np.full((2, 2), np.nan))).all()
