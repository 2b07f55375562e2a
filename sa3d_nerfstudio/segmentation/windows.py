"""Where in each view the object is, so that only that part of it is traced at full size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from sa3d_nerfstudio.gpu_memory import free_bytes, reclaim_from, size_of
from sa3d_nerfstudio.segmentation.photo_windows import photo_window
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session_views import (
    TOGETHER,
    CloserPhoto,
    FreeView,
    Guide,
    Search,
    SessionViews,
    ViewKey,
    Views,
)
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.traces.window import MARGIN, Box, Window, all_bounds, bounds, boxes_of, sides_of

COARSE = 4
"""Views are looked through in images smaller than the working size by this, to locate the object."""
SPAN = 128
"""Pixels of the object's longer side that windows are to show, about as many as a mask grid has cells there."""
MOST = 4
"""Windows are made larger than the working size by this factor at most."""
LARGEST = 1.5
"""They have no more pixels than whole views at the working size by this factor."""
FEW_PIXELS = 4
"""Where an object would cover no more pixels than this of a coarse image, on each side, its rays may miss it."""
SHARE_KEPT = 1 / 16
"""Of the memory that is free, what windows' traces may take that are kept for the next pass; those that are looked at
together are in any case."""
FALLBACK_KEPT = 64_000_000
"""Bytes of them where nothing tells how much memory is free."""
Masks = Mapping[ViewKey, Bool[Tensor, " num_rays"]]
Places = Mapping[ViewKey, Window]


