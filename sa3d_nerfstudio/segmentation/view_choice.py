"""Which views to segment in, if not in all: those that add most."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

IN_VIEW = 0.7
"""Cosine of the angle to a camera's axis up to which an object is taken to be in its image."""


def covering_views(
    camera_to_worlds: Float[Tensor, "num_views 3 4"], center: Float[Tensor, "3"], start: list[int], count: int
) -> list[int]:
    """Choose views all around an object.

    Greedy: the next view is the one that differs most from those chosen before, by the direction in which it sees the
    object and by how near it is, among the cameras that look at it (T. Gonzalez, "Clustering to minimize the maximum
    intercluster distance", 1985). Those that look elsewhere come last.

    Args:
        camera_to_worlds: Poses, in nerfstudio's frame.
        center: Of the object.
        start: Views that are there already; they do not count.
        count: How many more are wanted.

    Returns:
        At most ``count`` views, in the order in which they were chosen.
    """
    offset = center.to(camera_to_worlds) - camera_to_worlds[:, :, 3]
    distance = offset.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    direction = offset / distance
    away = (direction * -camera_to_worlds[:, :, 2]).sum(-1) < IN_VIEW
    cost = torch.arccos((direction @ direction.T).clamp(-1, 1)) + (distance.log() - distance.log().T).abs()
    taken = torch.zeros(len(cost), dtype=torch.bool)
    taken[start] = True
    added = cost[start].amin(0) if start else torch.ones(len(cost))
    chosen: list[int] = []
    while len(chosen) < count and not bool(taken.all()):
        # Views that look away add less than any that does not.
        view = int(torch.where(taken.to(added.device), -torch.inf, added - 100.0 * away).argmax())
        chosen.append(view)
        taken[view] = True
        added = torch.minimum(added, cost[view])
    return chosen
