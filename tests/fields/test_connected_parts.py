"""Connected parts of a region, on a CPU and as a GPU finds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.fields.connected_parts import label_parts, part_of_each


def serpentine(side: int) -> Tensor:
    """A region of one part that winds through a cube: as long as a part can be."""
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
    found = part_of_each(region)
    pairs = np.unique(np.stack([expected[region], found.numpy()[region]]), axis=1)
    assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1] == count


@pytest.mark.parametrize("share", [0.02, 0.05, 0.08, 0.1, 0.15, 0.5])
def test_parts_are_those_that_scipy_finds(share: float) -> None:
    for seed, shape in enumerate([(9, 9, 9), (30, 20, 10), (65, 65, 65)]):
        assert_same_parts(torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share)


def test_a_long_thin_part_is_one() -> None:
    assert_same_parts(serpentine(33))


def test_nothing_and_everything() -> None:
    assert_same_parts(torch.ones(7, 7, 7, dtype=torch.bool))
    assert torch.equal(part_of_each(torch.zeros(2, 2, 2, dtype=torch.bool)).reshape(-1), torch.arange(8))
