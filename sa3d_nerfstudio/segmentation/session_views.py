"""What a session asks of the views that it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.traces.base import ViewTrace


class Views(Protocol):
    """The views that a session looks at."""

    def __len__(self) -> int: ...

    @property
    def camera_to_worlds(self) -> Float[Tensor, "num_views 3 4"]:
        """Poses in nerfstudio's frame."""
        ...

    def name(self, view: int) -> str:
        """File name of the view's image."""
        ...

    def trace(self, view: int) -> ViewTrace:
        """The view's trace; rendered once."""
        ...

    def picture(self, view: int) -> Float[Tensor, "height width 3"]:
        """What segmenters see of the view, on the pixels of its trace."""
        ...

    def preload(self, view: int, picture: bool) -> None:
        """Bring into memory what lies on disk of a view, its picture included or not; called on another thread."""
        ...


@dataclass
class FreeView:
    """A view that is none of the training views, such as the one in the viewer, to be prompted like one of them."""

    trace: ViewTrace
    """Its trace."""
    camera_to_world: Float[Tensor, "3 4"]
    """Pose in nerfstudio's frame."""
