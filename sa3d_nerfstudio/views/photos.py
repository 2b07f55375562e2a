"""Photos of the training views, as segmenters see them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from jaxtyping import Float
from torch import Tensor

MOST_AHEAD = 4
"""Photos that are held in memory after having been read ahead; the oldest are dropped first."""


class Photos:
    """The photos that the views were trained on.

    Args:
        read: Returns the photo of a view at any size, [rows, columns, 3] in [0, 1]; raises ``SA3DError`` where it
            cannot be read.
        missing: Views without a photo, which segmenters see the renders of.
    """

    def __init__(
        self, read: Callable[[int], Float[Tensor, "rows columns 3"]], missing: Collection[int] = frozenset()
    ) -> None:
        self._read = read
        self._missing = missing
        self._ahead: dict[int, Tensor] = {}

    def has(self, view: int) -> bool:
        """Whether there is a photo of a view."""
        return view not in self._missing

    def preload(self, view: int) -> None:
        """Read the photo of a view ahead of its use; may be called on another thread.

        Raises:
            SA3DError: The photo cannot be read.
        """
        if view not in self._ahead:
            self._ahead[view] = self._read(view)
            for earlier in list(self._ahead)[:-MOST_AHEAD]:
                self._ahead.pop(earlier, None)

    def photo(self, view: int) -> Float[Tensor, "rows columns 3"]:
        """The photo of a view, which is no longer held afterwards.

        Raises:
            SA3DError: The photo cannot be read.
        """
        photo = self._ahead.pop(view, None)
        return self._read(view) if photo is None else photo


def on_pixels(
    photo: Float[Tensor, "rows columns 3"],
    camera_size: tuple[int, int],
    render_size: tuple[int, int],
    long_side: int,
    size: tuple[int, int] | None = None,
) -> Float[Tensor, "height width 3"]:
    """A photo, cut and resized to show what a render shows.

    Nerfstudio rounds sizes down when it scales a camera: the render then lacks a fraction of a pixel at the right and
    at the bottom, where the photo is cut before it is resized.

    Args:
        photo: The photo, of any size.
        camera_size: Height and width of the photo's camera.
        render_size: Height and width of the render.
        long_side: Longer side that was asked for when the render's camera was scaled.
        size: Height and width of the result; the render's by default.
    """
    size = render_size if size is None else size
    scale = min(1.0, long_side / max(camera_size))
    rows, columns = (
        min(round(rendered / scale / full * pixels), pixels)
        for rendered, full, pixels in zip(render_size, camera_size, photo.shape[:2], strict=True)
    )
    if (rows, columns) == size:
        return photo[:rows, :columns]
    cut = photo[:rows, :columns].permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(cut, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).clamp(0, 1)