@runtime_checkable
class WindowedViews(Views, Protocol):
    """Views of which windows can be traced, at any size."""

    @property
    def has_windows(self) -> bool:
        """Whether they can."""
        ...

    @property
    def has_photos(self) -> bool:
        """Whether segmenters see photos, for which nothing has to be rendered."""
        ...

    def is_rendered(self, view: int) -> bool:
        """Whether the whole view has been rendered before."""
        ...

    def frame(self, view: int, factor: float = 1.0) -> Window:
        """All of a view in images larger than the working size by a factor, or smaller, as far as photos go."""
        ...

    def sized(self, long_side: int) -> Views:
        """The same views in images whose longer side is no longer than this."""
        ...

    def window_trace(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window of a view; rendered once."""
        ...

    def window_picture(self, view: int, window: Window) -> Float[Tensor, "height width 3"]:
        """What segmenters see of a window, on its pixels."""
        ...


def has_windows(views: Views, side: int | None = None) -> TypeGuard[WindowedViews]:
    """Whether windows of these views can be traced, and whether that spares anything.

    Args:
        views: The views.
        side: Longer side of the whole images that a segmenter wants to see; None for one that looks at windows.
    """
    return isinstance(views, WindowedViews) and views.has_windows and (side is None or views.has_photos)


def enlargement(masks: Iterable[Bool[Tensor, "height width"]], long_side: int) -> float:
    """How much larger than the working size windows should be for an object that the prompted views show.

    Args:
        masks: Of the object, in whole images of any size.
        long_side: Of the images at the working size.

    Returns:
        A power of two, so that objects of about one size share their renders.
    """
    span = area = 0.0
    for mask in masks:
        box = bounds(mask)
        if box is None:
            continue
        height, width = box[2] - box[0], box[3] - box[1]
        beside = 2 * MARGIN * max(height, width)
        span = max(span, long_side * max(height, width) / max(mask.shape))
        shares = (min((side + beside) / whole, 1) for side, whole in zip((height, width), mask.shape, strict=True))
        area = max(area, math.prod(shares))
    factor = 1
    while span > 0 and factor < MOST and factor * span < SPAN and (2 * factor) ** 2 * area <= LARGEST:
        factor *= 2
    return float(factor)


class CloseViews(SessionViews):
    """The views of a session that looks at windows of the training views, and at coarse traces of the whole ones.

    A coarse trace tells where in a view the object is, as far as that is known; the window around it is traced at full
    size. Around the window there is background, as far as the coarse trace shows it. Views without a window, such as
    those that the user has prompted, are looked at as a whole.

    Args:
        training: The training views.
        free: Views beside them, by name.
        report: Where the time that renders take is put down.
        threshold: Probability above which something is on the object.
        factor: How much larger than the working size windows are.
        close_photos: Whether networks are shown windows of photos in which the object is small.
    """

    training: WindowedViews

    def __init__(
        self,
        training: WindowedViews,
        free: dict[str, FreeView],
        report: SessionReport,
        threshold: float,
        factor: float = 1.0,
        close_photos: bool = True,
    ) -> None:
        super().__init__(training, free, report)
        self.threshold = threshold
        self.factor = factor
        self.close_photos = close_photos
        self.placed: dict[ViewKey, Window] = {}
        """The window of each view in which the object has been located."""
        self._newest: dict[ViewKey, tuple[Window, ViewTrace, int]] = {}
        """The traces of the windows that were looked at last, and their bytes, as far as there is room; others are made
        anew."""
        self._room: int | None = None
        """Bytes that these may take; told when there is the first."""
        self._photo_windows: dict[ViewKey, tuple[Window, Window | None]] = {}
        """For each view the object's window, and that of the photo which belongs to it."""
        reclaim_from(self)

    def look_at_all_of(self, view: ViewKey) -> None:
        """Look at a view without a window from now on."""
        self.placed.pop(view, None)

    def window(self, view: ViewKey) -> Window | None:
        """The part of a view that is looked at; None where that is all of it."""
        return self.placed.get(view)

    def trace(self, view: ViewKey) -> ViewTrace:
        """The trace of a view's window."""
        window = self.placed.get(view)
        if window is None:
            return super().trace(view)
        newest = self._newest.pop(view, None)
        if newest is None or newest[0] != window:
            with self.report.timed("render"):
                trace = self.training.window_trace(int(view), window)
            newest = (window, trace, size_of(trace))
        self._newest[view] = newest
        if self._room is None:
            free = free_bytes(newest[1].depth.device)
            self._room = FALLBACK_KEPT if free is None else int(SHARE_KEPT * free)
        held = sum(num_bytes for *_, num_bytes in self._newest.values())
        for oldest in list(self._newest)[:-TOGETHER]:
            if held <= self._room:
                break
            held -= self._newest.pop(oldest)[2]
        return newest[1]

    def reclaim(self) -> int:
        """Let go of what is kept for the next pass, and keep no more; how many bytes it was."""
        held = sum(num_bytes for *_, num_bytes in self._newest.values())
        self._newest.clear()
        self._room = 0
        return held

    def picture(self, view: ViewKey, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """What segmenters see of a view: its window, or for those that ask for a side the whole photo."""
        window = self.placed.get(view)
        if window is None:
            return super().picture(view, side)
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return self.training.window_picture(int(view), part)
        return self._photographed(int(view), window).picture(int(view), side)

    def picture_size(self, view: ViewKey, side: int | None = None) -> tuple[int, int]:
        """Height and width of that."""
        window = self.placed.get(view)
        if window is None:
            return super().picture_size(view, side)
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return part.height, part.width
        return self._photographed(int(view), window).picture_size(int(view), side)

    def shown(self, view: ViewKey, side: int | None = None) -> ViewKey | tuple[int, Window]:
        """Names :meth:`picture`: the photo of a view, which is the same for all objects, or a window of it."""
        window = self.placed.get(view)
        if window is None:
            return view
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return int(view), part
        return view if self._photographed(int(view), window) is self.training else (int(view), window.frame)

    def photo_window(self, view: ViewKey, side: int | None) -> Window | None:
        """The part of a view's photo that segmenters are shown which ask for a side; None where that is all of it."""
        window = self.placed.get(view)
        if window is None or side is None or not self.close_photos or not self.training.has_photos:
            return None
        before = self._photo_windows.get(view)
        if before is None or before[0] != window:
            part = self._part_of_photo(int(view), window, side, None if before is None else before[1])
            before = self._photo_windows[view] = (window, part)
        return before[1]

    def _part_of_photo(self, view: int, window: Window, side: int, before: Window | None = None) -> Window | None:
        usual = max(self.training.frame(view).size)
        return photo_window(window, side, lambda length: self.training.frame(view, length / usual), before)

    def closer_photo(self, view: ViewKey, mask: Bool[Tensor, "height width"], side: int | None) -> CloserPhoto | None:
        """What segmenters that ask for a side are to be shown of a view's photo, where a mask of all of it is small
        there; None where that is all of it."""
        shows = isinstance(view, int) and side is not None and self.close_photos and self.training.has_photos
        box = bounds(mask) if shows else None
        if box is None:
            return None
        whole = self.training.frame(int(view))
        part = self._part_of_photo(int(view), whole.around(box, whole.scale), side or 0)
        return None if part is None else CloserPhoto(whole, part, lambda: self.training.window_picture(int(view), part))

    def _photographed(self, view: int, window: Window) -> Views:
        """Whose photo shows as much as a window's image: of some sizes, a part of a pixel is lacking at the border."""
        usual = self.training.frame(view)
        same = all(
            abs(mine * usual.scale / (other * window.scale) - 1) < 1e-3
            for mine, other in zip(window.size, usual.size, strict=True)
        )
        return self.training if same else self.training.sized(window.long_side)

    def search(self, views: Sequence[int], guide: Guide) -> Search:
        """Begin to find the object in views, to place their windows there. The host waits once for all of them.

        Args:
            views: The views.
            guide: What is known of the object, which must not change until the windows have been placed.
        """
        coarse = [self._coarse(view) for view in views]
        with self.report.timed("lift"):
            shown = []
            for trace, _ in coarse:
                probability, known = guide.render(trace)
                shown.append(((probability > self.threshold) & known).reshape(trace.height, trace.width))
            sides = sides_of(shown) if shown else None

        def place(sides: Num[Tensor, "num 5"] | None) -> list[bool]:
            boxes = [] if sides is None else boxes_of(sides, shown)
            with self.report.timed("lift"):
                hidden = [number for number, box in enumerate(boxes) if box is None]
                small = self._small([(views[number], coarse[number][0]) for number in hidden], guide)
            for number, box in zip(hidden, small, strict=True):
                boxes[number] = box
            for view, (_, frame), box in zip(views, coarse, boxes, strict=True):
                if box is not None:
                    full, here = self.training.frame(view, self.factor), self.placed.get(view)
                    if here is None or not here.still_fits(full.around(box, frame.scale, slack=0.5, margin=0.1)):
                        self.placed[view] = full.around(box, frame.scale, slack=1.0)
            return [box is not None for box in boxes]

        return Search(sides, place)

    def leaves(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Whether a mask leaves a view's window, if it has one, which does not end there with the image."""
        window = self.placed.get(view)
        return window is not None and window.grown(touched) != window

    def grow(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Widen a view's window where a mask leaves it. Returns whether it does."""
        if not self.leaves(view, touched):
            return False
        self.placed[view] = self.placed[view].grown(touched)
        return True

    def ray_weight(self, view: ViewKey) -> float:
        """What a ray of a view counts: larger images have more of them, and say no more for it."""
        window = self.placed.get(view)
        return 1.0 if window is None else (self.training.frame(int(view)).scale / window.scale) ** 2

    def surroundings(self, view: ViewKey) -> tuple[ViewTrace, Float[Tensor, " num_rays"]] | None:
        """The coarse trace of a view, and what each of its rays counts: nothing within the window."""
        window = self.placed.get(view)
        if window is None:
            return None
        coarse, frame = self._coarse(int(view))
        inside = window.covers(frame, coarse.depth.device).reshape(-1)
        return coarse, ~inside * (self.training.frame(int(view)).scale / frame.scale) ** 2

    def image(
        self, view: ViewKey, of: Callable[[ViewTrace], Float[Tensor, "rows columns channels"]]
    ) -> Float[Tensor, "height width channels"]:
        """An image of a whole view, sharp in its window."""
        window = self.placed.get(view)
        if window is not None:
            return window.paste(of(self._coarse(int(view))[0]), of(self.trace(view)))
        return of(self._coarse(view)[0]) if self._never_whole(view) else of(self.trace(view))

    def _never_whole(self, view: ViewKey) -> TypeGuard[int]:
        return isinstance(view, int) and not self.training.is_rendered(view)

    def _coarse(self, view: int) -> tuple[ViewTrace, Window]:
        """The coarse trace of a whole view, and its frame."""
        frame = self.training.frame(view, 1 / COARSE)
        with self.report.timed("render"):
            return self.training.window_trace(view, frame), frame

    def _small(self, views: Sequence[tuple[int, ViewTrace]], guide: Guide) -> list[Box | None]:
        """Where the rays of coarse traces pass the object, if it is too small to be shown by them."""
        passing = []
        for view, coarse in views:
            position = self.pose(view)[:, 3].to(coarse.depth)
            directions = torch.nn.functional.normalize(coarse.surface_points() - position, dim=-1)
            on = guide.field.hits(position.expand_as(directions), directions, self.threshold)
            passing.append(on.reshape(coarse.height, coarse.width))
        boxes = all_bounds(passing)
        return [None if box and max(box[2] - box[0], box[3] - box[1]) > FEW_PIXELS else box for box in boxes]


def on_same_pixels(before: Masks, places: Places, after: Masks, new_places: Places) -> tuple[Masks, Masks]:
    """The masks of two passes, those of each view on the same pixels.

    Args:
        before: Masks by view, flattened.
        places: Their windows; views without are whole.
        after: Likewise.
        new_places: Likewise.
    """
    first, second = dict(before), dict(after)
    for view in before.keys() & after.keys():
        old, new = places.get(view), new_places.get(view)
        if old is None or new is None or old == new:
            continue
        joint = old.joined(new)
        first[view], second[view] = (
            _padded(mask[view].reshape(window.height, window.width), window, joint).reshape(-1)
            for mask, window in ((before, old), (after, new))
        )
    return first, second


def _padded(mask: Bool[Tensor, "height width"], window: Window, joint: Window) -> Bool[Tensor, "rows columns"]:
    sides = (window.left - joint.left, joint.right - window.right, window.top - joint.top, joint.bottom - window.bottom)
    return torch.nn.functional.pad(mask, sides)
