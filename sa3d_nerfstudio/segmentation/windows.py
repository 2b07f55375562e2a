"""Location of the object in each view, so that only a window around it is traced at full size."""

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
"""Factor by which the coarse images that locate the object are smaller than the working size."""
SPAN = 128
"""Target number of pixels along the object's longer side in a window: about the number of a mask grid's cells there."""
MAX_ENLARGEMENT = 4
"""Greatest enlargement of windows beyond the working size."""
MAX_VIEW_AREA = 1.5
"""Greatest number of pixels of an enlarged window, relative to a whole view at the working size."""
FEW_PIXELS = 4
"""Extent of an object, in pixels along each side of a coarse image, up to which the coarse rays may miss it."""
SHARE_KEPT = 1 / 16
"""Share of the free memory for the traces of windows that are kept for the next pass; those of the newest
:data:`TOGETHER` views are kept in any case."""
FALLBACK_KEPT = 64_000_000
"""Number of bytes for these traces where the amount of free memory is unknown."""
Masks = Mapping[ViewKey, Bool[Tensor, " num_rays"]]
Windows = Mapping[ViewKey, Window]


@runtime_checkable
class WindowedViews(Views, Protocol):
    """Views whose windows can be traced, at any size."""

    @property
    def has_windows(self) -> bool:
        """Whether windows can be traced, and not only whole images."""
        ...

    @property
    def has_photos(self) -> bool:
        """Whether segmenters see photos, which need no render."""
        ...

    def is_rendered(self, view: int) -> bool:
        """Whether the whole view has been rendered before."""
        ...

    def frame(self, view: int, factor: float = 1.0) -> Window:
        """Window of a whole view at the working size times a factor; its size is limited by that of the photo."""
        ...

    def sized(self, long_side: int) -> Views:
        """The same views in images whose longer side has at most this many pixels."""
        ...

    def window_trace(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window of a view; rendered once."""
        ...

    def window_picture(self, view: int, window: Window) -> Float[Tensor, "height width 3"]:
        """Image that segmenters see of a window, on its pixels."""
        ...


def can_use_windows(views: Views, side: int | None = None) -> TypeGuard[WindowedViews]:
    """Whether windows of these views can be traced, and whether they save renders.

    Args:
        views: The views.
        side: Longer side of the whole images that the segmenter sees, in pixels; None for a segmenter that sees
            windows.
    """
    return isinstance(views, WindowedViews) and views.has_windows and (side is None or views.has_photos)


def enlargement(masks: Iterable[Bool[Tensor, "height width"]], long_side: int) -> float:
    """Factor by which to enlarge windows beyond the working size, by the object's masks in the prompted views.

    Args:
        masks: Masks of the object, in whole images of any size.
        long_side: Longer side of the images at the working size, in pixels.

    Returns:
        A power of two, so that objects of similar size share their renders.
    """
    span = area = 0.0
    for mask in masks:
        box = bounds(mask)
        if box is None:
            continue
        height, width = box[2] - box[0], box[3] - box[1]
        margins = 2 * MARGIN * max(height, width)
        span = max(span, long_side * max(height, width) / max(mask.shape))
        shares = (min((side + margins) / length, 1) for side, length in zip((height, width), mask.shape, strict=True))
        area = max(area, math.prod(shares))
    factor = 1
    while span > 0 and factor < MAX_ENLARGEMENT and factor * span < SPAN and (2 * factor) ** 2 * area <= MAX_VIEW_AREA:
        factor *= 2
    return float(factor)


class CloseViews(SessionViews):
    """Views of a session as windows of the training views, with coarse traces of the whole views.

    The object is located in a view by its mask rendered in the coarse trace; the window around it is traced at full
    size. The coarse trace supplies the background around the window. Views without a window, such as prompted views,
    are used whole.

    Args:
        training: The training views.
        free: Free views, by name.
        report: Report that counts the time of renders.
        threshold: Probability above which a pixel is on the object.
        factor: Enlargement of windows beyond the working size.
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
        """Window of each view in which the object has been located."""
        self._newest: dict[ViewKey, tuple[Window, ViewTrace, int]] = {}
        """Windows of the views visited last, their traces and the bytes of these, as far as memory allows; other traces
        are made anew."""
        self._room: int | None = None
        """Limit of these bytes; set with the first trace."""
        self._photo_windows: dict[ViewKey, tuple[Window, Window | None]] = {}
        """For each view, the object's window and the window of the photo chosen for it."""
        reclaim_from(self)

    def use_whole_view(self, view: ViewKey) -> None:
        """Use a view whole, without a window, from now on."""
        self.placed.pop(view, None)

    def window(self, view: ViewKey) -> Window | None:
        """Window of a view; None for a whole view."""
        return self.placed.get(view)

    def trace(self, view: ViewKey) -> ViewTrace:
        """The trace of a view's window."""
        window = self.placed.get(view)
        if window is None:
            return super().trace(view)
        entry = self._newest.pop(view, None)
        if entry is None or entry[0] != window:
            with self.report.timed("render"):
                trace = self.training.window_trace(int(view), window)
            entry = (window, trace, size_of(trace))
        self._newest[view] = entry
        if self._room is None:
            free = free_bytes(entry[1].depth.device)
            self._room = FALLBACK_KEPT if free is None else int(SHARE_KEPT * free)
        held = sum(num_bytes for *_, num_bytes in self._newest.values())
        for oldest in list(self._newest)[:-TOGETHER]:
            if held <= self._room:
                break
            held -= self._newest.pop(oldest)[2]
        return entry[1]

    def reclaim(self) -> int:
        """Drop all kept traces, and keep only those of :data:`TOGETHER` views from now on; returns the bytes freed."""
        held = sum(num_bytes for *_, num_bytes in self._newest.values())
        self._newest.clear()
        self._room = 0
        return held

    def picture(self, view: ViewKey, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """Image that segmenters see of a view: its window or, for a given side, the photo or a window of it."""
        window = self.placed.get(view)
        if window is None:
            return super().picture(view, side)
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return self.training.window_picture(int(view), part)
        return self._photographed(int(view), window).picture(int(view), side)

    def picture_size(self, view: ViewKey, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`."""
        window = self.placed.get(view)
        if window is None:
            return super().picture_size(view, side)
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return part.height, part.width
        return self._photographed(int(view), window).picture_size(int(view), side)

    def embedding_key(self, view: ViewKey, side: int | None = None) -> ViewKey | tuple[int, Window]:
        """Key of :meth:`picture`: the view, for its photo, which is the same for all objects; or a window of it."""
        window = self.placed.get(view)
        if window is None:
            return view
        part = window if side is None else self.photo_window(view, side)
        if part is not None:
            return int(view), part
        return view if self._photographed(int(view), window) is self.training else (int(view), window.frame)

    def photo_window(self, view: ViewKey, side: int | None) -> Window | None:
        """Window of a view's photo that segmenters with an input side see; None where they see the whole photo."""
        window = self.placed.get(view)
        if window is None or side is None or not self.close_photos or not self.training.has_photos:
            return None
        entry = self._photo_windows.get(view)
        if entry is None or entry[0] != window:
            part = self._part_of_photo(int(view), window, side, None if entry is None else entry[1])
            entry = self._photo_windows[view] = (window, part)
        return entry[1]

    def _part_of_photo(self, view: int, window: Window, side: int, before: Window | None = None) -> Window | None:
        usual = max(self.training.frame(view).size)
        return photo_window(window, side, lambda length: self.training.frame(view, length / usual), before)

    def closer_photo(self, view: ViewKey, mask: Bool[Tensor, "height width"], side: int | None) -> CloserPhoto | None:
        """Window of a view's photo for segmenters with an input side, where a mask of the whole view is small; None for
        the whole photo."""
        has_photo = isinstance(view, int) and side is not None and self.close_photos and self.training.has_photos
        box = bounds(mask) if has_photo else None
        if box is None:
            return None
        frame = self.training.frame(int(view))
        part = self._part_of_photo(int(view), frame.around(box, frame.scale), side or 0)
        return None if part is None else CloserPhoto(frame, part, lambda: self.training.window_picture(int(view), part))

    def _photographed(self, view: int, window: Window) -> Views:
        """Views whose photo covers the area of a window's whole image; some sizes lose part of a border pixel."""
        frame = self.training.frame(view)
        same = all(
            abs(window_length * frame.scale / (frame_length * window.scale) - 1) < 1e-3
            for window_length, frame_length in zip(window.size, frame.size, strict=True)
        )
        return self.training if same else self.training.sized(window.long_side)

    def search(self, views: Sequence[int], guide: Guide) -> Search:
        """Begin to locate the object in views, to place their windows. The host waits once for all of them.

        Args:
            views: Indices of the views.
            guide: Lifting with the object's evidence, which must not change until the windows have been placed.
        """
        coarse = [self._coarse(view) for view in views]
        with self.report.timed("lift"):
            shown_masks = []
            for trace, _ in coarse:
                probability, known = guide.render(trace)
                shown_masks.append(((probability > self.threshold) & known).reshape(trace.height, trace.width))
            sides = sides_of(shown_masks) if shown_masks else None

        def place(sides: Num[Tensor, "num 5"] | None) -> list[bool]:
            boxes = [] if sides is None else boxes_of(sides, shown_masks)
            with self.report.timed("lift"):
                hidden = [number for number, box in enumerate(boxes) if box is None]
                small = self._small([(views[number], coarse[number][0]) for number in hidden], guide)
            for number, box in zip(hidden, small, strict=True):
                boxes[number] = box
            for view, (_, frame), box in zip(views, coarse, boxes, strict=True):
                if box is not None:
                    full, window = self.training.frame(view, self.factor), self.placed.get(view)
                    if window is None or not window.still_fits(full.around(box, frame.scale, slack=0.5, margin=0.1)):
                        self.placed[view] = full.around(box, frame.scale, slack=1.0)
            return [box is not None for box in boxes]

        return Search(sides, place)

    def leaves(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Whether a mask leaves a view's window, if it has one, at a side other than the image's border."""
        window = self.placed.get(view)
        return window is not None and window.grown(touched) != window

    def grow(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Widen a view's window where a mask leaves it. Returns whether it was widened."""
        if not self.leaves(view, touched):
            return False
        self.placed[view] = self.placed[view].grown(touched)
        return True

    def ray_weight(self, view: ViewKey) -> float:
        """Weight of each ray of a view: larger images have more rays, but no more evidence."""
        window = self.placed.get(view)
        return 1.0 if window is None else (self.training.frame(int(view)).scale / window.scale) ** 2

    def surroundings(self, view: ViewKey) -> tuple[ViewTrace, Float[Tensor, " num_rays"]] | None:
        """Coarse trace of a view, and the weight of each of its rays: 0 within the window; None for a whole view."""
        window = self.placed.get(view)
        if window is None:
            return None
        coarse, frame = self._coarse(int(view))
        inside = window.covers(frame, coarse.depth.device).reshape(-1)
        return coarse, ~inside * (self.training.frame(int(view)).scale / frame.scale) ** 2

    def image(
        self, view: ViewKey, of: Callable[[ViewTrace], Float[Tensor, "rows columns channels"]]
    ) -> Float[Tensor, "height width channels"]:
        """Image of a whole view, at full size in its window and coarse around it."""
        window = self.placed.get(view)
        if window is not None:
            return window.paste(of(self._coarse(int(view))[0]), of(self.trace(view)))
        return of(self._coarse(view)[0]) if self._never_whole(view) else of(self.trace(view))

    def _never_whole(self, view: ViewKey) -> TypeGuard[int]:
        return isinstance(view, int) and not self.training.is_rendered(view)

    def _coarse(self, view: int) -> tuple[ViewTrace, Window]:
        """Coarse trace of a whole view, and its frame."""
        frame = self.training.frame(view, 1 / COARSE)
        with self.report.timed("render"):
            return self.training.window_trace(view, frame), frame

    def _small(self, views: Sequence[tuple[int, ViewTrace]], guide: Guide) -> list[Box | None]:
        """Bounds of the coarse rays that pass through or near the object; None if there are none, or if the longer side
        exceeds :data:`FEW_PIXELS`."""
        passing = []
        for view, coarse in views:
            position = self.pose(view)[:, 3].to(coarse.depth)
            directions = torch.nn.functional.normalize(coarse.surface_points() - position, dim=-1)
            on = guide.field.hits(position.expand_as(directions), directions, self.threshold)
            passing.append(on.reshape(coarse.height, coarse.width))
        boxes = all_bounds(passing)
        return [None if box and max(box[2] - box[0], box[3] - box[1]) > FEW_PIXELS else box for box in boxes]


def on_same_pixels(before: Masks, places: Windows, after: Masks, new_places: Windows) -> tuple[Masks, Masks]:
    """Bring the masks of two passes to the same pixels, view by view.

    Args:
        before: Masks of the earlier pass by view, flattened.
        places: Windows of these masks; masks without one are of whole views.
        after: Masks of the later pass, likewise.
        new_places: Windows of these masks, likewise.
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
