"""Surface of the prompted views, in cells that are labelled as the object or as something else.

A mask that the user has seen and accepted labels the surface point of each pixel. Where another view sees the same
surface, the labels decide between a segmenter's candidates: a part lacks points of the object, and a whole includes
points of something else. Evidence along rays is weaker: rays of one view graze the sides that it does not see, and
count as evidence against the object there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.traces.base import ViewTrace

CELLS = 96
"""Greatest number of cells along each side of the cube."""
CELL = 2.0
"""Least side of a cell, in distances between the surface points of neighbouring pixels."""
BOX_MARGIN = 1.5
"""Width of the cube of cells, in widths of the object."""
STRAY = 0.02
"""Share of the object's points beyond its bounds, at either end of each axis."""
CLEAR = 2.0
"""A cell is labelled where it has more than this many points of one kind for each point of the other."""


@dataclass
class PromptedSurface:
    """Cells around the object, with labels from the prompted views: the object's surface, or another surface."""

    corner: Float[Tensor, "3"]
    """World position of the first cell's lower corner."""
    cell: Float[Tensor, ""]
    """Side of a cell, in world units."""
    side: int
    """Number of cells along each side."""
    on: Bool[Tensor, " num_cells"]
    """Cells of the object's surface."""
    off: Bool[Tensor, " num_cells"]
    """Cells of other surfaces."""

    @classmethod
    def of(
        cls, points: Float[Tensor, "num_points 3"], mask: Bool[Tensor, " num_points"], spacing: float
    ) -> PromptedSurface | None:
        """Label cells by the surface points of the prompted views.

        Args:
            points: Surface point of each pixel, in world coordinates.
            mask: Whether each point is on the object.
            spacing: Distance between the surface points of neighbouring pixels of the object.

        Returns:
            None where no point is on the object.
        """
        finite = points.isfinite().all(-1)
        points, mask = points[finite], mask[finite]
        object_points = points[mask]
        if not len(object_points):
            return None
        ordered = object_points.sort(dim=0).values
        first = int(STRAY * len(object_points))
        low, high = ordered[first], ordered[len(object_points) - 1 - first]
        width = (BOX_MARGIN * (high - low).max()).clamp(min=1e-6)
        cell = (width / CELLS).clamp(min=CELL * spacing)
        side = int(width / cell) + 1
        surface = cls((low + high - side * cell) / 2, cell, side, *mask.new_zeros(2, side**3).unbind())
        index, inside = surface._cells(points)
        counts = points.new_zeros(2, side**3)
        for row, selected in enumerate((inside & mask, inside & ~mask)):
            counts[row].index_add_(0, index, selected.to(counts))
        surface.on, surface.off = counts[0] > CLEAR * counts[1], counts[1] > CLEAR * counts[0]
        return surface

    def to(self, device: torch.device) -> PromptedSurface:
        """The same cells on a device."""
        corner, cell, on, off = (tensor.to(device) for tensor in (self.corner, self.cell, self.on, self.off))
        return PromptedSurface(corner, cell, self.side, on, off)

    def _cells(self, points: Float[Tensor, "num 3"]) -> tuple[Int[Tensor, " num"], Bool[Tensor, " num"]]:
        """Index of each point's cell, and whether the point lies within the cells."""
        steps = ((points - self.corner) / self.cell).floor()
        inside = ((steps >= 0) & (steps < self.side)).all(-1)
        x, y, z = torch.where(inside[:, None], steps, 0.0).long().unbind(-1)
        return (x * self.side + y) * self.side + z, inside

    def agreement(
        self, masks: Bool[Tensor, "num height width"], trace: ViewTrace, rendered: Bool[Tensor, "height width"]
    ) -> Float[Tensor, " num"]:
        """Agreement of a view's masks with the labelled surface.

        Args:
            masks: Masks of the view.
            trace: Trace of the view.
            rendered: Rendered mask of the view.

        Returns:
            For each mask, its IoU with the pixels in the object's cells, over all pixels in labelled cells; times the
            ratio of the former to the pixels of the rendered mask, at most 1, which is close to 0 in views from the
            other side.
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
    """:meth:`PromptedSurface.of` the points of several views; None without views."""
    return PromptedSurface.of(torch.cat(list(points)), torch.cat(list(masks)), spacing) if points else None
