"""Which views a session visits, in which order, and how large."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.segmentation.session_views import SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings

SHARE = 0.1
"""Of the image's longer side, what the longer side of a small object's bounds is brought to."""
MOST = 2.0
"""Images are made larger by this factor at most: they cost its square."""


def magnification(masks: Iterable[Bool[Tensor, "height width"]]) -> float:
    """How much larger than the usual ones images should be for an object that the prompted views show.

    Args:
        masks: Of the object, in images of any size.

    Returns:
        1 where it is large enough in one of them, else √2 or 2: steps, so that objects of about one size share their
        renders.
    """
    share = 0.0
    for mask in masks:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        if len(rows):
            extent = max(int(part.max() - part.min()) + 1 for part in (rows, columns))
            share = max(share, extent / max(mask.shape))
    if share == 0:
        return 1.0
    steps = math.ceil(2 * math.log2(max(SHARE / share, 1)) - 1e-6)
    return min(2 ** (steps / 2), MOST)


IN_VIEW = 0.7
"""Cosine of the angle to a camera's axis up to which an object is taken to be in its image."""


def focus(camera_to_worlds: Float[Tensor, "num_views 3 4"]) -> Float[Tensor, "3"]:
    """The point that cameras look at: the nearest to all their axes, in the sense of least squares.

    Where the axes are parallel there is none, and the middle of the cameras is as good as any.

    Args:
        camera_to_worlds: Poses, in nerfstudio's frame.
    """
    position, axis = camera_to_worlds[:, :, 3], camera_to_worlds[:, :, 2]
    across = torch.eye(3).to(axis) - axis[:, :, None] * axis[:, None, :]
    normal = across.sum(0)
    if torch.linalg.eigvalsh(normal)[0] < 1e-3 * len(axis):
        return position.mean(0)
    return torch.linalg.solve(normal, (across @ position[:, :, None]).sum(0))[:, 0]


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


class Route:
    """Which training views a session visits beside the prompted ones.

    Args:
        views: All views of the session.
        settings: How many of them, and in which order.
    """

    def __init__(self, views: SessionViews, settings: SessionSettings) -> None:
        self._views = views
        self._settings = settings
        self._chosen: tuple[tuple[ViewKey, ...], set[int]] | None = None
        """Prompted views, and what was chosen beside them."""

    def count(self, prompted: Collection[ViewKey]) -> int:
        """How many views are visited beside the prompted ones."""
        others = len(self._views.training) - len(_training(prompted))
        count = self._settings.num_views
        return others if count is None else min(count, others)

    def of(self, prompted: Collection[ViewKey], center: Float[Tensor, "3"]) -> list[int]:
        """The views to visit, in order.

        Args:
            prompted: The views that the user has prompted.
            center: About where the object is.
        """
        order, count = self._all(prompted, center), self._settings.num_views
        if count is None:
            return order
        key = tuple(prompted)
        if self._chosen is None or self._chosen[0] != key:
            # Once for all passes: each view costs a render.
            poses = self._views.training.camera_to_worlds
            self._chosen = (key, set(covering_views(poses, center, _training(prompted), count)))
        return [view for view in order if view in self._chosen[1]]

    def _all(self, prompted: Collection[ViewKey], center: Float[Tensor, "3"]) -> list[int]:
        if self._settings.view_order == "file":
            return [view for view in range(len(self._views.training)) if view not in prompted]
        poses = self._views.training.camera_to_worlds
        free = [self._views.pose(view) for view in prompted if isinstance(view, str)]
        start = [*_training(prompted), *range(len(poses), len(poses) + len(free))]
        return view_order(torch.cat([poses, torch.stack(free)]) if free else poses, center, start)


def _training(views: Collection[ViewKey]) -> list[int]:
    """Those that are training views."""
    return [view for view in views if isinstance(view, int)]
