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
"""Share of the evidence at the object's median cell below which a cell does not count by itself."""
SHARPNESS = 8.0
"""Logit per unit of probability at which averages become logits: from -4, where all rays say "no", to 4."""
LIGHT_LOGIT = -SHARPNESS / 2
"""Logit of light that passes everything: it is known not to be the object."""
FAR_LOGIT = -2.0
"""Highest logit of a cell that is too far out to be of the object."""


class MaskField(nn.Module):
    """Evidence for each cell, as two sums over all rays of all accepted views.

    ``hit`` is the weight of the rays that lie on the object, ``seen`` that of all rays: ``hit = Σ Aᵥᵀ mᵥ`` and
    ``seen = Σ Aᵥᵀ 1``, with ``Aᵥ`` the trace of view v. ``hit / seen`` is the mean of their masks, in [0, 1].
    A cell with no evidence is unknown, which differs from "not the object".

    A field that has been fitted to its masks (:mod:`sa3d_nerfstudio.segmentation.likelihood`) holds a logit per cell
    besides, which everything is then read from. New evidence drops the logits.

    Cells are voxels or splats; subclasses say which cells a point in space touches.
    """

    hit: Float[Tensor, " num_cells"]
    seen: Float[Tensor, " num_cells"]
    logits: Float[Tensor, " num_cells"] | None
    """Log odds of the object in each cell; None where evidence is all there is. Absent in older checkpoints."""
    center: Float[Tensor, "3"]
    """About where the object is, in the world."""

    def __init__(self, num_cells: int) -> None:
        super().__init__()
        self.register_buffer("hit", torch.zeros(num_cells))
        self.register_buffer("seen", torch.zeros(num_cells))
        self.register_buffer("logits", None)
        self.version = 0
        """Counts the changes."""
        self._derived: dict[Any, tuple[int, Tensor]] = {}

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return self.hit.shape[0]

    @property
    def num_bytes(self) -> int:
        """What the evidence takes in memory, and about what it takes in a checkpoint."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers(recurse=False))

    @property
    def is_empty(self) -> bool:
        """Whether no cell has evidence of the object."""
        return not bool(self.derived("highest average", lambda: self.average().amax()) > 0)

    def holds_object(self, threshold: float) -> bool:
        """Whether any cell is on the object with more than this probability."""
        return bool(self.derived("highest", self._highest) > threshold)

    def _highest(self) -> Tensor:
        return self.probability().amax()

    def derived(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Something computed from the evidence, kept until the evidence changes or moves to another device.

        Renders ask for the same few tensors with every chunk of rays.
        """
        kept = self._derived.get(key)
        if kept is None or kept[0] != self.version or kept[1].device != self.center.device:
            kept = self._derived[key] = (self.version, compute())
        return kept[1]

    def forget_derived(self) -> None:
        """Let go of what was computed from the evidence; it is several times as large."""
        self._derived.clear()

    def rest(self) -> None:
        """Take as little memory as may be until the field is used again, which may then take a little longer."""
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
        """Replace the logits, or fall back on the evidence."""
        self.logits = logits
        self.version += 1

    def cells(self) -> Float[Tensor, "num_cells 2"]:
        """What a render of the mask composites: logit, or else probability, and 1 where there is evidence."""
        return self.derived("cells", self._cells)

    def _cells(self) -> Tensor:
        known = self.known()
        values = self.rendered_average() if self.logits is None else torch.where(known, self.logits, 0.0)
        return torch.stack([values, known.float()]).T

    def composited(self, mean: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Probability of a ray along which what :meth:`cells` holds has this mean."""
        return mean.clamp(0, 1) if self.logits is None else mean.sigmoid()

    def level(self, threshold: float) -> float:
        """What the mean of a ray must exceed for its probability to exceed the threshold."""
        if self.logits is None:
            return threshold
        inside = min(max(threshold, 1e-6), 1 - 1e-6)
        return math.log(inside / (1 - inside))

    @property
    def light(self) -> float:
        """What light that passes everything counts for in the mean of a ray."""
        return 0.0 if self.logits is None else LIGHT_LOGIT

    def start_logits(self) -> Float[Tensor, " num_cells"]:
        """Logits whose renders are cut where those of the evidence are: ``SHARPNESS (p - 1/2)``, 0 where unknown."""
        return torch.where(self.known(), SHARPNESS * (self.rendered_average() - 0.5), 0.0)

    def bounded(self, logits: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_cells"]:
        """Logits, of which those of cells too far out to be of the object are at most ``FAR_LOGIT``."""
        return torch.where(self._near(), logits, logits.clamp(max=FAR_LOGIT))

    def logits_without_strays(self) -> Float[Tensor, " num_cells"] | None:
        """The logits, where what floats beside the object is no longer of it; as they are by default."""
        return self.logits

    def rendered_average(self) -> Float[Tensor, " num_cells"]:
        """The average as renders of the mask composite it: 0 in cells too far out to be of the object."""
        return self.average() * self._near()

    def _near(self) -> Bool[Tensor, " num_cells"]:
        """Which cells are not too far out to be of the object."""
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
        """Evidence that a cell needs to be trusted by itself: a share of what half of the object's surface has.

        Where the field lies on a GPU, so does the figure, and the host does not wait for it.
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
        """The cells that hold the object: on it, seen well, and near it.

        The tails of rays that end on the object reach what lies far behind it, and where no view has seen that place
        better they call it object. Such cells weigh next to nothing in a render, but would spoil bounds and exports.
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
            surface: World positions of points on the side of the object that has been prompted.
            spacing: Distance between the rays of neighbouring pixels there.
        """
        raise NotImplementedError

    def placed_again(self, spacing: float) -> Self:
        """An empty field with its cells placed around the object as segmented so far.

        Args:
            spacing: Distance between the rays of neighbouring pixels there.
        """
        raise NotImplementedError

    def cells_place(self) -> tuple[int, dict[str, Tensor]]:
        """Number of cells, and all tensors that say where they are: what :meth:`place_as` of another field takes."""
        evidence = ("hit", "seen", "logits")
        return self.num_cells, {name: value for name, value in self.state_dict().items() if name not in evidence}

    def place_as(self, place: tuple[int, dict[str, Tensor]]) -> None:
        """Drop all evidence, and put the cells where another field's are; see :meth:`cells_place`."""
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
            spacing: Distance between the rays of neighbouring pixels there.
            num_views: How many views the evidence comes from.
        """
        return self

    def resampled(self, place: Self) -> Self:
        """This field's evidence in the cells of another."""
        raise NotImplementedError

    def copy_from(self, other: Self) -> None:
        """Take over another field's cells and evidence."""
        raise NotImplementedError

    def probability_at(self, positions: Float[Tensor, "*batch 3"], threshold: float = 0.5) -> Float[Tensor, "*batch 1"]:
        """Probability that world positions belong to the object, as far as cells tell of places between them."""
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
        """World positions of the object's cells without those that float beside it, and half the size of a cell."""
        raise NotImplementedError

    def object_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], Float[Tensor, " num"]]:
        """World positions of the cells on the object, with the weight of the rays on the object."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the number of cells from the checkpoint, in the place of the default, and logits if it has any."""
        has_logits = isinstance(state_dict.get(f"{prefix}logits"), Tensor)
        self.logits = torch.zeros_like(self.hit) if has_logits else None
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor) and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.version += 1
