"""Windows: rectangles of a view at one of its render sizes, and the bounds of masks in images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.scoped import scoped

TILE = 8
"""Pixels along each side of the tiles that windows consist of and that views are stored in."""
MARGIN = 0.2
"""Margin of a window on each side of the object, as a share of the object's longer side in the image."""
LEAST_MARGIN = 4
"""Smallest margin, in pixels of the window."""
MAX_AREA_RATIO = 2.0
"""A window that holds the object is kept until its area exceeds the needed one by more than this factor."""

Result = TypeVar("Result")


@dataclass
class Pixels:
    """Some of an image's pixels, as a new image."""

    indices: Int[Tensor, " num_pixels"]
    """Indices into the flattened image."""
    height: int
    """Height of the new image."""
    width: int
    """Width of the new image."""


@dataclass(frozen=True)
class Window:
    """A rectangle of a view's image at one size, its corners on the borders of tiles or of the image."""

    top: int
    left: int
    height: int
    width: int
    size: tuple[int, int]
    """Height and width of the whole image at this size."""
    long_side: int
    """Requested longer side of the image, which may be a pixel smaller, or smaller if the camera's image is."""
    scale: float
    """Pixels of this image per pixel of the camera's full image, along a side; relates the sizes of one view."""

    @classmethod
    def whole(cls, size: tuple[int, int], long_side: int, scale: float) -> Window:
        """The window that is the whole image."""
        return cls(0, 0, *size, size, long_side, scale)

    @property
    def is_whole(self) -> bool:
        """Whether this is the whole image."""
        return (self.height, self.width) == self.size

    @property
    def bottom(self) -> int:
        """First row below the window."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """First column to the right of the window."""
        return self.left + self.width

    @property
    def rows(self) -> slice:
        """Rows of the window in the whole image."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Columns of the window in the whole image."""
        return slice(self.left, self.right)

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """y0, x0, y1, x1 as shares of the whole image."""
        height, width = self.size
        return self.top / height, self.left / width, self.bottom / height, self.right / width

    @property
    def frame(self) -> Window:
        """The window that is the whole image of this size."""
        return Window.whole(self.size, self.long_side, self.scale)

    def pixels(self, device: torch.device | str = "cpu") -> Pixels:
        """Pixels of the window, row by row."""
        rows = torch.arange(self.top, self.bottom, device=device)
        columns = torch.arange(self.left, self.right, device=device)
        return Pixels((rows[:, None] * self.size[1] + columns).reshape(-1), self.height, self.width)

    def contains(self, other: Window) -> bool:
        """Whether another window of the same image lies within this one."""
        inside = self.top <= other.top and self.left <= other.left
        inside = inside and other.bottom <= self.bottom and other.right <= self.right
        return inside and self.long_side == other.long_side

    def joined(self, other: Window) -> Window:
        """The smallest window that holds this one and another one of the same image."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        height, width = max(self.bottom, other.bottom) - top, max(self.right, other.right) - left
        return replace(self, top=top, left=left, height=height, width=width)

    def around(
        self, box: tuple[float, float, float, float], scale: float, slack: float = 0.0, margin: float = MARGIN
    ) -> Window:
        """The window of this image around a box, with a margin.

        Args:
            box: y0, x0, y1, x1 in pixels of an image of the same view.
            scale: Scale of that image.
            slack: Possible error of the box, in pixels of that image.
            margin: Margin on each side, as a share of the longer side of the box.
        """
        factor = self.scale / scale
        y0, x0, y1, x1 = (side * factor for side in box)
        border = max(margin * max(y1 - y0, x1 - x0), LEAST_MARGIN, slack * factor)
        return self.snapped((y0 - border, x0 - border, y1 + border, x1 + border))

    def grown(self, touched: Sequence[bool]) -> Window:
        """This window, extended by half of its side wherever a mask leaves it; unchanged if none does.

        Args:
            touched: Whether a mask reaches each side; see :func:`touched_sides`.
        """
        y0, x0, y1, x1 = self.top, self.left, self.bottom, self.right
        step_y, step_x = max(self.height // 2, TILE), max(self.width // 2, TILE)
        box = (
            y0 - step_y * touched[0],
            x0 - step_x * touched[1],
            y1 + step_y * touched[2],
            x1 + step_x * touched[3],
        )
        return self.snapped(box) if any(touched) else self

    def snapped(self, box: tuple[float, float, float, float]) -> Window:
        """The smallest window of this image that holds a box (y0, x0, y1, x1), clipped to the image."""
        height, width = self.size
        top, left = (max(math.floor(side / TILE), 0) * TILE for side in box[:2])
        bottom = min(math.ceil(box[2] / TILE) * TILE, height)
        right = min(math.ceil(box[3] / TILE) * TILE, width)
        top, left = min(top, (height - 1) // TILE * TILE), min(left, (width - 1) // TILE * TILE)
        bottom, right = max(bottom, min(top + TILE, height)), max(right, min(left + TILE, width))
        return replace(self, top=top, left=left, height=bottom - top, width=right - left)

    def drawn_from(
        self, other: Window, images: Float[Tensor, "channels rows columns"], outside: float = 0.0
    ) -> Float[Tensor, "channels height width"]:
        """Resample images of another window of the same view, of any size, to this window's pixels.

        Each pixel averages the area that it covers, or interpolates where the other window's pixels are larger.

        Args:
            other: The other window.
            images: Images on the other window's pixels.
            outside: Value of the area that the other window does not cover.
        """
        factor = other.scale / self.scale
        down = _shares(self.top, self.height, other.top, other.height, factor)
        across = _shares(self.left, self.width, other.left, other.width, factor)
        down, across = (shares.to(images, non_blocking=True) for shares in (down, across))
        inside = down.sum(1)[:, None] * across.sum(1)
        return down @ images @ across.T + (1 - inside) * outside

    def still_fits(self, needed: Window) -> bool:
        """Whether this window can stand in for a needed one: it contains it, and is not much larger."""
        return self.contains(needed) and self.height * self.width <= MAX_AREA_RATIO * needed.height * needed.width

    def covers(self, other: Window, device: torch.device | str = "cpu") -> Bool[Tensor, "height width"]:
        """Which pixels of another window of the same view, of any size, have their centres in this one."""
        factor = self.scale / other.scale
        y = (torch.arange(other.top, other.bottom, device=device) + 0.5) * factor
        x = (torch.arange(other.left, other.right, device=device) + 0.5) * factor
        inside_y = (y >= self.top) & ((y < self.bottom) | (self.bottom == self.size[0]))
        inside_x = (x >= self.left) & ((x < self.right) | (self.right == self.size[1]))
        return inside_y[:, None] & inside_x

    def paste(
        self, image: Float[Tensor, "rows columns channels"], part: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "full_height full_width channels"]:
        """Paste this window's image into the whole image, which is resized to the window's scale.

        Args:
            image: The whole image of the view, at any size.
            part: The image of this window.
        """
        stack = image.permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(stack, self.size, mode="bilinear")[0].permute(1, 2, 0).clone()
        resized[self.rows, self.columns] = part
        return resized


def _shares(start: int, count: int, other_start: int, other_count: int, factor: float) -> Float[Tensor, "count others"]:
    """Weights with which pixels along one side read those of another image, which are ``1 / factor`` as large."""
    first = (start + torch.arange(count, dtype=torch.float64)) * factor - other_start
    pixel = torch.arange(other_count, dtype=torch.float64)
    if factor >= 1:
        overlap = torch.minimum((first + factor)[:, None], pixel + 1) - torch.maximum(first[:, None], pixel)
        return overlap.clamp(min=0) / factor
    # Interpolate between the centres of pixels; in the outer halves of the first and the last, take their values.
    centre = first + factor / 2
    weights = (1 - (centre.clamp(0.5, other_count - 0.5)[:, None] - pixel - 0.5).abs()).clamp(min=0)
    return weights * ((centre >= 0) & (centre <= other_count))[:, None]


def touched_sides(masks: Bool[Tensor, "num height width"]) -> Bool[Tensor, "num 4"]:
    """Whether each mask reaches the top, the left, the bottom and the right of its image."""
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, -1], columns[:, -1]], dim=-1)


RENDERED_WINDOW: ContextVar[Window | None] = ContextVar("rendered_window", default=None)
"""The window that the image being rendered is; None where it is a whole image."""

Box = tuple[int, int, int, int]
"""Bounds y0, x0, y1, x1 in pixels, upper ones exclusive."""


def bounds(mask: Bool[Tensor, "height width"]) -> Box | None:
    """Bounds of a mask; None if it is empty."""
    return all_bounds([mask])[0]


def all_bounds(masks: Sequence[Bool[Tensor, "height width"]]) -> list[Box | None]:
    """:func:`bounds` of masks of any sizes on one device, with a single wait of the host."""
    return boxes_of(sides_of(masks).cpu(), masks) if masks else []


def sides_of(masks: Sequence[Bool[Tensor, "height width"]]) -> Int[Tensor, "num 5"]:
    """Distances of each mask from its image's top, left, bottom and right, and whether it has pixels; on its device."""
    sides = []
    for mask in masks:
        rows, columns = mask.any(dim=1).to(torch.uint8), mask.any(dim=0).to(torch.uint8)
        ends = [rows.argmax(), columns.argmax(), rows.flip(0).argmax(), columns.flip(0).argmax(), rows.amax().long()]
        sides.append(torch.stack(ends))
    return torch.stack(sides)


def boxes_of(sides: Num[Tensor, "num 5"], masks: Sequence[Bool[Tensor, "height width"]]) -> list[Box | None]:
    """Bounds of masks from their :func:`sides_of`, copied to the host."""
    pairs = zip(masks, sides.long().tolist(), strict=True)
    return [
        (top, left, mask.shape[0] - bottom, mask.shape[1] - right) if has_pixels else None
        for mask, (top, left, bottom, right, has_pixels) in pairs
    ]


def render_window(camera: Cameras, window: Window, render: Callable[[Cameras], Result]) -> Result:
    """Render a part of a camera's image.

    Args:
        camera: One camera, at the size of the window's whole image.
        window: Part of its image.
        render: Called with the camera whose image is the window: only its principal point and its size differ. Where a
            render depends on the bounds of the whole image, it finds the window in :data:`RENDERED_WINDOW`.
    """
    crop = copy.deepcopy(camera)
    crop.cx, crop.cy = crop.cx - window.left, crop.cy - window.top
    crop.width, crop.height = (torch.full_like(crop.width, side) for side in (window.width, window.height))
    return scoped(RENDERED_WINDOW, window, lambda: render(crop))
