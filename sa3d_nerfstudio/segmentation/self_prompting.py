"""Self-prompting: the mask rendered in the next view says where to prompt the segmenter there."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.prompts.prompt import Prompt


def self_prompt(
    probability: Float[Tensor, "height width"],
    known: Bool[Tensor, "height width"],
    depth: Float[Tensor, "height width"],
    num_points: int = 3,
    threshold: float = 0.5,
) -> Prompt | None:
    """Choose positive points from a rendered mask.

    As published (SA3D, arXiv 2304.12308, "cross-view self-prompting"): the first point has the highest score
    ``s = M - threshold``; each further one maximises ``s(p) - min_q d(p, q) s(q)`` over the points q chosen before it,
    with d the distance in (y, x, depth), each normalised to [0, 1]: confident places, as long as they lie near to one
    that is already trusted. A square around each chosen point is blanked, and no point is taken where the mask says no.

    Args:
        probability: The rendered mask, 0 where nothing is known.
        known: Where there is evidence.
        depth: Rendered distance along each ray.
        num_points: At most this many points.
        threshold: Probability above which a pixel is on the object.

    Returns:
        The prompt, with the rendered mask as its prior (NaN where unknown), or None where the mask has no pixel above
        the threshold: then there is nothing to prompt from.
    """
    height, width = probability.shape
    score = probability - threshold
    available = (score > 0) & known
    area = int(available.sum())
    if area == 0:
        return None
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
    prior = torch.where(known, probability, torch.nan)
    return Prompt.from_points(height, width, positive=chosen, prior=prior.cpu())


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
) -> float:
    """IoU of a segmenter's mask and the rendered one, over the pixels where anything is known.

    Elsewhere the field has no opinion, and a view of the object's other side is no disagreement.
    """
    rendered = (probability > threshold) & known
    mask = mask & known
    union = int((mask | rendered).sum())
    return int((mask & rendered).sum()) / union if union else 0.0
