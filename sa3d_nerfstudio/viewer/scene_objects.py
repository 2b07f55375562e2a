"""What the panel does with the objects of a whole scene: pick, walk the tree, merge, split. Knows of no screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from nerfstudio.cameras.cameras import Cameras
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors, radius_neighbors_graph
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import LIGHT_LOGIT, MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.viewer.editor import Editor

LINK = 2.0
"""Distance at which cells of an object are one piece, in cells; among splats, in usual distances of neighbours."""
REACH = 0.01
"""How far from an object a click may be that still means it, as a share of the image's longer side."""


class SceneObjects:
    """Many objects at once, beside the :class:`Editor` that works on one.

    A view is rendered once, and then tells at once which object lies under a pixel; no segmenter is asked.

    Args:
        editor: Whose objects these are.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._ids: tuple[object, Int[Tensor, "height width"]] | None = None

    def look(self, camera: Cameras) -> str:
        """Make a camera's view ready to be picked in, and name it. Nothing is embedded."""
        name = self.editor.free_views.remember(camera)
        self.editor.free_views.trace(name)
        return name

    def ids(self, view: str) -> Int[Tensor, "height width"]:
        """Per pixel the index of the object that is shown there, among all of the state; -1 where there is none."""
        editor, state = self.editor, self.editor.state
        threshold = editor.model.mask_threshold
        key = (view, editor.masks.changes, tuple((entry.name, entry.hidden) for entry in state), threshold)
        if self._ids is None or self._ids[0] != key:
            trace = editor.free_views.trace(view)
            best = torch.full_like(trace.accumulation, threshold)
            ids = torch.full_like(best, -1, dtype=torch.long)
            for index, entry in enumerate(state):
                if not entry.hidden and not entry.is_empty:
                    probability = render_probability(trace, editor.masks[entry.name])[0]
                    ids = torch.where(probability > best, index, ids)
                    best = torch.maximum(best, probability)
            self._ids = (key, ids.reshape(trace.height, trace.width).cpu())
        return self._ids[1]

    def pick(self, view: str, x: float, y: float) -> str:
        """Select the object that is shown at a place of a view, and name it.

        Args:
            view: As :meth:`look` named it.
            x: Share of the width, from the left.
            y: Share of the height, from the top.

        Raises:
            SA3DError: No object is shown there.
        """
        ids = self.ids(view)
        height, width = ids.shape
        column, row = min(max(int(x * width), 0), width - 1), min(max(int(y * height), 0), height - 1)
        reach = max(round(REACH * max(height, width)), 1)
        top, left = max(row - reach, 0), max(column - reach, 0)
        around = ids[top : row + reach + 1, left : column + reach + 1]
        places = (around >= 0).nonzero()
        if len(places) == 0:
            raise SA3DError("no object is shown there: click on one, or make a new one with '+ point'.")
        distance = (places - torch.tensor([row - top, column - left])).float().norm(dim=-1)
        nearest = places[int(distance.argmin())]
        name = self.editor.state.objects[int(around[nearest[0], nearest[1]])].name
        self.editor.select(name)
        return name

    def describe(self, name: str) -> str:
        """What an object is a part of, and how many parts it has, as a sentence."""
        tree = self.editor.state.tree
        above, below = tree.ancestors(name), tree.children(name)
        parts = f"It has {len(below)} parts (**smaller**)." if below else "It has no parts."
        return f"{parts} It is a part of something (**larger**)." if above else parts

    def larger(self) -> str:
        """Show what the selected object is a part of instead of its parts, and select that.

        Raises:
            SA3DError: It is a part of nothing.
        """
        name, tree = self._selected(), self.editor.state.tree
        above = tree.ancestors(name)
        if not above:
            raise SA3DError(f"{name} is a part of nothing that was found: pick another one, or merge two.")
        self._show([above[0]], tree.descendants(above[0]))
        self.editor.select(above[0])
        return above[0]

    def smaller(self) -> str:
        """Show the parts of the selected object instead of it, and select the first.

        Raises:
            SA3DError: It has none.
        """
        name, tree = self._selected(), self.editor.state.tree
        parts = tree.children(name)
        if not parts:
            raise SA3DError(f"{name} has no parts that were found: split a piece off, or correct it with '− point'.")
        self._show(parts, [name])
        self.editor.select(parts[0])
        return parts[0]

    def merge(self, names: Sequence[str]) -> str:
        """Make one object of several; it has the name, colour and place of the first. Undo brings them back.

        Raises:
            SA3DError: There are not two.
        """
        state, chosen = self.editor.state, list(dict.fromkeys(names))
        if len(chosen) < 2 or any(name not in state.names for name in chosen):
            raise SA3DError("there are no two objects to merge: select one, and choose another beside it.")
        merged = union([self.editor.masks[name] for name in chosen], self.editor.model.mask_threshold)
        first = next(entry for entry in state if entry.name == chosen[0])
        for name in chosen[1:]:
            state = state.removing(name)
        parent = None if first.parent in chosen else first.parent
        entry = replace(first, prompts=(), evidence=merged, total=None, hidden=False, parent=parent)
        self.editor.change(state.replacing(chosen[0], entry).selecting(chosen[0]))
        return chosen[0]

    def split(self, view: str, x: float, y: float) -> str:
        """Make the piece of the selected object that lies under a click an object of its own, and name it.

        Raises:
            SA3DError: The click is beside the object, or it is in one piece.
        """
        state, current = self.editor.state, self.editor.state.current
        if current is None or current.is_empty:
            raise SA3DError("there is nothing to split: pick an object first.")
        trace = self.editor.free_views.trace(view)
        pixel = min(int(y * trace.height), trace.height - 1) * trace.width + min(int(x * trace.width), trace.width - 1)
        mask_field = self.editor.masks[current.name]
        piece = piece_at(mask_field, trace.surface_points()[pixel], self.editor.model.mask_threshold)
        if piece is None:
            raise SA3DError(f"{current.name} is in one piece there: use **smaller**, or '− point' to take a part away.")
        rest, part = cells_of(mask_field, ~piece), cells_of(mask_field, piece)
        name = next(
            f"{current.name} {n}" for n in range(2, len(state.objects) + 3) if f"{current.name} {n}" not in state.names
        )
        left = replace(current, prompts=(), evidence=rest, total=None)
        new = replace(self.editor.new_object(name), evidence=part, parent=current.parent)
        self.editor.change(state.replacing(current.name, left).adding(new))
        return name

    def _selected(self) -> str:
        if self.editor.state.selected is None:
            raise SA3DError("no object is selected: pick one first.")
        return self.editor.state.selected

    def _show(self, shown: Sequence[str], hidden: Sequence[str]) -> None:
        now = {entry.name for entry in self.editor.state if entry.hidden}
        self.editor.show((now | set(hidden)) - set(shown))


