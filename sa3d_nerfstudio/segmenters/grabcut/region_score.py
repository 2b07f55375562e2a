"""Which of several regions is the thing that was meant."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from sa3d_nerfstudio.segmenters.grabcut.image_cues import Cues
from sa3d_nerfstudio.segmenters.grabcut.placed_prompt import PlacedPrompt

Region = Bool[np.ndarray, "height width"]
Regions = Bool[np.ndarray, "num height width"]

SMALLEST = 4
"""Regions of fewer pixels are nothing."""
COMPACTNESS, PRIOR_FIT, SPREAD_FIT = 0.5, 1.0, 0.25
"""What these count, compared to an edge all around."""
FULL_MARKS = 6.0
"""What a perfect region would get, about."""


def judge(cues: Cues, prompt: PlacedPrompt, regions: Regions) -> Float[np.ndarray, " num"]:
    """A score for each region, 0 to about 1: does it look like a thing, and like the one that was asked for?"""
    alike = np.array([[iou(item, other) for other in regions] for item in regions])
    # What several guesses led to is less of an accident.
    confirm = (alike.sum(axis=1) - 1) / max(len(regions) - 1, 1)
    looks = [_looks(cues, region) + _fits(prompt, region) for region in regions]
    return np.maximum(looks + confirm, 0) * [region.sum() >= SMALLEST for region in regions] / FULL_MARKS


def iou(item: Region, other: Region) -> float:
    """Intersection over union; 0 for two empty regions."""
    union = int((item | other).sum())
    return int((item & other).sum()) / union if union else 0.0


def distinct(regions: Regions, scores: Float[np.ndarray, " num"], number: int) -> list[int]:
    """The best regions that are not nearly the same, from small to large; the same ones if there are no others."""
    ranked = [int(index) for index in np.argsort(-scores, kind="stable")]
    chosen: list[int] = []
    for too_alike in (0.9, np.inf):
        for index in ranked:
            new = index not in chosen and all(iou(regions[index], regions[other]) < too_alike for other in chosen)
            if new and len(chosen) < number:
                chosen.append(index)
    return sorted(chosen, key=lambda index: int(regions[index].sum()))


def _looks(cues: Cues, region: Region) -> float:
    """How much of a thing a region is: bounded by edges, unlike its surroundings, compact, and not cut off."""
    area = int(region.sum())
    if area < SMALLEST:
        return 0.0
    kernel = np.ones((3, 3), np.uint8)
    rim = region & ~cv2.erode(region.astype(np.uint8), kernel, borderValue=(0,)).astype(bool)
    frame = np.ones_like(region)
    frame[1:-1, 1:-1] = False
    edges = cv2.dilate(cues.edges.astype(np.float32), kernel)[rim & ~frame]
    bounded = float(np.minimum(edges, 2).mean()) if len(edges) else 0.0
    side = max(2, int(0.2 * np.sqrt(area)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * side + 1, 2 * side + 1))
    ring = cv2.dilate(region.astype(np.uint8), disc).astype(bool) & ~region
    unlike = 0.0
    for codes in cues.codes:
        own, other = (codes.histogram(part.astype(float)) for part in (region, ring))
        # The chi-squared distance: 0 for the same distribution, 1 for two that share nothing.
        unlike += float(0.5 * ((own - other) ** 2 / (own + other + 1e-9)).sum())
    compact = min(4 * np.pi * area / float(rim.sum()) ** 2, 1.0)
    cut_off = float((rim & frame).sum() / rim.sum())
    return bounded + unlike + COMPACTNESS * compact - cut_off


def _fits(prompt: PlacedPrompt, region: Region) -> float:
    """Agreement with the prior where that knows something, with the box, and with the extent of the points."""
    fit = 0.0
    if prompt.known is not None and prompt.probable is not None:
        fit += PRIOR_FIT * iou(region & prompt.known, prompt.probable)
    if prompt.inside is not None and region.any():
        _, _, width, height = cv2.boundingRect(region.astype(np.uint8))
        # The region lies in the box.
        fit += width * height / float(prompt.inside.sum())
    elif prompt.spread > 0 and prompt.probable is None and region.any():
        # Who puts several points on a thing spreads them over it.
        fit -= SPREAD_FIT * np.log(np.sqrt(region.sum()) / prompt.spread) ** 2
    return fit
