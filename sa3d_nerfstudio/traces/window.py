"""Windows: rectangles of a view, at one of the sizes that it can be rendered at, and where an object is among them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Num
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

TILE = 8
"""Pixels along each side of the tiles that windows consist of and views are kept in."""
MARGIN = 0.2
"""How much wider than the object a window is on each side, as a share of the object's extent in the image."""
LEAST_MARGIN = 4
"""The same in pixels of the window, at least."""
KEPT_AREA = 2.0
"""A window that holds the object stays as it is until it is larger than need be by more than this factor."""


@dataclass
class Pixels:
    """Some of an image's pixels, as an image of their own."""

    indices: Int[Tensor, " num_pixels"]
    """Into the flattened image."""
    height: int
    """Of the new image."""
    width: int
    """Of the new image."""


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
    """What the image's longer side was asked to be; the image may be a pixel smaller, or have no more than this."""
    scale: float
    """Pixels of this image for one of the camera's own: how sizes of one view compare."""

    @classmethod
    def whole(cls, size: tuple[int, int], long_side: int, scale: float) -> Window:
        """All of an image."""
        return cls(0, 0, *size, size, long_side, scale)

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the image."""
        return (self.height, self.width) == self.size

    @property
    def bottom(self) -> int:
        """The row below."""
        return self.top + self.height

    @property
    def right(self) -> int:
        """The column to the right."""
        return self.left + self.width

    @property
    def rows(self) -> slice:
        """Its rows in the whole image."""
        return slice(self.top, self.bottom)

    @property
    def columns(self) -> slice:
        """Its columns in the whole image."""
        return slice(self.left, self.right)

    @property
    def shares(self) -> tuple[float, float, float, float]:
        """y0, x0, y1, x1 as shares of the whole image."""
        height, width = self.size
        return self.top / height, self.left / width, self.bottom / height, self.right / width

    @property
    def frame(self) -> Window:
        """All of the image that this is a part of."""
        return Window.whole(self.size, self.long_side, self.scale)

    def pixels(self, device: torch.device | str = "cpu") -> Pixels:
        """Its pixels, row by row."""
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
            scale: Of that image.
            slack: Pixels of that image by which the box may be wrong.
            margin: On each side, as a share of the longer side of the box.
        """
        factor = self.scale / scale
        y0, x0, y1, x1 = (side * factor for side in box)
        beside = max(margin * max(y1 - y0, x1 - x0), LEAST_MARGIN, slack * factor)
        return self.snapped((y0 - beside, x0 - beside, y1 + beside, x1 + beside))

    def grown(self, touched: Sequence[bool]) -> Window:
        """This window, wider by half on those sides at which a mask leaves it; itself where none does.

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
        """The smallest window of this image that holds a box, y0, x0, y1, x1, as far as it lies within."""
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
        """What another window of the same view shows, of any size, on this one's pixels.

        Pixels are averaged over the area that they cover; where the other window's are larger, they are interpolated.

        Args:
            other: The other window.
            images: On its pixels.
            outside: What this window's pixels have where the other one does not show all of them.
        """
        factor = other.scale / self.scale
        down = _shares(self.top, self.height, other.top, other.height, factor)
        across = _shares(self.left, self.width, other.left, other.width, factor)
        down, across = down.to(images), across.to(images)
        inside = down.sum(1)[:, None] * across.sum(1)
        return down @ images @ across.T + (1 - inside) * outside

    def still_fits(self, needed: Window) -> bool:
        """Whether this window will do where another one is needed: it holds it, and is not much larger."""
        return self.contains(needed) and self.height * self.width <= KEPT_AREA * needed.height * needed.width

    def covers(self, other: Window, device: torch.device | str = "cpu") -> Bool[Tensor, "height width"]:
        """Which pixels of a window of the same view, of any size, have their centres in this one."""
        factor = self.scale / other.scale
        y = (torch.arange(other.top, other.bottom, device=device) + 0.5) * factor
        x = (torch.arange(other.left, other.right, device=device) + 0.5) * factor
        inside_y = (y >= self.top) & ((y < self.bottom) | (self.bottom == self.size[0]))
        inside_x = (x >= self.left) & ((x < self.right) | (self.right == self.size[1]))
        return inside_y[:, None] & inside_x

    def paste(
        self, image: Float[Tensor, "rows columns channels"], part: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "full_height full_width channels"]:
        """The whole image, of which this window shows a part; the rest is brought to its size.

        Args:
            image: The same view at any size.
            part: What this window shows.
        """
        stack = image.permute(2, 0, 1)[None]
        whole = torch.nn.functional.interpolate(stack, self.size, mode="bilinear")[0].permute(1, 2, 0).clone()
        whole[self.rows, self.columns] = part
        return whole


def _shares(start: int, count: int, other_start: int, other_count: int, factor: float) -> Float[Tensor, "count others"]:
    """What each pixel along one side takes from each of another image's, whose pixels are ``1 / factor`` as large."""
    first = (start + torch.arange(count, dtype=torch.float64)) * factor - other_start
    cell = torch.arange(other_count, dtype=torch.float64)
    if factor >= 1:
        overlap = torch.minimum((first + factor)[:, None], cell + 1) - torch.maximum(first[:, None], cell)
        return overlap.clamp(min=0) / factor
    # Between the centres of two pixels; up to half of one beyond the first and the last, the value is theirs.
    centre = first + factor / 2
    beside = (1 - (centre.clamp(0.5, other_count - 0.5)[:, None] - cell - 0.5).abs()).clamp(min=0)
    return beside * ((centre >= 0) & (centre <= other_count))[:, None]


