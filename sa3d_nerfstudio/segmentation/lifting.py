"""Lifting: how the mask of a view becomes evidence in the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.session_views import ViewKey
from sa3d_nerfstudio.traces.base import KeepsAllRays, RayTrace, render_probability

LiftingName = Literal["evidence", "gradient"]
Weight = float | Float[Tensor, " num_rays"]


class Lifting(Protocol):
    """Gathers the masks of one pass over the views in a field."""

    field: MaskField

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Lift the mask of one view."""
        ...

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """The probability of the object along rays, and where anything is known."""
        ...


class EvidenceLifting:
    """Density-guided inverse rendering as two sums: ``hit += Aᵀ m``, ``seen += Aᵀ 1``.

    Their quotient is what all rays through a cell say on average; there is no step size, and no order of views.
    """

    def __init__(self, field: MaskField) -> None:
        self.field = field

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Lift the mask of one view, counted ``weight`` times, as a whole or ray by ray."""
        counted = torch.as_tensor(weight, dtype=torch.float32, device=mask.device).expand(mask.shape)
        if isinstance(trace, KeepsAllRays) and trace.keeps_all_rays:
            hit = trace.backproject(self.field, (counted * mask)[:, None])[:, 0]
            seen = self._seen(trace, trace.backproject_all(self.field), weight, counted)
        else:
            hit, seen = trace.backproject(self.field, torch.stack([counted * mask, counted], dim=-1)).unbind(-1)
        self.field.add(hit, seen)

    def _seen(self, trace: RayTrace, everything: Tensor, weight: Weight, counted: Float[Tensor, " num_rays"]) -> Tensor:
        """``Aᵀ w``, most of which does not depend on the mask: what all rays give, less what some of them lack."""
        if not isinstance(weight, Tensor):
            return weight * everything
        most = weight.amax()
        lacking = trace.backproject(self.field, (most - counted)[:, None])[:, 0]
        return (most * everything - lacking).clamp(min=0)

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """The probability of the object along rays, and where anything is known."""
        return render_probability(trace, self.field)


class GradientLifting:
    """The published update, kept as the baseline: one step of gradient descent per view.

    The loss is ``L = -Σ m M + λ Σ (1 - m) M`` with ``M = A V`` (SA3D, arXiv 2304.12308, section 3; figures as in its
    code: learning rate 1, λ = 1), so the step is ``V += Aᵀ m - λ Aᵀ (1 - m)``, averaged in each cell over the views
    that have seen it. V has no bounds; a ray is on the object where M > 0.
    """

    def __init__(self, field: MaskField, negative_weight: float = 1.0) -> None:
        self.field = field
        self.negative_weight = negative_weight
        self.values = torch.zeros_like(field.hit)
        self.views_seen = torch.zeros_like(field.hit)

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: Weight = 1.0) -> None:
        """Take the step of one view, ``weight`` times as long; the same for all rays."""
        pixels = mask.reshape(-1, 1).float()
        step, seen = trace.backproject(
            self.field, torch.cat([pixels - self.negative_weight * (1 - pixels), torch.ones_like(pixels)], dim=-1)
        ).unbind(-1)
        now = self.views_seen + (seen > 0)
        self.values = torch.where(
            seen > 0, (self.values * self.views_seen + weight * step) / now.clamp(min=1), self.values
        )
        self.views_seen = now
        # The field that the rest of the program reads holds probabilities: V > 0 is more than a half.
        self.field.set(torch.sigmoid(self.values) * now, now)

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """``sigmoid(M)``, which exceeds a half where M > 0; known wherever any of the weight has met a view."""
        cells = torch.stack([self.values, (self.views_seen > 0).float()], dim=-1)
        rendered, weight = trace.render(self.field, cells).unbind(-1)
        known = weight > 0
        return torch.where(known & (rendered != 0), torch.sigmoid(rendered), torch.zeros_like(rendered)), known


def make_lifting(name: LiftingName, field: MaskField) -> Lifting:
    """The lifting of that name, into a field."""
    return EvidenceLifting(field) if name == "evidence" else GradientLifting(field)


def field_change(before: MaskField, after: MaskField) -> float:
    """Relative L1 change: Σ |p' - p| / Σ max(p', p), each cell weighted by how much it has been seen.

    0 when nothing changed, 1 when the two objects have nothing in common. Both fields must have the same cells.
    """
    p, q = before.probability(), after.probability()
    seen = torch.maximum(before.seen, after.seen).clamp(max=1.0)
    changed, total = torch.stack([((p - q).abs() * seen).sum(), (torch.maximum(p, q) * seen).sum()]).tolist()
    return changed / total if total > 0 else 0.0


def masks_change(
    before: Mapping[ViewKey, Bool[Tensor, " num_rays"]], after: Mapping[ViewKey, Bool[Tensor, " num_rays"]]
) -> float:
    """Relative L1 change of the masks of all views, Σ |m' - m| / Σ max(m', m); one that is missing is empty.

    What is lifted is linear in the masks, ``|Aᵀ m' - Aᵀ m| <= Aᵀ |m' - m|``, so the same masks make the same field,
    wherever its cells have moved meanwhile.
    """
    changed, total = changed_pixels(before, after)
    return changed / total if total else 0.0


def changed_pixels(
    before: Mapping[ViewKey, Bool[Tensor, " num_rays"]], after: Mapping[ViewKey, Bool[Tensor, " num_rays"]]
) -> tuple[int, int]:
    """How many pixels have changed, Σ |m' - m|, and of how many, Σ max(m', m)."""
    counts = []
    for view in before.keys() | after.keys():
        masks = [masks[view] for masks in (before, after) if view in masks]
        changed = masks[0] ^ masks[-1] if len(masks) == 2 else masks[0]
        counts.append(torch.stack([changed.sum(), (masks[0] | masks[-1]).sum()]))
    if not counts:
        return 0, 0
    # The host waits for all views once.
    changed, total = torch.stack(counts).sum(0).tolist()
    return changed, total
