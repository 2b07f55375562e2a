"""The surface that the user's views show: which places in space are the object, and which are not.

A mask that the user has seen and accepted says of every pixel whether what it sees is the object. Where another view
sees the same places, it is known which of a segmenter's candidates is meant there: a part leaves out what has been
marked, and a whole takes in what has not. Evidence along rays says less: rays of one view graze the sides that it does
not see, and seem to say that these are not the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.traces.base import ViewTrace

CELLS = 96
"""Cells along each side, at most."""
CELL = 2.0
"""Side of a cell, in distances between what neighbouring pixels see."""
ROOM = 1.5
"""How many times as wide as the object the cells reach."""
STRAY = 0.02
"""Share of the object's points, on either side, that its bounds leave out."""
CLEAR = 2.0
"""How many times as many points of one kind a cell has as of the other, if it is to say anything."""


@dataclass
class PromptedSurface:
    """Cells around the object: those whose surface the user's views show to be the object, and those where it is
    something else."""

    corner: Float[Tensor, "3"]
    """World position of the first cell's corner."""
    cell: Float[Tensor, ""]
    """Side of a cell."""
    side: int
    """Cells along each side."""
    on: Bool[Tensor, " num_cells"]
    """Cells of the object."""
    off: Bool[Tensor, " num_cells"]
    """Cells of something else."""

    @classmethod
    def of(
        cls, points: Float[Tensor, "num_points 3"], mask: Bool[Tensor, " num_points"], spacing: float
    ) -> PromptedSurface | None:
        """Take up what pixels of the user's views see.

        Args:
            points: On the surface, in the world.
            mask: Which of them are the object.
            spacing: Distance between what neighbouring pixels of the object see.

        Returns:
            None where none is the object.
        """
        there = points.isfinite().all(-1)
        points, mask = points[there], mask[there]
        own = points[mask]
        if not len(own):
            return None
        order = own.sort(dim=0).values
        first = int(STRAY * len(own))
        low, high = order[first], order[len(own) - 1 - first]
        width = (ROOM * (high - low).max()).clamp(min=1e-6)
        cell = (width / CELLS).clamp(min=CELL * spacing)
        side = int(width / cell) + 1
        surface = cls((low + high - side * cell) / 2, cell, side, *mask.new_zeros(2, side**3).unbind())
        index, inside = surface._cells(points)
        counts = points.new_zeros(2, side**3)
        for number, chosen in enumerate((inside & mask, inside & ~mask)):
            counts[number].index_add_(0, index, chosen.to(counts))
        surface.on, surface.off = counts[0] > CLEAR * counts[1], counts[1] > CLEAR * counts[0]
        return surface

    def to(self, device: torch.device) -> PromptedSurface:
        """The same on a device."""
        corner, cell, on, off = (tensor.to(device) for tensor in (self.corner, self.cell, self.on, self.off))
        return PromptedSurface(corner, cell, self.side, on, off)

    def _cells(self, points: Float[Tensor, "num 3"]) -> tuple[Int[Tensor, " num"], Bool[Tensor, " num"]]:
        """The cell of each point, and whether it has any."""
        steps = ((points - self.corner) / self.cell).floor()
        inside = ((steps >= 0) & (steps < self.side)).all(-1)
        x, y, z = torch.where(inside[:, None], steps, 0.0).long().unbind(-1)
        return (x * self.side + y) * self.side + z, inside

    def agreement(
        self, masks: Bool[Tensor, "num height width"], trace: ViewTrace, rendered: Bool[Tensor, "height width"]
    ) -> Float[Tensor, " num"]:
        """How well masks of a view agree with what the user's views show of it.

        Args:
            masks: The masks.
            trace: Of the view.
            rendered: The object in the view, by what has been lifted.

        Returns:
            For each mask the IoU over the pixels that see a place of which this is known, times the share of the object
            that they are: a view from the other side has next to none, and says nothing.
        """
        index, inside = self._cells(trace.surface_points())
        on, off = inside & self.on[index], inside & self.off[index]
        masks = masks.flatten(1)
        union = ((masks & (on | off)) | on).sum(1)
        share = (on.sum() / rendered.sum().clamp(min=1)).clamp(max=1)
        return share * (masks & on).sum(1) / union.clamp(min=1)


def joint_surface(
    points: Sequence[Float[Tensor, "num_points 3"]], masks: Sequence[Bool[Tensor, " num_points"]], spacing: float
) -> PromptedSurface | None:
    """:meth:`PromptedSurface.of` several views; None where there is none."""
    return PromptedSurface.of(torch.cat(list(points)), torch.cat(list(masks)), spacing) if points else None