def touched_sides(masks: Bool[Tensor, "num height width"]) -> Bool[Tensor, "num 4"]:
    """Whether each mask reaches the top, the left, the bottom and the right of its image."""
    rows, columns = masks.any(dim=2), masks.any(dim=1)
    return torch.stack([rows[:, 0], columns[:, 0], rows[:, -1], columns[:, -1]], dim=-1)


Box = tuple[int, int, int, int]
"""y0, x0, y1, x1 in pixels, upper bounds exclusive."""


def bounds(mask: Bool[Tensor, "height width"]) -> Box | None:
    """y0, x0, y1, x1 of a mask, upper bounds exclusive; None if it is empty."""
    return all_bounds([mask])[0]


def all_bounds(masks: Sequence[Bool[Tensor, "height width"]]) -> list[Box | None]:
    """:func:`bounds` of masks of any sizes on one device, which the host waits for once."""
    return boxes_of(sides_of(masks).cpu(), masks) if masks else []


def sides_of(masks: Sequence[Bool[Tensor, "height width"]]) -> Int[Tensor, "num 5"]:
    """Distances of masks from the four sides of their images, and whether there is any pixel, where the masks are."""
    sides = []
    for mask in masks:
        rows, columns = mask.any(dim=1).to(torch.uint8), mask.any(dim=0).to(torch.uint8)
        ends = [rows.argmax(), columns.argmax(), rows.flip(0).argmax(), columns.flip(0).argmax(), rows.amax().long()]
        sides.append(torch.stack(ends))
    return torch.stack(sides)


def boxes_of(sides: Num[Tensor, "num 5"], masks: Sequence[Bool[Tensor, "height width"]]) -> list[Box | None]:
    """The bounds of masks, by their :func:`sides_of` on the host."""
    found = zip(masks, sides.long().tolist(), strict=True)
    return [
        (top, left, mask.shape[0] - bottom, mask.shape[1] - right) if there else None
        for mask, (top, left, bottom, right, there) in found
    ]


def cropped(camera: Cameras, window: Window) -> Cameras:
    """The camera whose image is a window of another's: the same but for its principal point and its size."""
    part = copy.deepcopy(camera)
    part.cx, part.cy = part.cx - window.left, part.cy - window.top
    part.width, part.height = (torch.full_like(part.width, side) for side in (window.width, window.height))
    return part
