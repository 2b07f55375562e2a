"""Extremes over neighbourhoods: those of square windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sa3d_nerfstudio.segmentation.neighborhoods import dilated, highest_nearby, lowest_nearby


@pytest.mark.parametrize("reach", [1, 2, 5])
def test_neighbourhoods_are_square(reach: int):
    values = torch.randn(13, 17, generator=torch.Generator().manual_seed(reach))
    window = 2 * reach + 1
    expected = F.max_pool2d(values[None], window, stride=1, padding=reach)[0]
    assert torch.equal(highest_nearby(values, reach), expected)
    assert torch.equal(lowest_nearby(-values, reach), -expected)
    mask = values > 1.5
    assert torch.equal(dilated(mask, reach), F.max_pool2d(mask[None].float(), window, stride=1, padding=reach)[0] > 0)
