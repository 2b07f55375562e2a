"""Evidence per cell, the state of a segmented object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

MIN_EVIDENCE = 1e-3
"""Weight of rays below which a cell counts as never seen. One ray that ends in a cell leaves about 1."""


class MaskField(nn.Module):
    """What the views have said about each cell, as two sums over all rays of all accepted views.

    ``hit`` is the weight of the rays that lie on the object, ``seen`` that of all rays: ``hit = Σ Aᵥᵀ mᵥ`` and
    ``seen = Σ Aᵥᵀ 1``, with ``Aᵥ`` the trace of view v. ``hit / seen`` is the answer that minimises the squared
    difference to all masks at once, in [0, 1]. A cell with no evidence is unknown, which is not "not the object".

    Cells are voxels or splats; subclasses say which cells a point in space touches.
    """

    hit: Float[Tensor, " num_cells"]
    seen: Float[Tensor, " num_cells"]

    def __init__(self, num_cells: int) -> None:
        super().__init__()
        self.register_buffer("hit", torch.zeros(num_cells))
        self.register_buffer("seen", torch.zeros(num_cells))
        self.version = 0
        """Counts the changes."""
        self._derived: dict[Any, tuple[int, Tensor]] = {}

    @property
    def num_cells(self) -> int:
        """How many cells there are."""
        return self.hit.shape[0]

    @property
    def is_empty(self) -> bool:
        """Whether no cell is on the object."""
        return not bool(self.derived("any", self._any))

    def _any(self) -> Tensor:
        return (self.probability() > 0.5).any()

    def derived(self, key: Any, compute: Callable[[], Tensor]) -> Tensor:
        """Something computed from the evidence, kept until the evidence changes or moves to another device.

        Renders ask for the same few tensors with every chunk of rays.
        """
        kept = self._derived.get(key)
        if kept is None or kept[0] != self.version or kept[1].device != self.hit.device:
            kept = self._derived[key] = (self.version, compute())
        return kept[1]

    def add(self, hit: Float[Tensor, " num_cells"], seen: Float[Tensor, " num_cells"]) -> None:
        """Add the evidence of one view."""
        self.hit += hit
        self.seen += seen
        self.version += 1

    def set(self, hit: Float[Tensor, " num_cells"], seen: Float[Tensor, " num_cells"]) -> None:
        """Replace all evidence."""
        self.hit, self.seen = hit, seen
        self.version += 1

    def cells(self) -> Float[Tensor, "num_cells 2"]:
        """What a render of the mask composites: probability, and 1 where anything is known."""
        return self.derived("cells", self._cells)

    def _cells(self) -> Tensor:
        return torch.stack([self.probability(), self.known().float()], dim=-1)

    def known(self) -> Bool[Tensor, " num_cells"]:
        """Which cells any view has seen."""
        return self.seen > MIN_EVIDENCE

    def probability(self) -> Float[Tensor, " num_cells"]:
        """Share of the evidence that says "object"; 0 where nothing is known."""
        return torch.where(self.known(), self.hit / self.seen.clamp(min=MIN_EVIDENCE), 0.0)

    def fresh(self) -> MaskField:
        """A field with the same cells and no evidence."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the number of cells from the checkpoint: it is the run's, not the default's."""
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor) and stored.shape != buffer.shape:
                setattr(self, name, torch.empty_like(stored, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.version += 1
