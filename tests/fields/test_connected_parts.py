"""Connected parts of a region, by the implementations for CPU and GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from sa3d_nerfstudio.fields.connected_parts import (
    LINK,
    SPACING_NEIGHBOR,
    label_parts,
    label_parts_on_device,
    linked_parts,
)


def serpentine(side: int) -> Tensor:
    """Region of one part that winds through a cube, as long as a part can be."""
    region = torch.zeros(side, side, side, dtype=torch.bool)
    region[::2, ::2] = True
    for z in range(0, side, 2):
        for number, y in enumerate(range(1, side - 1, 2)):
            region[z, y, -1 if number % 2 == 0 else 0] = True
        if z + 1 < side - 1:
            region[z + 1, 0 if (z // 2) % 2 else side - 1 - (side - 1) % 2, 0] = True
    return region


def assert_same_parts(region: Tensor) -> None:
    expected, count = label_parts(region.numpy())
    labels = label_parts_on_device(region)
    pairs = np.unique(np.stack([expected[region], labels.numpy()[region]]), axis=1)
    assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1] == count


@pytest.mark.parametrize("share", [0.02, 0.05, 0.08, 0.1, 0.15, 0.5])
def test_parts_are_those_that_scipy_finds(share: float) -> None:
    for seed, shape in enumerate([(9, 9, 9), (30, 20, 10), (65, 65, 65)]):
        assert_same_parts(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share)


def test_a_long_thin_part_is_one() -> None:
    assert_same_parts(serpentine(33))


def test_nothing_and_everything() -> None:
    assert_same_parts(torch.ones(7, 7, 7, dtype=torch.bool))
    assert torch.equal(label_parts_on_device(torch.zeros(2, 2, 2, dtype=torch.bool)).reshape(-1), torch.arange(8))


def test_points_are_linked_as_near_as_neighbours_usually_lie() -> None:
    chance = np.random.default_rng(0)
    sheet = np.stack([*(chance.uniform(0, 1, (2, 900))), np.zeros(900)], axis=1)
    # Each point is a twentieth of a side from the sheet or the point before: neighbours lie half as far apart.
    stem = np.stack([np.full(10, 0.5), np.full(10, 0.5), 0.05 * np.arange(1, 11)], axis=1)
    dense = [0.2, 0.2, 0.04] + 1e-4 * chance.normal(size=(200, 3))
    apart = [0.5, 0.5, 2.0] + 0.02 * chance.normal(size=(5, 3))
    points = np.concatenate([sheet, stem, dense, apart])
    for scale in (1e-3, 1.0, 1e3):
        parts = linked_parts(scale * points + 7 * scale)
        assert len(np.unique(parts[:-5])) == 1 and len(np.unique(parts[-5:])) == 1
        assert parts.max() == 1


@pytest.mark.parametrize("num", [0, 1, 4, 5, 6])
def test_few_points_and_equal_ones_are_one_part(num: int) -> None:
    assert linked_parts(np.zeros((num, 3))).tolist() == [0] * num


@pytest.mark.parametrize("seed", range(8))
def test_points_are_linked_by_their_distances_alone(seed: int) -> None:
    """Blobs of many sizes, on a line or all around: no part has a gap wider than a link, nor ends within one."""
    chance = np.random.default_rng(seed)
    centers = chance.uniform(0, 8, (12, 3)) * ([1, 1, 1] if seed % 2 else [1, 0.01, 0.01])
    sizes = chance.integers(1, 400, 12)
    points = np.repeat(centers, sizes, axis=0) + 0.3 * chance.normal(size=(sizes.sum(), 3))
    usual = np.median(KDTree(points).query(points, SPACING_NEIGHBOR + 1)[0][:, SPACING_NEIGHBOR])
    parts = linked_parts(points)

    def apart(share: float) -> np.ndarray:
        pairs = KDTree(points).query_pairs(share * LINK * usual, output_type="ndarray")
        links = coo_array((np.ones(len(pairs)), tuple(pairs.T)), shape=(len(points), len(points)))
        return connected_components(links, directed=False)[1]

    # Points of one small box, half a usual spacing wide, stand for each other.
    for finer, coarser in ((apart(0.75), parts), (parts, apart(1.25))):
        assert len(np.unique(np.stack([finer, coarser]), axis=1).T) == finer.max() + 1
