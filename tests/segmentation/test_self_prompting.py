"""Where a rendered mask prompts, whether a mask agrees with it, and in which order views are visited."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sa3d_nerfstudio.segmentation.self_prompting import agreement, self_prompt
from sa3d_nerfstudio.segmentation.view_selection import view_order

EVERYWHERE = torch.ones(20, 30, dtype=torch.bool)


def two_blobs() -> torch.Tensor:
    mask = torch.zeros(20, 30)
    mask[5:10, 3:9], mask[5:10, 20:26] = 0.9, 0.8
    mask[7, 5] = 1.0
    return mask


def test_the_first_point_is_the_most_certain():
    prompt = self_prompt(two_blobs(), EVERYWHERE, torch.ones(20, 30), num_points=1)
    assert prompt is not None
    assert prompt.positive.tolist() == [[5, 7]]


def test_further_points_stay_near_in_depth():
    depth = torch.ones(20, 30)
    depth[:, :15] = 5.0
    mask = two_blobs()
    mask[7, 22] = 0.95
    near = self_prompt(mask, EVERYWHERE, torch.ones(20, 30), num_points=2)
    far = self_prompt(mask, EVERYWHERE, depth, num_points=2)
    assert near is not None and far is not None
    # 0.45 - d 0.5 at the other blob against 0.4 - d 0.5 next door: only the depth tells them apart.
    assert far.positive[1, 0] < 15
    # By hand: the chosen point maximises M - 0.5 - d(p, q) (M(q) - 0.5) over what is left.
    score = mask - 0.5
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    distance = (((y - 7) / 20) ** 2 + ((x - 5) / 30) ** 2).sqrt()
    objective = score - distance * 0.5
    objective[5:10, 3:8] = -1
    objective[mask <= 0.5] = -1
    best = int(objective.argmax())
    assert near.positive[1].tolist() == [best % 30, best // 30]


def test_nothing_to_prompt_from():
    assert self_prompt(torch.full((20, 30), 0.4), EVERYWHERE, torch.ones(20, 30)) is None
    assert self_prompt(two_blobs(), ~EVERYWHERE, torch.ones(20, 30)) is None


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), number=st.integers(1, 8))
def test_points_lie_on_the_mask_and_apart(seed: int, number: int):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(20, 30, generator=generator)
    known = torch.rand(20, 30, generator=generator) > 0.3
    prompt = self_prompt(mask, known, torch.rand(20, 30, generator=generator), number)
    assert prompt is not None
    points = prompt.positive.long()
    assert 1 <= len(points) <= number
    assert (mask[points[:, 1], points[:, 0]] > 0.5).all()
    assert known[points[:, 1], points[:, 0]].all()
    apart = (points[:, None] - points[None]).abs().amax(-1) + 100 * torch.eye(len(points), dtype=torch.long)
    assert apart.min() > 2
    assert prompt.prior is not None
    assert torch.equal(prompt.prior.isnan(), ~known)


def test_agreement_ignores_what_is_unknown():
    mask, rendered = torch.zeros(4, 4, dtype=torch.bool), torch.zeros(4, 4)
    mask[:, :2] = True
    rendered[0, :2] = 1.0
    known = torch.zeros(4, 4, dtype=torch.bool)
    known[0] = True
    assert agreement(mask, rendered, known) == 1.0
    assert agreement(mask, rendered, torch.ones(4, 4, dtype=torch.bool)) == pytest.approx(0.25)
    assert agreement(mask, rendered, torch.zeros(4, 4, dtype=torch.bool)) == 0.0


def ring(angles: list[float]) -> torch.Tensor:
    poses = torch.eye(4)[:3].repeat(len(angles), 1, 1)
    for index, angle in enumerate(angles):
        poses[index, :, 3] = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    return poses


def test_views_are_visited_from_near_to_far():
    order = view_order(ring([0.0, 3.0, 0.4, 0.2, -0.5]), torch.zeros(3), [0])
    assert order == [3, 2, 4, 1]


def test_two_prompted_views_grow_side_by_side():
    order = view_order(ring([0.0, 0.5, 2.6, 3.0, 0.9]), torch.zeros(3), [0, 3])
    assert order == [2, 4, 1] or order == [2, 1, 4]
