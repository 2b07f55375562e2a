"""Gaussians: their colours turn with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gsplat.cuda import _torch_impl as twins
from scipy.spatial.transform import Rotation

from sa3d_nerfstudio.splat_files.gaussians import sh_band
from tests.splat_files.test_ply import some


def test_harmonics_are_those_of_gsplat():
    directions = np.random.default_rng(0).normal(size=(50, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    ours = np.concatenate([sh_band(degree, directions) for degree in range(5)], axis=1)
    theirs = twins._eval_sh_bases_fast(25, torch.from_numpy(directions)).numpy()
    assert np.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("degree", [0, 1, 3, 4])
def test_what_is_turned_looks_the_same_from_turned_directions(degree: int):
    gaussians, turn = some(20, degree), Rotation.from_euler("xyz", [0.4, -1.1, 2.0])
    moved = gaussians.moved(turn.as_matrix(), np.array([1.0, 2.0, 3.0]))
    direction = np.array([0.48, -0.6, 0.64])
    turned = turn.apply(direction)

    def color(values: np.ndarray, way: np.ndarray) -> np.ndarray:
        bases = np.concatenate(
            [sh_band(band, way[None]) for band in range(1, degree + 1)] or [np.zeros((1, 0))], axis=1
        )
        return np.einsum("b,nbc->nc", bases[0], values)

    assert np.allclose(color(gaussians.features_rest, direction), color(moved.features_rest, turned), atol=1e-4)
    assert np.allclose(moved.means, turn.apply(gaussians.means - [1, 2, 3]), atol=1e-5)
    assert np.allclose(moved.axes, turn.as_matrix() @ gaussians.axes, atol=1e-5)
    assert moved.sh_degree == degree
    back = moved.moved(turn.inv().as_matrix(), turn.apply([-1.0, -2.0, -3.0]))
    assert np.allclose(back.features_rest, gaussians.features_rest, atol=1e-4)
    assert np.allclose(back.means, gaussians.means, atol=1e-4)
