"""Self-prompting: the mask rendered in the next view says where to prompt the segmenter there."""

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
on the neighbour. The rendered mask's outline is a pixel or so from the true one."""
CLEARANCE_SHARE = 0.7
"""Where it is not, the least clearance as a share of the largest that there is."""
MOST_PLACES = 4096
"""Pixels among which points are chosen: of larger masks, so many that lie all over them, as the host compares each with
all points."""
APART = 2.5
"""Pixels between points, at least: nearer to each other, they say the same twice."""
AGREEMENT_WEIGHT = 3.0
"""How many times the agreement with the rendered mask counts beside a candidate's score."""
PROMPT_WEIGHT = 4.0
"""How many times what the user's views show of a view counts, where that is all of the object."""
SAME_SURFACE = 0.02
"""Share of the distance by which the surface that a view sees may differ from a 3D point that it shows."""


def self_prompt(
    probability: Float[Tensor, "height width"],
    known: Bool[Tensor, "height width"],
    depth: Float[Tensor, "height width"],
    num_points: int = 5,
    threshold: float = 0.5,
    rule: SelfPrompts = "spread",
) -> Prompt | None:
    """Choose positive points from a rendered mask, by one of two rules; see there.

    Args:
        probability: The rendered mask, 0 where nothing is known.
        known: Where there is evidence.
        depth: Rendered distance along each ray.
        num_points: At most this many points.
        threshold: Probability above which a pixel is on the object.
        rule: ``spread`` (:func:`spread_points`) or ``published`` (:func:`published_points`).

    Returns:
        The prompt, with the rendered mask as its prior (NaN where unknown), or None where the mask has no pixel above
        the threshold: then there is nothing to prompt from.
    """
    score = torch.where(known, probability - threshold, 0.0)
    if not bool((score > 0).any()):
        return None
    points = spread_points(score, num_points) if rule == "spread" else published_points(score, depth, num_points)
    height, width = probability.shape
    prior = torch.where(known, probability, torch.nan)
    return Prompt.from_points(height, width, positive=points, prior=prior.cpu())


