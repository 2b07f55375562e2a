"""Which views to segment in, if not in all: those that add most; and in which order."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
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
    cost, direction = _differences(camera_to_worlds, center)
    away = (direction * -camera_to_worlds[:, :, 2]).sum(-1) < IN_VIEW
    taken = torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
    taken[start] = True
    added = cost[start].amin(0) if start else torch.ones_like(cost[0])
    chosen: list[int] = []
    while len(chosen) < count and not bool(taken.all()):
        # Views that look away add less than any that does not.
        view = int(torch.where(taken, -torch.inf, added - 100.0 * away).argmax())
        chosen.append(view)
        taken[view] = True
        added = torch.minimum(added, cost[view])
    return chosen


def view_order(
    camera_to_worlds: Float[Tensor, "num_views 3 4"], center: Float[Tensor, "3"], start: list[int]
) -> list[int]:
    """Visit the views so that each overlaps one that was visited before as much as possible.

    Overlap is judged from the object: by the angle between the directions in which two cameras see it, and by how much
    nearer one is than the other. Greedy, from the prompted views on (Prim's algorithm).

    Args:
        camera_to_worlds: Poses, in nerfstudio's frame.
        center: Of the object.
        start: Views that have been visited already.

    Returns:
        The other views, in order.
    """
    cost, _ = _differences(camera_to_worlds, center)
    nearest = cost[start].amin(dim=0)
    nearest[start] = torch.inf
    order: list[int] = []
    done: Int[Tensor, " num_views"] = torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
    done[start] = True
    while not bool(done.all()):
        view = int(torch.where(done, torch.inf, nearest).argmin())
        order.append(view)
        done[view] = True
        nearest = torch.minimum(nearest, cost[view])
    return order


def _differences(
    camera_to_worlds: Float[Tensor, "num_views 3 4"], center: Float[Tensor, "3"]
) -> tuple[Float[Tensor, "num_views num_views"], Float[Tensor, "num_views 3"]]:
    """How differently two views each see an object, by angle and by distance; and the directions in which they do."""
    offset = center.to(camera_to_worlds) - camera_to_worlds[:, :, 3]
    distance = offset.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    direction = offset / distance
    angle = torch.arccos((direction @ direction.T).clamp(-1, 1))
    return angle + (distance.log() - distance.log().T).abs(), direction
