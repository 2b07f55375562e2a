"""Scores of candidate regions, by their appearance and their fit to the prompt."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float

from sa3d_nerfstudio.segmenters.grabcut.image_cues import Cues
from sa3d_nerfstudio.segmenters.grabcut.placed_prompt import PlacedPrompt

Region = Bool[np.ndarray, "height width"]
Regions = Bool[np.ndarray, "num height width"]

SMALLEST = 4
"""Regions of fewer pixels score 0."""
COMPACTNESS, PRIOR_FIT, SPREAD_FIT = 0.5, 1.0, 0.25
"""Weights of these terms, relative to an edge all around."""
PERFECT_SUM = 6.0
"""Approximate sum of the terms for a perfect region, which scores 1."""


def score_regions(cues: Cues, prompt: PlacedPrompt, regions: Regions) -> Float[np.ndarray, " num"]:
    """Score each region from 0 to about 1, by how much it looks like an object and fits the prompt."""
    overlaps = np.array([[iou(first, second) for second in regions] for first in regions])
    # A region to which several guesses led is less likely an accident.
    support = (overlaps.sum(axis=1) - 1) / max(len(regions) - 1, 1)
    looks = [_looks(cues, region) + _fits(prompt, region) for region in regions]
    return np.maximum(looks + support, 0) * [region.sum() >= SMALLEST for region in regions] / PERFECT_SUM


def iou(item: Region, other: Region) -> float:
    """Intersection over union; 0 for two empty regions."""
    union = int((item | other).sum())
    return int((item & other).sum()) / union if union else 0.0


def best_regions(regions: Regions, scores: Float[np.ndarray, " num"], number: int) -> list[int]:
    """Indices of the best regions, from small to large; near duplicates only if there are no others."""
    ranked = [int(index) for index in np.argsort(-scores, kind="stable")]
    chosen: list[int] = []
    for threshold in (0.9, np.inf):
        for index in ranked:
            new = index not in chosen and all(iou(regions[index], regions[earlier]) < threshold for earlier in chosen)
            if new and len(chosen) < number:
                chosen.append(index)
    return sorted(chosen, key=lambda index: int(regions[index].sum()))


def _looks(cues: Cues, region: Region) -> float:
    """Score of a region's appearance: bounded by edges, unlike its surroundings, compact, and not cut off."""
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
        inner, outer = (codes.histogram(pixels.astype(float)) for pixels in (region, ring))
        # The chi-squared distance: 0 for the same distribution, 1 for two that share nothing.
        unlike += float(0.5 * ((inner - outer) ** 2 / (inner + outer + 1e-9)).sum())
    compact = min(4 * np.pi * area / float(rim.sum()) ** 2, 1.0)
    cut_off = float((rim & frame).sum() / rim.sum())
    return bounded + unlike + COMPACTNESS * compact - cut_off


def _fits(prompt: PlacedPrompt, region: Region) -> float:
    """Score of the agreement with the prior where it has evidence, with the box, and with the extent of the points."""
    fit = 0.0
    if prompt.known is not None and prompt.probable is not None:
        fit += PRIOR_FIT * iou(region & prompt.known, prompt.probable)
    if prompt.inside is not None and region.any():
        _, _, width, height = cv2.boundingRect(region.astype(np.uint8))
        # The region lies in the box, so this is the IoU of the two boxes.
        fit += width * height / float(prompt.inside.sum())
    elif prompt.spread > 0 and prompt.probable is None and region.any():
        # Users spread several points over the whole object.
        fit -= SPREAD_FIT * np.log(np.sqrt(region.sum()) / prompt.spread) ** 2
    return fit