def spread_points(score: Float[Tensor, "height width"], num_points: int) -> list[tuple[int, int]]:
    """Points all over the inside of a rendered mask.

    The first maximises score x distance to the outline; each further one lies as far as possible from those before
    (T. Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985), among pixels that keep off the
    outline. So the first lies where any network takes it for the object, and all together say how far that goes.

    Args:
        score: Probability less the threshold; positive on the object.
        num_points: At most this many points.

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
    eligible = eligible[:: math.ceil(len(eligible) / MOST_PLACES)]
    distance = np.full(len(eligible), np.inf)
    for _ in range(num_points - 1):
        distance = np.minimum(distance, np.linalg.norm(eligible - (chosen[-1][1], chosen[-1][0]), axis=1))
        farthest = int(distance.argmax())
        if distance[farthest] <= APART:
            break
        chosen.append((int(eligible[farthest, 1]), int(eligible[farthest, 0])))
    return chosen


def published_points(
    score: Float[Tensor, "height width"], depth: Float[Tensor, "height width"], num_points: int
) -> list[tuple[int, int]]:
    """Points as published (SA3D, arXiv 2304.12308, "cross-view self-prompting").

    The first point has the highest score ``s = M - threshold``; each further one maximises
    ``s(p) - min_q d(p, q) s(q)`` over the points q chosen before it, with d the distance in (y, x, depth), each
    normalised to [0, 1]: confident places, as long as they lie near to one that is already trusted. A square around
    each chosen point is blanked, and no point is taken where the mask says no.

    Args:
        score: Probability less the threshold; positive on the object.
        depth: Rendered distance along each ray.
        num_points: At most this many points.

    Returns:
        x, y of each point.
    """
    width = score.shape[1]
    available = score > 0
    area = int(available.sum())
    blank = max(int(math.sqrt(area / math.pi)) // 2, 2)
    place = _normalised_places(depth, available)
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
        cost = (place - place[y, x]).norm(dim=-1) * score[y, x]
        penalty = cost if penalty is None else torch.minimum(penalty, cost)
        available[max(y - blank, 0) : y + blank + 1, max(x - blank, 0) : x + blank + 1] = False
    return chosen


def points_in_view(
    places: Float[Tensor, "num 3"],
    trace: ViewTrace,
    camera_position: Float[Tensor, "3"],
    mask: Bool[Tensor, "height width"],
) -> Float[Tensor, "num_seen 2"]:
    """Where a view sees points on the surface of things.

    A point is found by the view's own rays, whatever its lens; it is seen where the surface that the radiance field
    renders there is the point's. Points at the outline of the object are left out: a pixel decides whether they are on
    it.

    Args:
        places: In the world.
        trace: Of the view.
        camera_position: Where the view was taken from.
        mask: The object in the view, by what is known of it.

    Returns:
        x, y of each point that is seen.
    """
    camera = camera_position.to(trace.depth)
    rays = torch.nn.functional.normalize(trace.surface_points() - camera, dim=-1)
    offset = places.to(camera) - camera
    distance = offset.norm(dim=-1, keepdim=True)
    cosine, index = (rays @ (offset / distance.clamp(min=1e-9)).T).nan_to_num(-1.0).max(dim=0)
    x, y = index % trace.width, index // trace.width
    # Beyond the border the nearest ray is farther away than its neighbours are.
    step = float((rays[:-1] * rays[1:]).sum(-1).nan_to_num(-1.0).median())
    seen = cosine >= min(2 * step - 1, step)
    seen &= (trace.depth.reshape(-1)[index] / distance[:, 0] - 1).abs() < SAME_SURFACE
    sides = [np.pad(side.cpu().numpy(), 1, mode="edge").astype(np.uint8) for side in (mask, ~mask)]
    away = np.maximum(*(cv2.distanceTransform(side, cv2.DIST_L2, 3)[1:-1, 1:-1] for side in sides))
    seen &= torch.from_numpy(away - 0.5 >= CLEARANCE).to(seen.device)[y, x]
    return torch.stack([x, y], dim=-1)[seen].float().cpu()


@dataclass
class Agreement:
    """How well candidates agree with what is known of the object; a number each."""

    plain: list[float]
    """IoU with the rendered mask."""
    certain: list[float]
    """The same where pixels count by how much is known there; see :func:`certainty_of`."""
    prompted: list[float]
    """Agreement with what the user's views show; see
    :meth:`sa3d_nerfstudio.segmentation.prompted_surface.PromptedSurface.agreement`."""


def best_agreeing(
    scores: Float[Tensor, " num_candidates"], agreement: Agreement, min_agreement: float, fits_prior: bool = False
) -> int | None:
    """The candidate that is best by its score and its agreement with what is known together.

    A network's favourite flips between a part, the object and more than it from view to view; what has been lifted so
    far says which of them is meant, and its word counts :data:`AGREEMENT_WEIGHT` times. What agrees best with a field
    that is too small is too small as well; so what the user's views show counts besides, :data:`PROMPT_WEIGHT` times.

    Args:
        scores: The network's own; what lies outside of [0, 1] counts as 0 or 1.
        agreement: Of the candidates.
        min_agreement: Candidates whose plain agreement is less are out of the question.
        fits_prior: Whether the scores tell how well candidates fit the rendered mask; see :func:`merits_of`.

    Returns:
        Its index; None where no candidate agrees.
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
    """What candidates are ranked by.

    Args:
        scores: The segmenter's own.
        certain: Agreement with the rendered mask, as :class:`Agreement` has it.
        prompted: Agreement with the user's views.
        fits_prior: Whether the scores tell of the first already. It would count twice, and what is too much in the
            rendered mask would grow from view to view. The user's views are news to them, and count as much as they.
    """
    if fits_prior:
        return scores.clamp(0, 1) + prompted
    return scores.clamp(0, 1) + AGREEMENT_WEIGHT * certain + PROMPT_WEIGHT * prompted


def _normalised_places(depth: Float[Tensor, "height width"], on: Bool[Tensor, "height width"]) -> Tensor:
    """(y, x, depth) of each pixel, each in [0, 1] over the image; depth over the object, which is what matters."""
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
    """IoU of a segmenter's mask and the rendered one, over the pixels where anything is known.

    Elsewhere the field has no opinion, and a view of the object's other side is no disagreement.

    Args:
        mask: The segmenter's.
        probability: The rendered mask.
        known: Where there is evidence.
        threshold: Probability above which a pixel is on the object.
        certainty: How much each pixel counts; by default all the same. See :func:`certainty_of`.
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
    """Union and intersection of masks and the rendered one, whose quotient is :func:`agreement`, where masks are."""
    rendered = (probability > threshold) & known
    weight = known.float() if certainty is None else certainty * known
    sums = [(weight * part).flatten(1).sum(1) for part in (masks | rendered, masks & rendered)]
    return torch.stack(sums, dim=-1)


def certainty_of(
    trace: RayTrace, field: MaskField, rendered: Bool[Tensor, "height width"]
) -> Float[Tensor, "height width"]:
    """How much is known at each pixel, compared to what is known of the object: evidence along its ray.

    While few views have been lifted, the sides of the object that they did not see have been grazed by rays that passed
    it. That little says that they are not the object, and should not be believed as what has been looked at squarely.

    Args:
        trace: Of the view.
        field: What has been lifted.
        rendered: The object in the view, by what has been lifted.

    Returns:
        In [0, 1]; 1 where at least as much is known as in the middle of the object.
    """
    seen = trace.render(field, field.seen[:, None])[:, 0].reshape(rendered.shape)
    # As a median of what is rendered would be, but for a wait for the device.
    usual = torch.where(rendered, seen, torch.nan).nanmedian()
    usual = torch.where(usual.isnan(), seen.amax(), usual)
    return (seen / usual.clamp(min=1e-12)).clamp(max=1)
