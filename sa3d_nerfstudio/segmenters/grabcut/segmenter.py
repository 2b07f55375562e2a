"""GrabCut on colour and depth: the segmenter that needs no weights.

As in C. Rother, V. Kolmogorov, A. Blake, "GrabCut", SIGGRAPH 2004: models of the object and of its surroundings are
fitted to a first guess, the image is cut by these models and its edges, and the cut is the next guess. Extensions:

- a radiance field renders depth, so depth has a model and edges as colour has;
- a click has no scale, so several guesses of growing size are cut, and the cuts are scored by their appearance;
- the mask rendered from earlier views, if any, gives the object's size and position.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
import torch
from jaxtyping import Float, Int
from skimage.graph import MCP_Geometric

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, check_prompt
from sa3d_nerfstudio.segmenters.grabcut.image_cues import Cues, Map, see
from sa3d_nerfstudio.segmenters.grabcut.placed_prompt import PlacedPrompt, place
from sa3d_nerfstudio.segmenters.grabcut.region_score import Region, Regions, best_regions, score_regions
from sa3d_nerfstudio.segmenters.grabcut.tv_cut import tv_cut

COARSE, FINE = 160, 320
"""Long sides, in pixels, of the images in which candidates are found and refined; more costs time and gains nothing."""
NUM_CANDIDATES = 3
SIZES = (0.0015, 0.004, 0.012, 0.03, 0.08)
"""Areas of the first guesses around a click, as shares of the image."""
SPREADS = (0.2, 0.45, 1.0, 2.0, 4.0)
"""Areas of the first guesses as multiples of the square that spans the positive points, if there are several."""
NARROW = 0.05
"""Least side of that square, as a share of the image's long side: closer points do not show the object's size."""
GROWTH = (0.6, 0.8, 1.0, 1.25, 1.6)
"""Areas of the first guesses as multiples of the object in the prior."""
FILLING = (0.2, 0.35, 0.5, 0.65, 0.8)
"""Areas of the first guesses as shares of the prompt's box."""
ROUNDS = 2
"""Rounds of fitting the models and cutting the image."""
STEPS, REFINING_STEPS = 60, 40
"""Steps of the solver in a cut, and in refining, which starts near the solution."""
STEP_COST = 0.1
"""Geodesic length of a pixel without an edge; a pixel on a strong edge is eleven times as long."""
EDGE_DISCOUNT = 2.0
"""A border on an edge of strength 1 costs exp(-2) of a border elsewhere."""
SURROUNDINGS = 0.4
"""Reach of the background model around a guess, in square roots of the guess's area."""
FAR_AWAY = 0.03
"""Weight of the rest of the image in the background model."""
UNSEEN = 0.01
"""Added to the share of every code in a model: codes absent from a region so far may still belong to it."""
MAX_EVIDENCE = 4.0
"""Limit of the log odds by models and distance."""
NEARNESS = 1.5
"""Weight of the geodesic distance from the prompt, relative to the models."""
TRUST = 2.0
"""Weight of the prior, relative to the models."""
SMOOTHNESS = 8.0
"""Cost of a unit of border away from any edge."""
SURE = 400.0
"""Cost of contradicting a click or the box, at each pixel."""
MOST_THREADS = 8
"""Largest number of threads by default: half of the work holds Python's lock."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class GrabCutEmbedding:
    """Embedding of an image: its cues at two sizes, which are the same if it is small."""

    height: int
    width: int
    coarse: Cues
    fine: Cues


class GrabCutSegmenter:
    """Segmenter by colour, depth and edges around the prompt.

    It runs on the CPU, with a thread for each of several images or prompts.

    Args:
        threads: Number of threads; by default one for each core, up to :data:`MOST_THREADS`.
    """

    fits_prior = True

    def __init__(self, threads: int | None = None) -> None:
        self.at_once = threads or min(available_cores(), MOST_THREADS)

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[GrabCutEmbedding]:
        """:meth:`embed` each."""
        return self._each(self.embed, images)

    def predict_all(self, questions: Sequence[tuple[GrabCutEmbedding, Prompt]]) -> list[Candidates]:
        """:meth:`predict` each."""
        return self._each(lambda question: self.predict(*question), questions)

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        if len(items) < 2 or self.at_once < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(min(len(items), self.at_once), thread_name_prefix="sa3d-grabcut") as pool:
            return list(pool.map(work, items))

    def embed(self, image: SegmenterImage) -> GrabCutEmbedding:
        """Compute edges and codes of the image at both sizes."""
        rgb = image.rgb.detach().float().clamp(0, 1).cpu().numpy()
        depth = None if image.depth is None else image.depth.detach().float().cpu().numpy()
        cues: dict[tuple[int, int], Cues] = {}
        sizes = [_fitting(image.height, image.width, side) for side in (COARSE, FINE)]
        for size in sizes:
            if size not in cues:
                small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
                # Depth is not averaged: a mean over two surfaces lies on neither.
                small_depth = None if depth is None else cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST_EXACT)
                cues[size] = see(small, small_depth)
        return GrabCutEmbedding(image.height, image.width, cues[sizes[0]], cues[sizes[1]])

    def predict(self, embedding: GrabCutEmbedding, prompt: Prompt) -> Candidates:
        """Predict three candidates, from small to large, scored by appearance and fit to the prompt.

        Raises:
            SA3DError: The prompt selects nothing or lies outside of the image.
        """
        check_prompt(prompt, embedding.height, embedding.width)
        coarse = place(prompt, embedding.coarse.shape)
        distance = _distance(embedding.coarse, coarse)
        reaches = _reaches(coarse, distance)
        regions = _cut_repeatedly(embedding.coarse, coarse, distance, reaches)
        scores = score_regions(embedding.coarse, coarse, regions)
        chosen = best_regions(regions, scores, NUM_CANDIDATES)
        regions, scores, reaches = regions[chosen], scores[chosen], reaches[chosen]
        if embedding.fine is not embedding.coarse:
            fine = place(prompt, embedding.fine.shape)
            regions = _refine(embedding.fine, fine, regions, distance, reaches)
        masks = _resized(regions, embedding.height, embedding.width) > 0.5
        return Candidates(torch.from_numpy(masks), torch.from_numpy(scores.astype(np.float32)))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fitting(height: int, width: int, side: int) -> tuple[int, int]:
    """Width and height of the image at a long side of at most ``side`` pixels."""
    scale = min(1.0, side / max(height, width))
    return max(round(width * scale), 1), max(round(height * scale), 1)


def _distance(cues: Cues, prompt: PlacedPrompt) -> Map:
    """Geodesic distance of each pixel from the positive points and the prior of a prompt; edges are far to cross.

    For a box alone, the distance from the box's centre; 1 at its border.
    """
    cost = STEP_COST + cues.edges
    start = np.zeros(prompt.shape, bool) if prompt.probable is None else prompt.probable.copy()
    for point in prompt.positive:
        start[point] = True
    if start.any():
        distance = _geodesic(cost, np.argwhere(start))
    else:
        assert prompt.inside is not None  # a prompt without points has a box
        (y0, x0), (y1, x1) = np.argwhere(prompt.inside).min(axis=0), np.argwhere(prompt.inside).max(axis=0) + 1
        y, x = np.indices(prompt.shape) + 0.5
        distance = np.maximum(np.abs(2 * x - x0 - x1) / (x1 - x0), np.abs(2 * y - y0 - y1) / (y1 - y0))
    if prompt.negative:
        nearer_to_negative = _geodesic(cost, np.asarray(prompt.negative)) < distance
        distance = np.where(nearer_to_negative, distance.max(), distance)
    return distance


def _geodesic(cost: Map, starts: Int[np.ndarray, "num 2"]) -> Map:
    distance, _ = MCP_Geometric(cost).find_costs(starts.tolist())
    return distance


def _reaches(prompt: PlacedPrompt, distance: Map) -> Float[np.ndarray, " num"]:
    """Distances up to which the first guesses reach."""
    ranked = np.sort(distance if prompt.inside is None else distance[prompt.inside], axis=None)
    if prompt.probable is not None:
        areas = np.array(GROWTH) * prompt.expected_area
    elif prompt.spread > 0 and prompt.inside is None:
        areas = np.array(SPREADS) * max(prompt.spread, NARROW * max(prompt.shape)) ** 2
    else:
        areas = np.array(SIZES if prompt.inside is None else FILLING) * len(ranked)
    return np.maximum(ranked[np.minimum(areas.astype(int), len(ranked) - 1)], 1e-6)


def _cut_repeatedly(cues: Cues, prompt: PlacedPrompt, distance: Map, reaches: Float[np.ndarray, " num"]) -> Regions:
    """Fit models and cut, in several rounds, from each of the first guesses."""
    soft = (distance < reaches[:, None, None]).astype(np.float32)
    for _ in range(ROUNDS):
        soft = tv_cut(_unaries(cues, prompt, soft > 0.5, distance, reaches), _border_cost(cues), soft, STEPS)
        soft *= np.stack([_meant(prompt, region) for region in soft > 0.5])
    return np.stack([_without_pinholes(region) for region in soft > 0.5])


def _refine(
    cues: Cues, prompt: PlacedPrompt, regions: Regions, distance: Map, reaches: Float[np.ndarray, " num"]
) -> Regions:
    """Cut once more in a larger image, starting from the regions in the small one."""
    soft, distance = _resized(regions, *prompt.shape), _resized(distance[None], *prompt.shape)[0]
    unaries = _unaries(cues, prompt, soft > 0.5, distance, reaches)
    refined = tv_cut(unaries, _border_cost(cues), soft, REFINING_STEPS) > 0.5
    return np.stack([_without_pinholes(region & _meant(prompt, region)) for region in refined])


def _unaries(
    cues: Cues, prompt: PlacedPrompt, regions: Regions, distance: Map, reaches: Float[np.ndarray, " num"]
) -> Float[np.ndarray, "num height width"]:
    """Cost of each pixel in a region: log odds of models fitted to the region and to its surroundings."""
    unaries = np.empty(regions.shape, np.float32)
    for unary, region, reach in zip(unaries, regions, reaches, strict=True):
        evidence = NEARNESS * np.clip(distance / reach - 1, -1, 2)
        decay_length = max(SURROUNDINGS * np.sqrt(region.sum()), 4.0)
        from_region = cv2.distanceTransform((~region).astype(np.uint8), cv2.DIST_L2, 3)
        outside = ~region * (np.exp(-from_region / decay_length) + FAR_AWAY)
        for codes in cues.codes:
            inner, outer = (codes.histogram(weight.astype(float)) + UNSEEN for weight in (region, outside))
            evidence += np.log(outer / inner)[codes.index]
        unary[:] = np.clip(evidence, -MAX_EVIDENCE, MAX_EVIDENCE)
    if prompt.log_odds is not None:
        unaries -= TRUST * prompt.log_odds
    if prompt.inside is not None:
        unaries[:, ~prompt.inside] = SURE
    for points, cost in ((prompt.positive, -SURE), (prompt.negative, SURE)):
        for y, x in points:
            unaries[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = cost
    return unaries


def _border_cost(cues: Cues) -> Map:
    """Cost of a unit of border at each pixel."""
    return SMOOTHNESS * (np.exp(-EDGE_DISCOUNT * cues.edges) + 0.01)


def _meant(prompt: PlacedPrompt, region: Region) -> Region:
    """Connected parts of a region under a positive point or the prior; without such points, also all not small."""
    label, areas = _parts(region)
    meant = np.zeros(len(areas), bool)
    if prompt.positive:
        meant[[label[point] for point in prompt.positive]] = True
    else:
        meant[1:] = areas[1:] > 0.2 * areas[1:].max(initial=0)
    if prompt.probable is not None:
        meant[np.unique(label[prompt.probable])] = True
    meant[0] = False
    return meant[label]


def _without_pinholes(region: Region) -> Region:
    """The region with small holes filled; a mug's handle keeps its hole."""
    label, areas = _parts(~region)
    small = areas < 0.01 * region.sum()
    small[0] = False
    return region | small[label]


def _parts(region: Region) -> tuple[Int[np.ndarray, "height width"], Int[np.ndarray, " num"]]:
    """Connected parts: the part of each pixel, and the area of each part. Part 0 is outside of the region."""
    _, label, stats, _ = cv2.connectedComponentsWithStats(region.astype(np.uint8), connectivity=4)
    return np.asarray(label), stats[:, cv2.CC_STAT_AREA]


def _resized(stack: np.ndarray, height: int, width: int) -> Float[np.ndarray, "num height width"]:
    """Images resized by linear interpolation."""
    return np.stack(
        [cv2.resize(image.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) for image in stack]
    )


def build(options: SegmenterOptions) -> GrabCutSegmenter:
    """Build the segmenter; it needs none of the options."""
    return GrabCutSegmenter()
