"""Lifting: how the mask of a view becomes evidence in the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.session_views import ViewKey
from sa3d_nerfstudio.traces.base import CachesAllRays, RayTrace, render_probability

LiftingName = Literal["evidence", "gradient"]
Weight = float | Float[Tensor, " num_rays"]


class Lifting(Protocol):
    """Gathers the masks of one pass over the views in a field."""

    field: MaskField

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Lift the mask of one view."""
        ...

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """Probability of the object along each ray, and whether the ray has evidence."""
        ...


class EvidenceLifting:
    """Density-guided inverse rendering as two sums: ``hit += Aᵀ m``, ``seen += Aᵀ 1``.

    Their quotient is the mean of the masks over all rays through a cell, without a step size or an order of views.
    """

    def __init__(self, field: MaskField) -> None:
        self.field = field

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Lift the mask of one view; ``weight`` is that of each ray, or of all rays."""
        weights = (weight if isinstance(weight, Tensor) else torch.full(mask.shape, weight, device=mask.device)).float()
        if isinstance(trace, CachesAllRays) and trace.keeps_all_rays:
            hit = trace.backproject(self.field, (weights * mask)[:, None])[:, 0]
            seen = self._seen(trace, trace.backproject_all(self.field), weight, weights)
        else:
            hit, seen = trace.backproject(self.field, torch.stack([weights * mask, weights], dim=-1)).unbind(-1)
        self.field.add(hit, seen)

    def _seen(self, trace: RayTrace, everything: Tensor, weight: Weight, counted: Float[Tensor, " num_rays"]) -> Tensor:
        """``Aᵀ w`` as ``max w · Aᵀ 1 - Aᵀ (max w - w)``, whose first term, the larger one, is kept by the trace."""
        if not isinstance(weight, Tensor):
            return weight * everything
        highest = weight.amax()
        lacking = trace.backproject(self.field, (highest - counted)[:, None])[:, 0]
        return (highest * everything - lacking).clamp(min=0)

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """Probability of the object along each ray, and whether the ray has evidence."""
        return render_probability(trace, self.field)


class GradientLifting:
    """The published update, kept as the baseline: one step of gradient descent per view.

    The loss is ``L = -Σ m M + λ Σ (1 - m) M`` with ``M = A V`` (SA3D, arXiv 2304.12308, section 3; values as in its
    code: learning rate 1, λ = 1), so the step is ``V += Aᵀ m - λ Aᵀ (1 - m)``, averaged in each cell over the views
    that have seen it. V has no bounds; a ray is on the object where M > 0.
    """

    def __init__(self, field: MaskField, negative_weight: float = 1.0) -> None:
        self.field = field
        self.negative_weight = negative_weight
        self.values = torch.zeros_like(field.hit)
        self.views_seen = torch.zeros_like(field.hit)

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Take the step of one view, scaled by ``weight``, which is the same for all rays."""
        pixels = mask.reshape(-1, 1).float()
        step, seen = trace.backproject(
            self.field, torch.cat([pixels - self.negative_weight * (1 - pixels), torch.ones_like(pixels)], dim=-1)
        ).unbind(-1)
        counts = self.views_seen + (seen > 0)
        self.values = torch.where(
            seen > 0, (self.values * self.views_seen + weight * step) / counts.clamp(min=1), self.values
        )
        self.views_seen = counts
        # The rest of the program reads probabilities from the field: V > 0 is more than a half.
        self.field.set(torch.sigmoid(self.values) * counts, counts)

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """``sigmoid(M)``, which exceeds a half where M > 0; known where a ray has weight in cells that a view saw."""
        cells = torch.stack([self.values, (self.views_seen > 0).float()], dim=-1)
        rendered, weight = trace.render(self.field, cells).unbind(-1)
        known = weight > 0
        return torch.where(known & (rendered != 0), torch.sigmoid(rendered), torch.zeros_like(rendered)), known


def make_lifting(name: LiftingName, field: MaskField) -> Lifting:
    """The lifting of this name, into a field."""
    return EvidenceLifting(field) if name == "evidence" else GradientLifting(field)


def field_change(before: MaskField, after: MaskField) -> float:
    """Relative L1 change: Σ |p' - p| / Σ max(p', p), each cell weighted by how much it has been seen.

    0 when nothing changed, 1 when the two objects have nothing in common. Both fields must have the same cells.
    """
    p, q = before.probability(), after.probability()
    seen = torch.maximum(before.seen, after.seen).clamp(max=1.0)
    changed, total = torch.stack([((p - q).abs() * seen).sum(), (torch.maximum(p, q) * seen).sum()]).tolist()
    return changed / total if total > 0 else 0.0


def changed_pixels(
    before: Mapping[ViewKey, Bool[Tensor, " num_rays"]], after: Mapping[ViewKey, Bool[Tensor, " num_rays"]]
) -> tuple[int, int]:
    """Number of pixels that have changed, Σ |m' - m|, and of pixels in either mask, Σ max(m', m), over all views.

    A missing mask is empty. Lifting is linear in the masks, ``|Aᵀ m' - Aᵀ m| <= Aᵀ |m' - m|``, so the same masks make
    the same field, wherever its cells have moved meanwhile.
    """
    counts = []
    for view in before.keys() | after.keys():
        masks = [by_view[view] for by_view in (before, after) if view in by_view]
        changed = masks[0] ^ masks[-1] if len(masks) == 2 else masks[0]
        counts.append(torch.stack([changed.sum(), (masks[0] | masks[-1]).sum()]))
    if not counts:
        return 0, 0
    # The host waits for all views once.
    changed, total = torch.stack(counts).sum(0).tolist()
    return changed, total
