"""The splat mask: evidence per splat of a Gaussian model."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField

NEIGHBORS_OF_STRAYS = 20
"""Neighbours whose mean distance marks a splat as stray."""
NEIGHBORS = 5
"""Well-seen neighbours that decide for a splat without evidence."""


class SplatMask(MaskField):
    """One cell per splat: the object is a set of splats.

    Args:
        positions: World positions of the splats, which the model holds: checkpoints do not store them
            twice.
    """

    positions: Float[Tensor, "num_cells 3"]

    def __init__(self, positions: Float[Tensor, "num_cells 3"]) -> None:
        super().__init__(len(positions))
        self.to(positions.device)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("center", torch.zeros_like(positions[:1].sum(0)))

    def fresh(self) -> SplatMask:
        """A field of the same splats with no evidence."""
        fresh = SplatMask(self.positions)
        fresh.center = self.center.clone()
        return fresh

    def prepare(self, surface: Float[Tensor, "num_points 3"], spacing: float) -> None:
        """Drop all evidence; the object's centre is the median of the points."""
        self.center = surface.median(dim=0).values.to(self.hit)
        self.set(torch.zeros_like(self.hit), torch.zeros_like(self.seen))

    def placed_again(self, spacing: float) -> SplatMask:
        """A field of the same splats with no evidence, centred on the object as segmented so far."""
        fresh = self.fresh()
        points, weights = self.object_points()
        if len(points):
            fresh.center = (points * weights[:, None]).sum(0) / weights.sum().clamp(min=1e-9)
        return fresh

    def resampled(self, place: SplatMask) -> SplatMask:
        """This field itself: splats have fixed places."""
        return self

    def copy_from(self, other: SplatMask) -> None:
        """Take over another field's evidence."""
        self.center = other.center.clone()
        self.set(other.hit.clone(), other.seen.clone())
        if other.logits is not None:
            self.set_logits(other.logits.clone())

    def object_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], Float[Tensor, " num"]]:
        """World positions of the splats on the object, with the weight of the rays on the object."""
        on = self.object_cells(threshold)
        return self.positions[on], self.hit[on]

    def main_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], float]:
        """World positions of the object's splats without stray ones; a splat's size does not count.

        Stray are those whose mean distance to their neighbours exceeds the mean of all by three standard deviations.
        """
        points, _ = self.object_points(threshold)
        places = points.cpu().numpy()
        if len(places) <= NEIGHBORS_OF_STRAYS:
            return points, 0.0
        neighbors = NearestNeighbors(n_neighbors=NEIGHBORS_OF_STRAYS).fit(places)
        distance = neighbors.kneighbors(places)[0].mean(axis=1)
        kept = distance <= distance.mean() + 3 * distance.std()
        return points[torch.from_numpy(kept).to(points.device)], 0.0

    def selected(self, threshold: float = 0.5) -> Bool[Tensor, " num_cells"]:
        """The splats that make up the object, including those without evidence of their own.

        What lies within an object's bounds and has too little evidence of its own, such as the splats beneath its
        surface, takes the probability of the well-seen splats nearest to it. Nothing beyond the bounds is the object.
        """
        return self.derived(("selected", threshold), lambda: self._select(threshold))

    def _select(self, threshold: float) -> Tensor:
        on = self.object_cells(threshold).clone()
        if not bool(on.any()):
            return on
        low, high = self.positions[on].amin(0), self.positions[on].amax(0)
        within = ((self.positions >= low) & (self.positions <= high)).all(-1)
        firm = self.seen > self.firm_evidence()
        # Neighbours just outside the bounds are background.
        margin = 0.1 * (high - low).max()
        around = ((self.positions >= low - margin) & (self.positions <= high + margin)).all(-1)
        unsure = (within & ~firm).nonzero()[:, 0]
        sure = (around & firm).nonzero()[:, 0]
        if len(unsure):
            known = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(sure))).fit(self.positions[sure].cpu().numpy())
            nearest = known.kneighbors(self.positions[unsure].cpu().numpy(), return_distance=False)
            neighbors = sure[torch.from_numpy(nearest).to(sure.device)]
            on[unsure] = self.probability()[neighbors].mean(-1) > threshold
        return on
