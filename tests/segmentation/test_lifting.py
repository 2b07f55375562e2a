"""Change of masks and field by a pass."""

from __future__ import annotations

import pytest
import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, changed_pixels
from tests.analytic import BallViews


def test_changed_pixels_are_counted_over_all_views():
    mask = torch.tensor([True, False, True])
    assert changed_pixels({0: mask, "free": mask}, {0: mask.clone(), "free": mask}) == (0, 4)
    assert changed_pixels({0: mask}, {0: ~mask}) == (3, 3)
    assert changed_pixels({}, {}) == (0, 0)


def test_a_view_that_is_missing_has_an_empty_mask():
    mask = torch.tensor([True, False, True, False])
    assert changed_pixels({0: mask, 1: mask}, {0: mask}) == (2, 4)
    assert changed_pixels({0: mask}, {0: mask, 1: mask}) == (2, 4)
    assert changed_pixels({0: mask}, {1: mask}) == (4, 4)
    assert changed_pixels({0: torch.zeros(3, dtype=torch.bool)}, {}) == (0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_no_field_changes_by_more_than_the_masks_that_make_it(seed: int):
    views = BallViews()
    generator = torch.Generator().manual_seed(seed)
    first, second = MaskGrid(24), MaskGrid(24)
    masks: list[dict[int | str, torch.Tensor]] = [{}, {}]
    for view in range(4):
        mask = (views.ids(view) == 1).reshape(-1)
        masks[0][view] = mask
        masks[1][view] = mask ^ (torch.rand(len(mask), generator=generator) < 0.02)
        for field, masks_of_field in ((first, masks[0]), (second, masks[1])):
            EvidenceLifting(field).add(views.trace(view), masks_of_field[view])
    changed, total = changed_pixels(masks[0], masks[1])
    assert 0 < float((first.hit - second.hit).abs().sum()) <= changed * (1 + 1e-5)
    assert 0 < changed < total
