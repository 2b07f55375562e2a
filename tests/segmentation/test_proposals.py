"""Proposals that objects explain, and the choice of the next proposal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sa3d_nerfstudio.segmentation.proposals import Proposal, ProposalPool
from sa3d_nerfstudio.segmenters.base import Candidates


def mask(left: int, right: int) -> Tensor:
    """Mask of the columns [left, right) of an image of 10 x 20."""
    image = torch.zeros(10, 20, dtype=torch.bool)
    image[:, left:right] = True
    return image


def rendered(*masks: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    return {view: (image.float(), torch.ones_like(image)) for view, image in enumerate(masks)}


@pytest.fixture
def pool() -> ProposalPool:
    pool = ProposalPool(min_share=0.02)
    pool.add(0, Candidates(torch.stack([mask(0, 4), mask(4, 8), mask(0, 8), mask(15, 20)]), torch.ones(4)))
    pool.add(1, Candidates(torch.stack([mask(0, 5), mask(5, 10)]), torch.ones(2)))
    pool.add(2, Candidates(torch.zeros(0, 10, 20, dtype=torch.bool), torch.zeros(0)))
    return pool


def always(proposal: Proposal) -> float:
    return 1.0


def test_the_most_that_is_new_comes_first(pool: ProposalPool):
    first = pool.next(always)
    assert first is not None and first.key == (0, 2)
    assert torch.equal(first.mask, mask(0, 8))


def test_what_other_views_contradict_comes_last_or_not_at_all(pool: ProposalPool):
    first = pool.next(lambda proposal: 0.6 if proposal.key == (0, 2) else 0.9)
    assert first is not None and first.key == (0, 3)
    pool.next(lambda proposal: 0.3 if proposal.key == (0, 2) else 0.9)
    untried = [item.key for item in pool.proposals if not item.tried]
    assert len(untried) == 6
    assert pool.next(lambda proposal: 0.1) is not None  # support is computed once for each proposal


def test_an_object_explains_the_proposal_that_fits_it_best(pool: ProposalPool):
    area = pool.explain(rendered(mask(0, 4), mask(0, 4), mask(0, 20)))
    assert area == 40 + 40 + 200
    assert [item.key for item in pool.proposals if item.explained] == [(0, 0), (1, 0)]
    whole = pool.proposals[2]
    assert (whole.new, whole.is_new) == (40, True)
    assert pool.explained == pytest.approx(80 / 230)


def test_support_is_the_mean_over_the_views_that_show_it(pool: ProposalPool):
    assert pool.support_of(rendered(mask(0, 4), mask(0, 5))) == 1.0
    assert pool.support_of(rendered(mask(0, 4), mask(0, 0))) == 1.0
    assert pool.support_of(rendered(mask(0, 4), mask(0, 5)), but=0) == 1.0
    assert pool.support_of(rendered(mask(0, 4), mask(10, 15))) == 0.5
    assert pool.support_of(rendered(mask(0, 0), mask(0, 0))) is None


def test_views_overlook_what_is_small_and_like_nothing_that_they_propose():
    """In images of 32 x 32, the grid points are two pixels apart."""

    def dot(*places: tuple[int, int]) -> Tensor:
        image = torch.zeros(32, 32, dtype=torch.bool)
        image[tuple(zip(*places, strict=True))] = True
        return image

    speck, large = dot((3, 3), (3, 4), (4, 3)), torch.ones(32, 32, dtype=torch.bool)
    pool = ProposalPool(min_share=0.001)
    for view, masks in enumerate([[speck, large], [large], [speck], []]):
        pool.add(view, Candidates(torch.stack(masks) if masks else speck.new_zeros(0, 32, 32), torch.ones(len(masks))))
    small, whole = pool.proposals[:2]
    assert pool.overlooked(small, rendered(speck, speck, speck, speck)) == [1, 3]
    assert pool.overlooked(small, rendered(speck, large, speck, dot((0, 0)) & False)) == []
    assert pool.overlooked(whole, rendered(large, speck, speck, speck)) == []
    before = pool.explained
    pool.add(1, Candidates(speck[None], torch.ones(1)), as_witness=True)
    assert pool.overlooked(small, rendered(speck, speck, speck, speck)) == [3]
    assert pool.support_of(rendered(speck, speck), but=0) == 1.0
    assert pool.proposals[-1].key == (1, 1) and pool.proposals[-1].tried
    assert pool.explained == before


def test_confidence_prefers_the_level_whose_masks_the_segmenter_scores_higher():
    pool = ProposalPool(min_share=0.02)
    masks = torch.stack([mask(0, 4), mask(4, 8), mask(0, 8)])
    pool.add(0, Candidates(masks, torch.tensor([0.9, 0.9, 0.7])))
    pool.add(1, Candidates(masks, torch.tensor([0.9, 0.9, 0.7])))
    left, right, both = (pool.confidence_of(rendered(item, item)) for item in (mask(0, 4), mask(4, 8), mask(0, 8)))
    assert left == right == pytest.approx(0.9**4)
    assert both == pytest.approx(0.7**4)
    # The tree is cut by these sums over pixels, which would be equal without scores.
    assert 40 * left + 40 * right > 80 * both
    assert pool.confidence_of(rendered(mask(0, 0), mask(0, 0))) == 0.0
    assert pool.confidence_of(rendered(mask(10, 15), mask(10, 15))) == 0.0


def test_what_has_been_tried_is_not_tried_again(pool: ProposalPool):
    pool.strike([(0, 2), (0, 3), (9, 9)])
    first = pool.next(always)
    assert first is not None and first.key == (1, 0)


def test_specks_are_left_out():
    pool = ProposalPool(min_share=0.1)
    pool.add(0, Candidates(torch.stack([mask(0, 1), mask(3, 6)]), torch.ones(2)))
    assert [item.index for item in pool.proposals] == [1]
