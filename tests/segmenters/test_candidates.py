"""Candidates: which of them is meant, and on which pixels they lie."""

from __future__ import annotations

import pytest
import torch

from sa3d_nerfstudio.segmenters.base import Candidates


def discs(side: int, radii: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Signed distances to the outlines of discs in a square image, inside positive; and the masks."""
    place = (torch.arange(side) + 0.5) / side - 0.5
    distance = (place[:, None] ** 2 + place[None] ** 2).sqrt()
    logits = torch.stack([radius - distance for radius in radii])
    return logits, logits > 0


def test_sizes_are_told_by_area_and_the_single_mask_is_none_of_them():
    _, masks = discs(64, (0.3, 0.1, 0.2, 0.4))
    answer = Candidates(masks, torch.tensor([0.1, 0.2, 0.9, 0.3]), single=3)
    assert [answer.of_size(name) for name in ("small", "medium", "large", "auto")] == [1, 2, 0, 3]
    assert Candidates(masks, answer.scores).of_size("auto") == 2
    for name in ("small", "medium", "large", "auto"):
        assert Candidates(masks[:1], answer.scores[:1], single=0).of_size(name) == 0


def test_a_mask_is_found_again_at_another_size():
    _, small = discs(40, (0.1, 0.2, 0.35))
    _, large = discs(96, (0.35, 0.2, 0.1))
    answer = Candidates(large, torch.ones(3))
    assert [answer.most_like(mask) for mask in small] == [2, 1, 0]


@pytest.mark.parametrize("has_logits", [True, False])
def test_large_answers_are_averaged_onto_small_pixels(has_logits: bool):
    logits, masks = discs(320, (0.2, 0.33))
    answer = Candidates(masks, torch.ones(2), logits if has_logits else None, single=1).at(40, 40)
    assert answer.masks.shape == (2, 40, 40)
    assert answer.single == 1
    for radius, mask in zip((0.2, 0.33), answer.masks, strict=True):
        area = float(mask.float().mean())
        assert area == pytest.approx(torch.pi * radius**2, rel=0.05)


def test_small_answers_are_interpolated_by_their_logits():
    logits, masks = discs(40, (0.2,))
    exact, blocks = (Candidates(masks, torch.ones(1), each).at(320, 320).masks for each in (logits, None))
    _, expected = discs(320, (0.2,))
    wrong = [(found ^ expected).float().mean() for found in (exact, blocks)]
    assert wrong[0] < 0.002
    assert wrong[0] < wrong[1]
