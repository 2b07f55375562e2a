"""Choice of the views that a session visits, of their order and of their size."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.session_views import SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings

SHARE = 0.1
"""Share of the image's longer side to which the longer side of a small object's bounds is enlarged."""
MAX_MAGNIFICATION = 2.0
"""Greatest enlargement of images along each side: their cost grows with its square."""


def magnification(masks: Iterable[Bool[Tensor, "height width"]]) -> float:
    """Factor by which to enlarge images for an object, by its masks in the prompted views.

    Args:
        masks: Masks of the object, in images of any size.

    Returns:
        1 where the object is large enough in one of the masks, otherwise √2 or 2: in steps, so that objects of similar
        size share their renders.
    """
    share = 0.0
    for mask in masks:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        if len(rows):
            extent = max(int(indices.max() - indices.min()) + 1 for indices in (rows, columns))
            share = max(share, extent / max(mask.shape))
    if share == 0:
        return 1.0
    steps = math.ceil(2 * math.log2(max(SHARE / share, 1)) - 1e-6)
    return min(2 ** (steps / 2), MAX_MAGNIFICATION)


IN_VIEW = 0.7
"""Least cosine of the angle between a camera's axis and the direction to an object for it to count as in the image."""


def focus(camera_to_worlds: Float[Tensor, "num_views 3 4"]) -> Float[Tensor, "3"]:
    """Point that the cameras look at: the least-squares nearest point to all their axes.

    For parallel axes this point is undefined, and the mean position of the cameras takes its place.

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

    Greedy: the next view is the one that differs most from those chosen before, by its direction to the object and its
    distance from it, among the cameras that look at it (T. Gonzalez, "Clustering to minimize the maximum intercluster
    distance", 1985). Cameras that look elsewhere come last.

    Args:
        camera_to_worlds: Poses, in nerfstudio's frame.
        center: Centre of the object.
        start: Views chosen before; they are not counted.
        count: Number of further views to choose.

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
        # Cameras that look away rank below all others.
        view = int(torch.where(taken, -torch.inf, added - 100.0 * away).argmax())
        chosen.append(view)
        taken[view] = True
        added = torch.minimum(added, cost[view])
    return chosen


def view_order(
    camera_to_worlds: Float[Tensor, "num_views 3 4"], center: Float[Tensor, "3"], start: list[int]
) -> list[int]:
    """Order the views so that each overlaps a view before it as much as possible.

    Overlap is estimated at the object: by the angle between the directions in which two cameras see it, and by the
    ratio of their distances from it. Greedy, from the views in ``start`` on (Prim's algorithm).

    Args:
        camera_to_worlds: Poses, in nerfstudio's frame.
        center: Centre of the object.
        start: Views that have been visited already.

    Returns:
        All other views, in order.
    """
    cost, _ = _differences(camera_to_worlds, center)
    nearest = cost[start].amin(dim=0)
    nearest[start] = torch.inf
    order: list[int] = []
    done: Bool[Tensor, " num_views"] = torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
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
    """Pairwise differences of views of an object, by angle and by ratio of distances; and their directions to it."""
    offset = center.to(camera_to_worlds) - camera_to_worlds[:, :, 3]
    distance = offset.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    direction = offset / distance
    angle = torch.arccos((direction @ direction.T).clamp(-1, 1))
    return angle + (distance.log() - distance.log().T).abs(), direction


class Route:
    """Choice of the training views that a session visits beside the prompted ones.

    Args:
        views: All views of the session.
        settings: Settings for the number of views and their order.
    """

    def __init__(self, views: SessionViews, settings: SessionSettings) -> None:
        self._views = views
        self._settings = settings
        self._chosen: tuple[tuple[ViewKey, ...], set[int]] | None = None
        """Prompted views, and the views chosen beside them."""

    def count(self, prompted: Collection[ViewKey]) -> int:
        """Number of views visited beside the prompted ones."""
        num_others = len(self._views.training) - len(_training(prompted))
        count = self._settings.num_views
        return num_others if count is None else min(count, num_others)

    def of(self, prompted: Collection[ViewKey], center: Float[Tensor, "3"]) -> list[int]:
        """The views to visit, in order.

        Args:
            prompted: The views that the user has prompted.
            center: Approximate centre of the object.
        """
        order, count = self._all(prompted, center), self._settings.num_views
        if count is None:
            return order
        key = tuple(prompted)
        if self._chosen is None or self._chosen[0] != key:
            # Chosen once for all passes, because each view costs a render.
            poses = self._views.training.camera_to_worlds
            self._chosen = (key, set(covering_views(poses, center, _training(prompted), count)))
        return [view for view in order if view in self._chosen[1]]

    def _all(self, prompted: Collection[ViewKey], center: Float[Tensor, "3"]) -> list[int]:
        if self._settings.view_order == "file":
            return [view for view in range(len(self._views.training)) if view not in prompted]
        poses = self._views.training.camera_to_worlds
        free_poses = [self._views.pose(view) for view in prompted if isinstance(view, str)]
        start = [*_training(prompted), *range(len(poses), len(poses) + len(free_poses))]
        return view_order(torch.cat([poses, torch.stack(free_poses)]) if free_poses else poses, center, start)


def _training(views: Collection[ViewKey]) -> list[int]:
    """The training views among some views."""
    return [view for view in views if isinstance(view, int)]
