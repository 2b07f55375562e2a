"""The tree of a scene's objects: what is a part of what, and which level of it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.splat_mask import SplatMask

INSIDE = 0.8
"""Share of an object that must lie within another for it to be a part of that."""

MIN_KNOWN = 1e-3
"""Share of a place's cells that must have evidence for it to lie on anything."""

Level = Literal["whole", "object", "part"]


def share_inside(inner: MaskField, outer: MaskField, threshold: float = 0.5) -> float:
    """Share of an object that lies within another, by the evidence of its cells.

    Args:
        inner: The object whose cells are counted.
        outer: The other one, of the same kind, in cells of any place and size.
        threshold: Probability above which something is on an object.

    Returns:
        In [0, 1]; 0 where ``inner`` holds nothing.
    """
    if isinstance(inner, SplatMask) and isinstance(outer, SplatMask):
        weights = inner.object_weights(threshold)
        within = torch.isin(inner.object_rows(threshold), outer.object_rows(threshold))
    else:
        points, weights = inner.object_points(threshold)
        within = _on_surface(outer, points, threshold)
    total = float(weights.sum())
    return float((weights * within).sum()) / total if total > 0 else 0.0


def _on_surface(field: MaskField, points: Float[Tensor, "num 3"], threshold: float) -> Tensor:
    """Which positions lie in cells of a grid that say "object", as rays that end there would be told."""
    assert isinstance(field, MaskGrid)
    if len(points) == 0 or not bool(field.object_cells(threshold).any()):
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    low, high = field.object_bounds(threshold)
    margin = field.cell_size
    within = ((points >= low - margin) & (points <= high + margin)).all(-1)
    if bool(within.any()):
        mass, known = field.gather(field.cells(), points[within]).unbind(-1)
        within[within.clone()] = (known > MIN_KNOWN) & (mass > field.level(threshold) * known)
    return within


def object_size(field: MaskField, threshold: float = 0.5) -> float:
    """How large an object is, by the cells of its surface: their volume, or their number for splats."""
    if isinstance(field, SplatMask):
        return float(len(field.object_rows(threshold)))
    cells = float(field.object_cells(threshold).sum())
    return cells * float(field.cell_size) ** 3 if isinstance(field, MaskGrid) else cells


@dataclass
class ObjectTree:
    """Objects and what they are parts of. An object has at most one parent, the smallest one that it lies within."""

    parents: dict[str, str | None] = field(default_factory=dict)
    """For each object, in the order in which they were found, what it is a part of."""

    @classmethod
    def of(cls, fields: Mapping[str, MaskField], threshold: float = 0.5) -> ObjectTree:
        """The tree of some objects, by their cells."""
        builder = TreeBuilder(threshold)
        for name, field_of_object in fields.items():
            builder.add(name, field_of_object)
        return builder.tree()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parents)

    @property
    def roots(self) -> list[str]:
        """Objects that are parts of nothing."""
        return [name for name, parent in self.parents.items() if parent is None]

    def children(self, name: str) -> list[str]:
        """The parts of an object."""
        return [other for other, parent in self.parents.items() if parent == name]

    def ancestors(self, name: str) -> list[str]:
        """What an object is a part of, from the smallest to the largest."""
        found: list[str] = []
        parent = self.parents.get(name)
        while parent is not None and parent not in found:
            found.append(parent)
            parent = self.parents.get(parent)
        return found

    def descendants(self, name: str) -> list[str]:
        """All parts of an object, and their parts."""
        return [other for other in self.parents if name in self.ancestors(other)]

    def cut(self, values: Mapping[str, float]) -> list[str]:
        """The level at which a scene falls into objects: no two of which are parts of each other, of the highest value.

        An object is taken whole unless its parts are worth more together. This is how HDBSCAN chooses clusters from
        their hierarchy (R. Campello, D. Moulavi, J. Sander, PAKDD 2013, "excess of mass").

        Args:
            values: What each object is worth.
        """
        chosen: list[str] = []

        def best(name: str) -> tuple[float, list[str]]:
            own, children = values.get(name, 0.0), [best(child) for child in self.children(name)]
            below = sum(value for value, _ in children)
            if children and below > own:
                return below, [taken for _, names in children for taken in names]
            return own, [name]

        for root in self.roots:
            chosen += best(root)[1]
        return [name for name in self.parents if name in set(chosen)]

    def level(self, name: str, cut: list[str]) -> Level:
        """What an object is beside those of a :meth:`cut`."""
        if name in cut:
            return "object"
        return "part" if any(other in cut for other in self.ancestors(name)) else "whole"

    def without(self, name: str) -> ObjectTree:
        """The tree without an object, whose parts become those of what it was a part of."""
        above = self.parents.get(name)
        parents = {other: above if parent == name else parent for other, parent in self.parents.items()}
        parents.pop(name, None)
        return ObjectTree(parents)

    def renamed(self, name: str, new: str) -> ObjectTree:
        """The tree with an object renamed."""
        swap = {name: new}
        return ObjectTree(
            {
                swap.get(other, other): None if parent is None else swap.get(parent, parent)
                for other, parent in self.parents.items()
            }
        )


class TreeBuilder:
    """Grows a tree object by object; each new one is compared with those that share space with it.

    Args:
        threshold: Probability above which something is on an object.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._fields: dict[str, MaskField] = {}
        self._sizes: dict[str, float] = {}
        self._within: dict[str, set[str]] = {}

    def same(self, field: MaskField) -> str | None:
        """The object that has the same cells as a field; None if there is none."""
        for name, other in self._fields.items():
            inside = share_inside(field, other, self.threshold)
            if inside >= INSIDE and share_inside(other, field, self.threshold) >= INSIDE:
                return name
        return None

    def add(self, name: str, field: MaskField) -> None:
        """Add an object."""
        self._within[name] = set()
        for other, its_field in self._fields.items():
            inside, around = (
                share_inside(field, its_field, self.threshold),
                share_inside(its_field, field, self.threshold),
            )
            # Of two with the same cells, the smaller one is the part.
            if inside >= INSIDE and inside >= around:
                self._within[name].add(other)
            elif around >= INSIDE:
                self._within[other].add(name)
        self._fields[name] = field
        self._sizes[name] = object_size(field, self.threshold)

    def tree(self) -> ObjectTree:
        """The tree as it is by now."""
        # Only what is larger: parts never go in circles.
        larger = {
            name: [other for other in within if self._sizes[other] > self._sizes[name]]
            for name, within in self._within.items()
        }
        return ObjectTree(
            {name: min(within, key=self._sizes.__getitem__, default=None) for name, within in larger.items()}
        )
