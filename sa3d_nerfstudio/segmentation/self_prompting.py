"""Self-prompting: the mask rendered in the next view becomes the prompt for the segmenter there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.traces.base import RayTrace, ViewTrace

SelfPrompts = Literal["spread", "published"]

CLEARANCE = 3.5
"""Pixels between a point and the outline, where the object is wide enough: nearer, a network may take the point for one
on the neighbouring object. The rendered mask's outline is a pixel or so from the true one."""
CLEARANCE_SHARE = 0.7
"""Least clearance in narrower objects, as a share of their largest."""
MAX_POINT_PIXELS = 4096
"""Pixels among which points are chosen, at most, spread over the mask: the host compares each pixel with all points."""
MIN_POINT_DISTANCE = 2.5
"""Pixels between points, at least: nearer points are redundant."""
AGREEMENT_WEIGHT = 3.0
"""Weight of a candidate's agreement with the rendered mask, relative to its score."""
PROMPT_WEIGHT = 4.0
"""Weight of a candidate's agreement with the prompted views, relative to its score, where these show all of the
object."""
SAME_SURFACE = 0.02
"""Difference between the distances of a 3D point and of the surface rendered at its pixel up to which the point is
visible, as a share of the point's distance."""


def self_prompt(
    probability: Float[Tensor, "height width"],
    known: Bool[Tensor, "height width"],
    depth: Float[Tensor, "height width"],
    num_points: int = 5,
    threshold: float = 0.5,
    rule: SelfPrompts = "spread",
) -> Prompt | None:
    """Choose positive points from a rendered mask, by one of two rules.

    Args:
        probability: Rendered mask, 0 where there is no evidence.
        known: Pixels with evidence.
        depth: Rendered distance along each ray.
        num_points: Number of points, at most.
        threshold: Probability above which a pixel is on the object.
        rule: ``spread`` (:func:`spread_points`) or ``published`` (:func:`published_points`).

    Returns:
        The prompt, with the rendered mask as its prior (NaN where unknown); None where the mask has no pixel above the
        threshold.
    """
    score = torch.where(known, probability - threshold, 0.0)
    if not bool((score > 0).any()):
        return None
    points = spread_points(score, num_points) if rule == "spread" else published_points(score, depth, num_points)
    height, width = probability.shape
    prior = torch.where(known, probability, torch.nan)
    return Prompt.from_points(height, width, positive=points, prior=prior.cpu())


def spread_points(score: Float[Tensor, "height width"], num_points: int) -> list[tuple[int, int]]:
    """Choose points all over the inside of a rendered mask.

    The first maximises score x distance to the outline; each further one lies as far as possible from those before
    (T. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), among pixels with clearance from
    the outline. Any network takes the first point for the object, and all points together cover the object's extent.

    Args:
        score: Probability less the threshold; positive on the object.
        num_points: Number of points, at most.

    Returns:
        x, y of each point; fewer where there is no room for more.
    """
    values = score.detach().float().cpu().numpy()
    inside = np.pad(values > 0, 1).astype(np.uint8)
    # The outline lies between two pixels, and a pixel's centre at least half of one from it.
    clearance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1] - 0.5
    worth = np.maximum(values, 0) * clearance
    y, x = np.unravel_index(int(worth.argmax()), worth.shape)
    chosen = [(int(x), int(y))]
    eligible = np.argwhere(clearance >= min(CLEARANCE, CLEARANCE_SHARE * float(clearance.max())))
    eligible = eligible[:: math.ceil(len(eligible) / MAX_POINT_PIXELS)]
    distance = np.full(len(eligible), np.inf)
    for _ in range(num_points - 1):
        distance = np.minimum(distance, np.linalg.norm(eligible - (chosen[-1][1], chosen[-1][0]), axis=1))
        farthest = int(distance.argmax())
        if distance[farthest] <= MIN_POINT_DISTANCE:
            break
        chosen.append((int(eligible[farthest, 1]), int(eligible[farthest, 0])))
    return chosen


