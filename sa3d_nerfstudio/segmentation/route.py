"""The way of a session through its views: which of them, and in which order."""

from __future__ import annotations

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.session_views import SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.view_choice import covering_views, view_order


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
