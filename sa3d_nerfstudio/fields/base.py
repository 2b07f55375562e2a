"""Evidence per cell, the state of a segmented object."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import Self

MIN_EVIDENCE = 1e-3
"""Weight of rays below which a cell counts as never seen. One ray that ends in a cell leaves about 1."""
FIRM = 0.02
"""Evidence below which a cell is not trusted by itself, as a share of that at the object's median cell."""
SHARPNESS = 8.0
"""Logits per unit of probability when averages become logits: from -4, where no ray is on the object, to 4."""
LIGHT_LOGIT = -SHARPNESS / 2
"""Logit of light that passes everything, which is known not to be the object."""
FAR_LOGIT = -2.0
"""Highest logit of a cell that is too far out to belong to the object."""


class MaskField(nn.Module):
    """Evidence for each cell, as two sums over all rays of all accepted views.

    ``hit`` is the weight of the rays that lie on the object, ``seen`` that of all rays: ``hit = Σ Aᵥᵀ mᵥ`` and
    ``seen = Σ Aᵥᵀ 1``, with ``Aᵥ`` the trace of view v. ``hit / seen`` is the mean of their masks, in [0, 1].
    A cell with no evidence is unknown, which differs from "not the object".

    A field that has been fitted to its masks (:mod:`sa3d_nerfstudio.segmentation.likelihood`) also holds a logit per
    cell, from which all probabilities are then read. New evidence drops the logits.

    Cells are voxels or splats; subclasses define their places in space.
    """

    hit: Float[Tensor, " num_cells"]
    seen: Float[Tensor, " num_cells"]
    logits: Float[Tensor, " num_cells"] | None
    """Log odds of the object in each cell; None if the field has evidence only. Absent in older checkpoints."""
    center: Float[Tensor, "3"]
    """Approximate centre of the object, world space."""

    def __init__(self, num_cells: int) -> None:
        super().__init__()
        self.register_buffer("hit", torch.zeros(num_cells))
        self.register_buffer("seen", torch.zeros(num_cells))
        self.register_buffer("logits", None)
        self.version = 0
        """Number of changes so far."""
        self._derived: dict[Any, tuple[int, Tensor]] = {}

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return self.hit.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of the evidence in bytes, about the same as in a checkpoint."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers(recurse=False))

    @property
    def is_empty(self) -> bool:
        """Whether no cell has evidence of the object."""
        return not bool(self.derived("highest average", self._highest_average) > 0)

    def holds_object(self, threshold: float) -> bool:
        """Whether the probability of any cell exceeds the threshold."""
        return bool(self.derived("highest", self._highest) > threshold)

    def _highest(self) -> Tensor:
        return self.probability().amax()

    def _highest_average(self) -> Tensor:
        return self.average().amax()

    def derived(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        """A tensor computed from the evidence, cached until the evidence changes or moves to another device.

        Renders need the same few tensors for every chunk of rays.
        """
        entry = self._derived.get(key)
        if entry is None or entry[0] != self.version or entry[1].device != self.center.device:
            entry = self._derived[key] = (self.version, compute())
        return entry[1]

    def forget_derived(self) -> None:
        """Drop all derived tensors, which are several times as large as the evidence."""
        self._derived.clear()

    def rest(self) -> None:
        """Reduce memory until the field is used again; that use may take a little longer."""
        self.forget_derived()

    def add(self, hit: Float[Tensor, " num_cells"], seen: Float[Tensor, " num_cells"]) -> None:
        """Add the evidence of one view."""
        self.hit += hit
        self.seen += seen
        self.set_logits(None)

    def set(self, hit: Float[Tensor, " num_cells"], seen: Float[Tensor, " num_cells"]) -> None:
        """Replace all evidence."""
        self.hit, self.seen = hit, seen
        self.set_logits(None)

    def set_logits(self, logits: Float[Tensor, " num_cells"] | None) -> None:
        """Replace the logits, or drop them (None), so that the evidence is used."""
        self.logits = logits
        self.version += 1

    def cells(self) -> Float[Tensor, "num_cells 2"]:
        """Channels that mask renders composite: the logit, or else the probability, and 1 where there is evidence."""
        return self.derived("cells", self._cells)

    def _cells(self) -> Tensor:
        known = self.known()
        values = self.rendered_average() if self.logits is None else torch.where(known, self.logits, 0.0)
        return torch.stack([values, known.float()]).T

    def composited(self, mean: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability of a ray from the mean of :meth:`cells` along it."""
        return mean.clamp(0, 1) if self.logits is None else mean.sigmoid()

    def level(self, threshold: float) -> float:
        """Mean of :meth:`cells` along a ray above which the ray's probability exceeds the threshold."""
        if self.logits is None:
            return threshold
        inside = min(max(threshold, 1e-6), 1 - 1e-6)
        return math.log(inside / (1 - inside))

    @property
    def light(self) -> float:
        """Value of light that passes everything in the mean along a ray."""
        return 0.0 if self.logits is None else LIGHT_LOGIT

    def start_logits(self) -> Float[Tensor, " num_cells"]:
        """Logits whose renders have the outline of those of the evidence: ``SHARPNESS (p - 1/2)``, 0 if unknown."""
        return torch.where(self.known(), SHARPNESS * (self.rendered_average() - 0.5), 0.0)

    def bounded(self, logits: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_cells"]:
        """The logits, limited to ``FAR_LOGIT`` in cells too far out to belong to the object."""
        return torch.where(self._near(), logits, logits.clamp(max=FAR_LOGIT))

    def logits_without_strays(self) -> Float[Tensor, " num_cells"] | None:
        """The logits with cells that float apart from the object removed from it; unchanged by default."""
        return self.logits

    def rendered_average(self) -> Float[Tensor, " num_cells"]:
        """The average that mask renders composite: 0 in cells too far out to belong to the object."""
        return self.average() * self._near()

    def _near(self) -> Bool[Tensor, " num_cells"]:
        """Which cells are near enough to belong to the object."""
        raise NotImplementedError

    def known(self) -> Bool[Tensor, " num_cells"]:
        """Which cells any view has seen."""
        return self.seen > MIN_EVIDENCE

    def probability(self) -> Float[Tensor, " num_cells"]:
        """Probability of the object in each cell; 0 where there is no evidence."""
        if self.logits is None:
            return self.average()
        return torch.where(self.known(), self.logits.sigmoid(), 0.0)

    def average(self) -> Float[Tensor, " num_cells"]:
        """``hit / seen``; 0 where there is no evidence."""
        return torch.where(self.known(), self.hit / self.seen.clamp(min=MIN_EVIDENCE), 0.0)

    def firm_evidence(self) -> float | Tensor:
        """Evidence that a cell needs to be trusted by itself: ``FIRM`` times that of the object's median cell.

        Cells are weighted by ``hit`` in the median. On a GPU it is a tensor there, for which the host does not wait.
        """
        on = self.probability() > 0.5
        if on.is_cuda:
            seen, order = torch.where(on, self.seen, torch.inf).sort()
            mass = torch.where(on, self.hit, 0.0)[order].cumsum(0)
            middle = torch.searchsorted(mass, mass[-1:] / 2).clamp(max=len(seen) - 1)
            firm = (FIRM * seen[middle][0]).clamp(min=MIN_EVIDENCE)
            return torch.where(on.any(), firm, MIN_EVIDENCE)
        if not bool(on.any()):
            return MIN_EVIDENCE
        seen, order = self.seen[on].sort()
        mass = self.hit[on][order].cumsum(0)
        middle = int(torch.searchsorted(mass, mass[-1] / 2).clamp(max=len(seen) - 1))
        return max(MIN_EVIDENCE, FIRM * float(seen[middle]))

    def object_cells(self, threshold: float = 0.5) -> Bool[Tensor, " num_cells"]:
        """The cells of the object: with a probability above the threshold, firm evidence, and near it.

        The tails of rays that end on the object reach cells far behind it, and mark them as object where no view has
        seen them better. Such cells weigh next to nothing in a render, but would spoil bounds and exports.
        """
        return self.derived(
            ("object", threshold),
            lambda: (self.probability() > threshold) & (self.seen > self.firm_evidence()) & self._near(),
        )

    def fresh(self) -> Self:
        """A field with the same cells and no evidence."""
        raise NotImplementedError

    def prepare(self, surface: Float[Tensor, "num_points 3"], spacing: float) -> None:
        """Drop all evidence, and place the cells around an object.

        Args:
            surface: World positions of points on the prompted side of the object.
            spacing: Distance between the rays of neighbouring pixels at the object.
        """
        raise NotImplementedError

    def placed_again(self, spacing: float) -> Self:
        """An empty field with its cells placed around the object as segmented so far.

        Args:
            spacing: Distance between the rays of neighbouring pixels at the object.
        """
        raise NotImplementedError

    def cells_place(self) -> tuple[int, dict[str, Tensor]]:
        """Number of cells, and the tensors that determine their positions, for :meth:`place_as` of another field."""
        evidence = ("hit", "seen", "logits")
        return self.num_cells, {name: value for name, value in self.state_dict().items() if name not in evidence}

    def place_as(self, place: tuple[int, dict[str, Tensor]]) -> None:
        """Drop all evidence, and place the cells like another field's; see :meth:`cells_place`."""
        num_cells, tensors = place
        for name, tensor in tensors.items():
            setattr(self, name, tensor.to(self.hit).clone())
        self.set(self.hit.new_zeros(num_cells), self.hit.new_zeros(num_cells))

    def same_cells(self, other: Self) -> bool:
        """Whether the other field has the same cells."""
        return self.num_cells == other.num_cells

    def with_room_for(self, surface: Float[Tensor, "num_points 3"], spacing: float, num_views: int) -> Self:
        """The same evidence, in cells that are fine enough at the surface of a further prompt.

        Args:
            surface: World positions of points on the prompted surface.
            spacing: Distance between the rays of neighbouring pixels at that surface.
            num_views: Number of views that the evidence comes from.
        """
        return self

    def resampled(self, place: Self) -> Self:
        """This field's evidence in the cells of another."""
        raise NotImplementedError

    def copy_from(self, other: Self) -> None:
        """Take over another field's cells and evidence."""
        raise NotImplementedError

    def probability_at(self, positions: Float[Tensor, "*batch 3"], threshold: float = 0.5) -> Float[Tensor, "*batch 1"]:
        """Probability that world positions belong to the object, for fields whose cells are interpolated."""
        raise NotImplementedError

    def hits(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays pass through or near the object, occluders ignored; True for all rays by default."""
        return torch.ones(len(origins), dtype=torch.bool, device=origins.device)

    def may_show(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays would show the object without occluders; True for all rays by default."""
        return torch.ones(len(origins), dtype=torch.bool, device=origins.device)

    def contains(self, positions: Float[Tensor, "num 3"], threshold: float = 0.5) -> Bool[Tensor, " num"]:
        """Which world positions may lie on the object; True for all by default."""
        return torch.ones(len(positions), dtype=torch.bool, device=positions.device)

    def main_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], float]:
        """World positions of the object's cells without those that float apart from it, and half the size of a cell."""
        raise NotImplementedError

    def object_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], Float[Tensor, " num"]]:
        """World positions of the cells on the object, with the weight of the rays on the object."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Resize the buffers to the checkpoint's number of cells, and make logits if it has any."""
        has_logits = isinstance(state_dict.get(f"{prefix}logits"), Tensor)
        self.logits = torch.zeros_like(self.hit) if has_logits else None
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor) and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.version += 1