def published_points(
    score: Float[Tensor, "height width"], depth: Float[Tensor, "height width"], num_points: int
) -> list[tuple[int, int]]:
    """Choose points as published (SA3D, arXiv 2304.12308, "cross-view self-prompting").

    The first point has the highest score ``s = M - threshold``; each further one maximises
    ``s(p) - min_q d(p, q) s(q)`` over the points q chosen before it, with d the distance in (y, x, depth), each
    normalised to [0, 1]: confident pixels near a point that is already trusted. A square around each chosen point is
    blanked, and all points lie on the mask.

    Args:
        score: Probability less the threshold; positive on the object.
        depth: Rendered distance along each ray.
        num_points: Number of points, at most.

    Returns:
        x, y of each point.
    """
    width = score.shape[1]
    available = score > 0
    area = int(available.sum())
    blank = max(int(math.sqrt(area / math.pi)) // 2, 2)
    coordinates = _normalised_places(depth, available)
    chosen: list[tuple[int, int]] = []
    penalty: Tensor | None = None
    for _ in range(num_points):
        objective = score if penalty is None else score - penalty
        objective = torch.where(available, objective, -torch.inf)
        index = int(objective.argmax())
        if not objective.flatten()[index] > 0:
            break
        y, x = divmod(index, width)
        chosen.append((x, y))
        cost = (coordinates - coordinates[y, x]).norm(dim=-1) * score[y, x]
        penalty = cost if penalty is None else torch.minimum(penalty, cost)
        available[max(y - blank, 0) : y + blank + 1, max(x - blank, 0) : x + blank + 1] = False
    return chosen


def points_in_view(
    places: Float[Tensor, "num 3"],
    trace: ViewTrace,
    camera_position: Float[Tensor, "3"],
    mask: Bool[Tensor, "height width"],
) -> Float[Tensor, "num_seen 2"]:
    """Pixels of the surface points that are visible in a view.

    A point's pixel is that of the nearest ray of the view, whatever its lens; the point is visible where the surface
    that the radiance field renders there is at its distance. Points at the outline of the object are left out, as an
    error of one pixel would move them across it.

    Args:
        places: World position of each point.
        trace: Trace of the view.
        camera_position: World position of the camera.
        mask: Rendered mask of the object in the view.

    Returns:
        x, y of each visible point.
    """
    camera = camera_position.to(trace.depth)
    rays = torch.nn.functional.normalize(trace.surface_points() - camera, dim=-1)
    offset = places.to(camera) - camera
    distance = offset.norm(dim=-1, keepdim=True)
    towards = offset / distance.clamp(min=1e-9)
    # In double precision and without a matrix product, which CUDA may compute with mantissas of 10 bits: pixels apart.
    products = (ray[:, None].double() * point.double() for ray, point in zip(rays.T, towards.T, strict=True))
    cosine, index = sum(products, start=rays.new_zeros(())).nan_to_num(-1.0).max(dim=0)
    x, y = index % trace.width, index // trace.width
    # Outside of the image, the nearest ray is farther from a point than neighbouring rays are from each other.
    step = float((rays[:-1] * rays[1:]).sum(-1).nan_to_num(-1.0).median())
    seen = cosine >= min(2 * step - 1, step)
    seen &= (trace.depth.reshape(-1)[index] / distance[:, 0] - 1).abs() < SAME_SURFACE
    sides = [np.pad(side.cpu().numpy(), 1, mode="edge").astype(np.uint8) for side in (mask, ~mask)]
    clearance = np.maximum(*(cv2.distanceTransform(side, cv2.DIST_L2, 3)[1:-1, 1:-1] for side in sides))
    seen &= torch.from_numpy(clearance - 0.5 >= CLEARANCE).to(seen.device)[y, x]
    return torch.stack([x, y], dim=-1)[seen].float().cpu()


@dataclass
class Agreement:
    """Agreement of each candidate with the rendered mask and with the prompted views."""

    plain: list[float]
    """IoU with the rendered mask."""
    certain: list[float]
    """IoU with the rendered mask, pixels weighted by :func:`certainty_of`."""
    prompted: list[float]
    """Agreement with the surface that the prompted views show; see
    :meth:`sa3d_nerfstudio.segmentation.prompted_surface.PromptedSurface.agreement`."""


def best_agreeing(
    scores: Float[Tensor, " num_candidates"], agreement: Agreement, min_agreement: float, fits_prior: bool = False
) -> int | None:
    """Choose the candidate that is best by its score and its agreement together.

    A network's favourite flips between a part, the object and more than it from view to view; agreement with the
    rendered mask, weighted by :data:`AGREEMENT_WEIGHT`, decides between them. The candidate that agrees best with a
    field that is too small is too small as well, so agreement with the prompted views is added, weighted by
    :data:`PROMPT_WEIGHT`.

    Args:
        scores: Scores by the network, clamped to [0, 1].
        agreement: Agreement of the candidates.
        min_agreement: Least plain agreement of a candidate that may be chosen.
        fits_prior: Whether the scores measure how well candidates fit the rendered mask; see :func:`merits_of`.

    Returns:
        Index of the candidate; None where no candidate agrees.
    """
    agrees = torch.tensor(agreement.plain) >= min_agreement
    merits = merits_of(scores.cpu(), torch.tensor(agreement.certain), torch.tensor(agreement.prompted), fits_prior)
    return int(torch.where(agrees, merits, -torch.inf).argmax()) if bool(agrees.any()) else None


def merits_of(
    scores: Float[Tensor, " num"],
    certain: Float[Tensor, " num"],
    prompted: Float[Tensor, " num"],
    fits_prior: bool = False,
) -> Float[Tensor, " num"]:
    """Merits by which candidates are ranked.

    Args:
        scores: Scores by the segmenter.
        certain: Agreement with the rendered mask; see :class:`Agreement`.
        prompted: Agreement with the prompted views.
        fits_prior: Whether the scores contain agreement with the rendered mask. It would count twice, and excess in the
            rendered mask would grow from view to view. The scores do not contain agreement with the prompted views,
            which has the same weight as they have.
    """
    if fits_prior:
        return scores.clamp(0, 1) + prompted
    return scores.clamp(0, 1) + AGREEMENT_WEIGHT * certain + PROMPT_WEIGHT * prompted


def _normalised_places(depth: Float[Tensor, "height width"], on: Bool[Tensor, "height width"]) -> Tensor:
    """(y, x, depth) of each pixel, y and x in [0, 1] over the image, depth in [0, 1] over the object."""
    height, width = depth.shape
    rows = torch.arange(height, device=depth.device) / height
    columns = torch.arange(width, device=depth.device) / width
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    near, far = depth[on].min(), depth[on].max()
    z = ((depth - near) / (far - near).clamp(min=1e-9)).clamp(0, 1)
    return torch.stack([y, x, z], dim=-1)


def agreement(
    mask: Bool[Tensor, "height width"],
    probability: Float[Tensor, "height width"],
    known: Bool[Tensor, "height width"],
    threshold: float = 0.5,
    certainty: Float[Tensor, "height width"] | None = None,
) -> float:
    """IoU of a segmenter's mask and the rendered one, over the pixels with evidence.

    Pixels without evidence are left out, so that a view of the object's other side does not disagree.

    Args:
        mask: The segmenter's mask.
        probability: Rendered mask.
        known: Pixels with evidence.
        threshold: Probability above which a pixel is on the object.
        certainty: Weight of each pixel, see :func:`certainty_of`; by default equal weights.
    """
    ((union, common),) = overlaps(mask[None], probability, known, threshold, certainty).tolist()
    return common / union if union else 0.0


def overlaps(
    masks: Bool[Tensor, "num height width"],
    probability: Float[Tensor, "height width"],
    known: Bool[Tensor, "height width"],
    threshold: float = 0.5,
    certainty: Float[Tensor, "height width"] | None = None,
) -> Float[Tensor, "num 2"]:
    """Union and intersection of each mask with the rendered one, on their device; see :func:`agreement`."""
    rendered = (probability > threshold) & known
    weight = known.float() if certainty is None else certainty * known
    sums = [(weight * region).flatten(1).sum(1) for region in (masks | rendered, masks & rendered)]
    return torch.stack(sums, dim=-1)


def certainty_of(
    trace: RayTrace, field: MaskField, rendered: Bool[Tensor, "height width"]
) -> Float[Tensor, "height width"]:
    """Certainty of each pixel: evidence along its ray, relative to the evidence of the object.

    While few views have been lifted, the sides of the object that these views do not see have been grazed by rays that
    passed it. That little evidence is against the object, and must weigh less than evidence of sides seen squarely.

    Args:
        trace: Trace of the view.
        field: Field that holds the evidence.
        rendered: Rendered mask of the object in the view.

    Returns:
        Values in [0, 1]; 1 where there is at least as much evidence as at the object's median pixel.
    """
    seen = trace.render(field, field.seen[:, None])[:, 0].reshape(rendered.shape)
    # The median of seen[rendered], without a wait for the device.
    median = torch.where(rendered, seen, torch.nan).nanmedian()
    median = torch.where(median.isnan(), seen.amax(), median)
    return (seen / median.clamp(min=1e-12)).clamp(max=1)