def union(fields: Sequence[MaskField], threshold: float = 0.5) -> MaskField:
    """One field of several objects: each cell takes the most that any of them says.

    Args:
        fields: Of one kind; grids may lie in different places.
        threshold: Probability above which something is on an object.
    """
    result = fields[0].fresh()
    if isinstance(result, MaskGrid):
        points = [field.object_points(threshold) for field in fields]
        positions, weights = (torch.cat(parts) for parts in zip(*points, strict=True))
        finest = min(float(field.cell_size) for field in fields if isinstance(field, MaskGrid))
        result.place_around(positions, weights, spacing=finest)
    parts = [field.resampled(result) for field in fields]
    seen = torch.stack([part.seen for part in parts]).amax(0)
    probability = torch.stack([part.probability() for part in parts]).amax(0)
    result.set(probability * seen, seen)
    return result


def cells_of(mask_field: MaskField, chosen: Bool[Tensor, " num_cells"]) -> MaskField:
    """The same field with nothing but the chosen cells on the object."""
    result = mask_field.fresh()
    result.set(torch.where(chosen, mask_field.hit, 0.0), mask_field.seen.clone())
    if mask_field.logits is not None:
        result.set_logits(torch.where(chosen, mask_field.logits, mask_field.logits.clamp(max=LIGHT_LOGIT)))
    return result


def piece_at(mask_field: MaskField, place: Tensor, threshold: float = 0.5) -> Bool[Tensor, " num_cells"] | None:
    """The cells of the piece of an object that lies at a place in the world.

    Args:
        mask_field: The object.
        place: x, y, z.
        threshold: Probability above which something is on the object.

    Returns:
        None where the object is in one piece, or has nothing near the place.
    """
    on = mask_field.object_cells(threshold)
    points = mask_field.object_points(threshold)[0]
    if len(points) < 2:
        return None
    places = points.cpu().numpy()
    neighbors = NearestNeighbors(n_neighbors=2).fit(places)
    if isinstance(mask_field, MaskGrid):
        usual = float(mask_field.cell_size)
    else:
        usual = float(torch.from_numpy(neighbors.kneighbors(places)[0][:, 1]).median())
    count, labels = connected_components(radius_neighbors_graph(places, LINK * usual))
    distance, nearest = neighbors.kneighbors(place.cpu().numpy()[None], n_neighbors=1)
    if count < 2 or distance[0, 0] > 2 * LINK * usual:
        return None
    piece = torch.zeros_like(on)
    piece[on.nonzero()[:, 0]] = torch.from_numpy(labels == labels[nearest[0, 0]]).to(on.device)
    return piece
