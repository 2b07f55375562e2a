"""Windows of photos: what a network is shown of a view in which the object is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.window import Window

LARGEST_SHARE = 1 / 4
"""Larger parts of a photo than this, by their longer sides, are not worth an embedding of their own."""
ROOM = 2.0
"""How many times as long as the object's window a window of the photo is, at least: a network needs to see what is
around."""
STEPS = 4
"""Windows of photos begin at multiples of a quarter of their length, so that neighbouring objects share them."""
LEAST_ROOM = 1 / 8
"""A window of a photo stays while there is so much of its length beside the object's window on each side."""
FINER = 1.2
"""How many times as many pixels along each side it must show of the object as the whole photo does."""


def photo_window(
    window: Window, side: int, frame: Callable[[float], Window], before: Window | None = None
) -> Window | None:
    """The part of a photo that a network is to be shown.

    Args:
        window: Around the object, at any size of the view.
        side: Longer side of the images that the network sees.
        frame: All of the view in images whose longer side is so many pixels, as far as the photo goes.
        before: What it was shown of the view before.

    Returns:
        None where that is all of it: the object is not small, or the photo has no more pixels than the network sees.
    """
    extent = max(window.height, window.width) / max(window.size)
    whole, share = frame(side), 1.0
    full = whole
    while ROOM * extent <= share / 2 and (larger := frame(2 * side / share)).scale > full.scale:
        full, share = larger, share / 2
    if share > LARGEST_SHARE or full.scale < FINER * whole.scale:
        return None
    if before is not None and before.long_side <= 2 * full.long_side and _has_room(before, window):
        return before
    length = max(full.size) * share
    step, factor = length / STEPS, full.scale / window.scale
    corners = []
    for start, count, whole_count in zip(
        (window.top, window.left), (window.height, window.width), full.size, strict=True
    ):
        corner = round(((start + count / 2) * factor - length / 2) / step) * step
        corners.append(max(min(corner, whole_count - length), 0.0))
    top, left = corners
    return full.snapped((top, left, top + length, left + length))


def _has_room(part: Window, window: Window) -> bool:
    """Whether a window of the photo still shows enough around the object's window, as far as the photo goes."""
    factor = part.scale / window.scale
    beside = LEAST_ROOM * max(part.height, part.width)
    low = ((window.top, part.top), (window.left, part.left))
    high = ((window.bottom, part.bottom, part.size[0]), (window.right, part.right, part.size[1]))
    return all(start == 0 or inner * factor >= start + beside for inner, start in low) and all(
        end == whole or inner * factor <= end - beside for inner, end, whole in high
    )


def prompt_between(prompt: Prompt, window: Window, part: Window) -> Prompt:
    """The same prompt in another window of the same view.

    Args:
        prompt: In pixels of the first.
        window: The first.
        part: The other, which holds all that the prompt points at.
    """
    factor = part.scale / window.scale
    corner, other = torch.tensor([window.left, window.top]), torch.tensor([part.left, part.top])
    points = (prompt.points + 0.5 + corner) * factor - other - 0.5
    box = None if prompt.box is None else (prompt.box + corner.repeat(2)) * factor - other.repeat(2)
    prior = prompt.prior
    if prior is not None:
        known = prior.isfinite()
        sums = part.drawn_from(window, torch.stack([prior.nan_to_num(0.0) * known, known.to(prior)]))
        prior = torch.where(sums[1] > 0.5, sums[0] / sums[1].clamp(min=0.5), torch.nan)
    return replace(prompt, height=part.height, width=part.width, points=points, box=box, mask=None, prior=prior)


def candidates_between(candidates: Candidates, part: Window, window: Window) -> Candidates:
    """The same candidates on the pixels of another window of the same view, averaged over the areas of these.

    Args:
        candidates: On the pixels of the first.
        part: The first.
        window: The other.
    """
    values = candidates.masks.float() - 0.5 if candidates.logits is None else candidates.logits
    return Candidates(window.drawn_from(part, values, -0.5) > 0, candidates.scores, single=candidates.single)
