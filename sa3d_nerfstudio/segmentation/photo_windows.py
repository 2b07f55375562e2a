"""Windows of photos: the part of a photo that a network is shown where the object is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.window import Window

LARGEST_SHARE = 1 / 4
"""Longest window, as a share of the photo's longer side: a larger part is not worth a separate embedding."""
OBJECT_MARGIN = 2.0
"""Least length of a window of the photo, in lengths of the object's window: a network needs to see the surroundings."""
STEPS = 4
"""Windows of photos begin at multiples of a quarter of their length, so that neighbouring objects share them."""
LEAST_ROOM = 1 / 8
"""A window of a photo is kept while at least this share of its length lies beside the object's window on each side."""
FINER = 1.2
"""Least ratio, along each side, of a window's resolution to that of the whole photo at the network's input size."""


def photo_window(
    window: Window, side: int, frame: Callable[[float], Window], before: Window | None = None
) -> Window | None:
    """Choose the part of a photo that a network is shown.

    Args:
        window: Window around the object, at any size of the view.
        side: Longer side of the images that the network sees, in pixels.
        frame: Returns the window of the whole view whose longer side has this many pixels, or as many as the photo has.
        before: Window of the photo that the network was shown of this view before.

    Returns:
        None for the whole photo: the object is not small, or the photo has no more pixels than the network sees.
    """
    extent = max(window.height, window.width) / max(window.size)
    coarsest, share = frame(side), 1.0
    photo = coarsest
    while OBJECT_MARGIN * extent <= share / 2 and (larger := frame(2 * side / share)).scale > photo.scale:
        photo, share = larger, share / 2
    if share > LARGEST_SHARE or photo.scale < FINER * coarsest.scale:
        return None
    if before is not None and before.long_side <= 2 * photo.long_side and _has_room(before, window):
        return before
    length = max(photo.size) * share
    step, factor = length / STEPS, photo.scale / window.scale
    corners = []
    for start, count, photo_count in zip(
        (window.top, window.left), (window.height, window.width), photo.size, strict=True
    ):
        corner = round(((start + count / 2) * factor - length / 2) / step) * step
        corners.append(max(min(corner, photo_count - length), 0.0))
    top, left = corners
    return photo.snapped((top, left, top + length, left + length))


def _has_room(part: Window, window: Window) -> bool:
    """Whether a window of the photo leaves enough room around the object's window, within the bounds of the photo."""
    factor = part.scale / window.scale
    distance = LEAST_ROOM * max(part.height, part.width)
    low = ((window.top, part.top), (window.left, part.left))
    high = ((window.bottom, part.bottom, part.size[0]), (window.right, part.right, part.size[1]))
    return all(start == 0 or inner * factor >= start + distance for inner, start in low) and all(
        end == size or inner * factor <= end - distance for inner, end, size in high
    )


def prompt_between(prompt: Prompt, window: Window, part: Window) -> Prompt:
    """The same prompt in another window of the same view.

    Args:
        prompt: Prompt in pixels of ``window``.
        window: Window of the prompt.
        part: Target window. Points and a box beyond it are neither dropped nor cut.
    """
    factor = part.scale / window.scale
    corner, part_corner = torch.tensor([window.left, window.top]), torch.tensor([part.left, part.top])
    points = (prompt.points + 0.5 + corner) * factor - part_corner - 0.5
    box = None if prompt.box is None else (prompt.box + corner.repeat(2)) * factor - part_corner.repeat(2)
    prior = prompt.prior
    if prior is not None:
        known = prior.isfinite()
        sums = part.drawn_from(window, torch.stack([prior.nan_to_num(0.0) * known, known.to(prior)]))
        prior = torch.where(sums[1] > 0.5, sums[0] / sums[1].clamp(min=0.5), torch.nan)
    return replace(prompt, height=part.height, width=part.width, points=points, box=box, mask=None, prior=prior)


def candidates_between(candidates: Candidates, part: Window, window: Window) -> Candidates:
    """The same candidates on the pixels of another window of the same view, averaged over the area of each pixel.

    Args:
        candidates: Candidates on the pixels of ``part``.
        part: Window of the candidates.
        window: Target window.
    """
    values = candidates.masks.float() - 0.5 if candidates.logits is None else candidates.logits
    return Candidates(window.drawn_from(part, values, -0.5) > 0, candidates.scores, single=candidates.single)
