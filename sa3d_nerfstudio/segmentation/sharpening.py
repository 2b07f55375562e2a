"""Sharpening: from the average of what each cell's rays say to the field whose renders are the masks."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.traces.base import RayTrace, render_probability


class Sharpening:
    """One sweep over the views that corrects a field by what its renders lack of their masks, or have too much.

    ``hit / seen`` is an average over rays: where rays that end on the object and rays that pass it share cells, as in
    leaves and at outlines, it is a blur. A step of the simultaneous iterative reconstruction technique (P. Gilbert,
    J. Theor. Biol. 36, 1972), ``p += Σ Aᵥᵀ (mᵥ - Aᵥ p) / Σ Aᵥᵀ 1``, kept within [0, 1], brings the renders closer to
    the masks in the sense of least squares. ``seen`` stays as it is.

    Args:
        field: Holds the evidence of these views; it is left alone until :meth:`finish`.
    """

    def __init__(self, field: MaskField) -> None:
        self.field = field
        self.correction = torch.zeros_like(field.hit)

    def add(self, trace: RayTrace, mask: Bool[Tensor, " num_rays"], weight: float = 1.0) -> None:
        """Compare the mask of one view with what the field renders there; it was lifted with that weight."""
        probability, known = render_probability(trace, self.field)
        missing = weight * (mask.to(probability) - probability) * known
        self.correction += trace.splat(self.field, missing[:, None])[:, 0]

    def finish(self) -> None:
        """Correct the field."""
        field = self.field
        field.set((field.hit + self.correction).clamp(min=0).minimum(field.seen), field.seen)
