"""The tree of a scene's objects and their parts, and the level of it that is shown."""

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
"""Share of an object that must lie within another one for it to be a part of that one."""

MIN_KNOWN = 1e-3
"""Share of the cells around a position that must have evidence for it to lie on an object."""

Level = Literal["whole", "object", "part"]


def share_inside(inner: MaskField, outer: MaskField, threshold: float = 0.5) -> float:
    """Share of an object that lies within another, by the evidence of its cells.

    Args:
        inner: The object whose cells are counted.
        outer: The other object: a field of the same kind, with cells of any position and size.
        threshold: Probability above which a cell belongs to an object.

    Returns:
        A share in [0, 1]; 0 if ``inner`` is empty.
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
    """Which positions lie on a grid's object, by the test that applies to rays that end there."""
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
    """Size of an object by the cells of its surface: their volume, or their number for splats."""
    if isinstance(field, SplatMask):
        return float(len(field.object_rows(threshold)))
    cells = float(field.object_cells(threshold).sum())
    return cells * float(field.cell_size) ** 3 if isinstance(field, MaskGrid) else cells


@dataclass
class ObjectTree:
    """Objects and their parents. An object has at most one parent, the smallest object that it lies within."""

    parents: dict[str, str | None] = field(default_factory=dict)
    """Parent of each object, None for roots, in the order in which the objects were found."""

    @classmethod
    def of(cls, fields: Mapping[str, MaskField], threshold: float = 0.5) -> ObjectTree:
        """Build the tree of some objects from their cells."""
        builder = TreeBuilder(threshold)
        for name, field_of_object in fields.items():
            builder.add(name, field_of_object)
        return builder.tree()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parents)

    @property
    def roots(self) -> list[str]:
        """Objects without a parent."""
        return [name for name, parent in self.parents.items() if parent is None]

    def children(self, name: str) -> list[str]:
        """Direct parts of an object."""
        return [child for child, parent in self.parents.items() if parent == name]

    def ancestors(self, name: str) -> list[str]:
        """Objects that an object is a part of, from the smallest to the largest."""
        ancestors: list[str] = []
        parent = self.parents.get(name)
        while parent is not None and parent not in ancestors:
            ancestors.append(parent)
            parent = self.parents.get(parent)
        return ancestors

    def descendants(self, name: str) -> list[str]:
        """All parts of an object, and their parts."""
        return [candidate for candidate in self.parents if name in self.ancestors(candidate)]

    def cut(self, values: Mapping[str, float]) -> list[str]:
        """Cut the tree into objects with the highest total value, none of which is a part of another.

        An object is taken whole unless its parts have a higher value together. This is how HDBSCAN chooses clusters
        from their hierarchy (R. Campello, D. Moulavi, J. Sander, PAKDD 2013, "excess of mass").

        Args:
            values: Value of each object, 0 by default.
        """
        chosen: list[str] = []

        def best(name: str) -> tuple[float, list[str]]:
            whole_value, children = values.get(name, 0.0), [best(child) for child in self.children(name)]
            parts_value = sum(value for value, _ in children)
            if children and parts_value > whole_value:
                return parts_value, [taken for _, names in children for taken in names]
            return whole_value, [name]

        for root in self.roots:
            chosen += best(root)[1]
        return [name for name in self.parents if name in set(chosen)]

    def level(self, name: str, cut: list[str]) -> Level:
        """Level of an object relative to a :meth:`cut`: in it, below it, or above it."""
        if name in cut:
            return "object"
        return "part" if any(ancestor in cut for ancestor in self.ancestors(name)) else "whole"

    def without(self, name: str) -> ObjectTree:
        """The tree without an object, whose parts become parts of its parent."""
        grandparent = self.parents.get(name)
        parents = {child: grandparent if parent == name else parent for child, parent in self.parents.items()}
        parents.pop(name, None)
        return ObjectTree(parents)

    def renamed(self, name: str, new: str) -> ObjectTree:
        """The tree with an object renamed."""
        swap = {name: new}
        return ObjectTree(
            {
                swap.get(child, child): None if parent is None else swap.get(parent, parent)
                for child, parent in self.parents.items()
            }
        )


class TreeBuilder:
    """Builds a tree object by object, and compares each new one with all before it.

    Args:
        threshold: Probability above which a cell belongs to an object.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold
        self._fields: dict[str, MaskField] = {}
        self._sizes: dict[str, float] = {}
        self._within: dict[str, set[str]] = {}

    def same(self, field: MaskField) -> str | None:
        """The object that has about the same cells as a field; None if there is none."""
        for name, candidate in self._fields.items():
            inside = share_inside(field, candidate, self.threshold)
            if inside >= INSIDE and share_inside(candidate, field, self.threshold) >= INSIDE:
                return name
        return None

    def add(self, name: str, field: MaskField) -> None:
        """Add an object."""
        self._within[name] = set()
        for earlier, earlier_field in self._fields.items():
            inside, around = (
                share_inside(field, earlier_field, self.threshold),
                share_inside(earlier_field, field, self.threshold),
            )
            # Of two objects with about the same cells, the smaller one is the part.
            if inside >= INSIDE and inside >= around:
                self._within[name].add(earlier)
            elif around >= INSIDE:
                self._within[earlier].add(name)
        self._fields[name] = field
        self._sizes[name] = object_size(field, self.threshold)

    def tree(self) -> ObjectTree:
        """The tree of the objects added so far."""
        # Parents are larger than their parts, so that the tree has no cycles.
        larger = {
            name: [candidate for candidate in within if self._sizes[candidate] > self._sizes[name]]
            for name, within in self._within.items()
        }
        return ObjectTree(
            {name: min(within, key=self._sizes.__getitem__, default=None) for name, within in larger.items()}
        )
