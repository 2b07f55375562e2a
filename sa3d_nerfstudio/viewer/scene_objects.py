"""Operations on the objects of a whole scene: pick, walk the tree, merge, split; independent of the user interface."""

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
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.history import SceneState

LINK = 2.0
"""Largest distance of linked cells of a piece, in cell sizes; of splats, in median distances of neighbours."""
REACH = 0.01
"""Largest distance of a click from the object that it selects, as a share of the image's longer side."""


class SceneObjects:
    """Operations on several objects, beside the :class:`Editor` for one.

    A view is rendered once; the object under a pixel is then looked up at once, without a segmenter.

    Args:
        editor: Editor of the objects.
    """

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._ids: tuple[object, Int[Tensor, "height width"]] | None = None

    def look(self, camera: Cameras) -> str:
        """Trace a camera's view for picking, and return its name. Nothing is embedded."""
        name = self.editor.free_views.remember(camera)
        self.editor.free_views.trace(name)
        return name

    def ids(self, view: str) -> Int[Tensor, "height width"]:
        """Index of the object shown at each pixel, among all objects of the state; -1 where no object is shown."""
        editor, state = self.editor, self.editor.state
        threshold = editor.model.mask_threshold
        key = (view, editor.masks.changes, tuple((entry.name, entry.hidden) for entry in state), threshold)
        if self._ids is None or self._ids[0] != key:
            trace = editor.free_views.trace(view)
            shown = [index for index, entry in enumerate(state) if not entry.hidden and not entry.is_empty]
            fields = [editor.masks[state.objects[index].name] for index in shown]
            highest, number = editor.model.most_probable(trace, fields)
            ids = torch.tensor([*shown, -1])[torch.where(highest > threshold, number, len(shown)).cpu()]
            self._ids = (key, ids.reshape(trace.height, trace.width))
        return self._ids[1]

    def pick(self, view: str, x: float, y: float) -> str:
        """Select the object shown at a point of a view, and return its name.

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
        window = ids[top : row + reach + 1, left : column + reach + 1]
        pixels = (window >= 0).nonzero()
        if len(pixels) == 0:
            raise SA3DError("no object is shown there: click on one, or make a new one with '+ point'.")
        distance = (pixels - torch.tensor([row - top, column - left])).float().norm(dim=-1)
        nearest = pixels[int(distance.argmin())]
        name = self.editor.state.objects[int(window[nearest[0], nearest[1]])].name
        self.editor.select(name)
        return name

    def describe(self, name: str) -> str:
        """Sentence about the number of an object's parts, and whether it is a part of another."""
        tree = self.editor.state.tree
        above, below = tree.ancestors(name), tree.children(name)
        parts = f"It has {len(below)} parts (**smaller**)." if below else "It has no parts."
        return f"{parts} It is a part of something (**larger**)." if above else parts

    def larger(self) -> str:
        """Show the object that the selected one is a part of, instead of its parts, and select it.

        Raises:
            SA3DError: The selected object is no part of another.
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
            SA3DError: The selected object has no parts.
        """
        name, tree = self._selected(), self.editor.state.tree
        parts = tree.children(name)
        if not parts:
            raise SA3DError(f"{name} has no parts that were found: split a piece off, or correct it with '− point'.")
        self._show(parts, [name])
        self.editor.select(parts[0])
        return parts[0]

    def merge(self, names: Sequence[str]) -> str:
        """Merge several objects into one, with the name, colour and list position of the first. Undo restores them.

        It is a part of the smallest other object that all of them are parts of.

        Raises:
            SA3DError: Fewer than two objects are named, one of them does not exist, or all are empty.
        """
        state, chosen = self.editor.state, list(dict.fromkeys(names))
        if len(chosen) < 2 or any(name not in state.names for name in chosen):
            raise SA3DError("there are no two objects to merge: select one, and choose another beside it.")
        fields, threshold = [self.editor.masks[name] for name in chosen], self.editor.model.mask_threshold
        if not any(bool(field.object_cells(threshold).any()) for field in fields):
            raise SA3DError(f"{' and '.join(chosen)} are empty: prompt one of them, or lower the threshold.")
        name, tree = chosen[0], state.tree
        common = set[str](state.names).intersection(*(tree.ancestors(each) for each in chosen)).difference(chosen)
        parent = next((above for above in tree.ancestors(name) if above in common), None)
        new = {"prompts": (), "evidence": union(fields, threshold), "total": None, "hidden": False, "parent": parent}
        # What was a part of any of them is a part of the merged object.
        objects = [replace(entry, parent=name) if entry.parent in chosen else entry for entry in state]
        objects = [replace(entry, **new) if entry.name == name else entry for entry in objects]
        self.editor.change(SceneState(tuple(entry for entry in objects if entry.name not in chosen[1:]), name))
        return name

    def split(self, view: str, x: float, y: float) -> str:
        """Make a new object of the selected object's piece under a click, and return its name.

        Raises:
            SA3DError: The click is beside the object, or the object is in one piece.
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
        remainder, split_off = cells_of(mask_field, ~piece), cells_of(mask_field, piece)
        name = next(
            f"{current.name} {n}" for n in range(2, len(state.objects) + 3) if f"{current.name} {n}" not in state.names
        )
        old = replace(current, prompts=(), evidence=remainder, total=None)
        new = replace(self.editor.new_object(name), evidence=split_off, parent=current.parent)
        self.editor.change(state.replacing(current.name, old).adding(new))
        return name

    def _selected(self) -> str:
        if self.editor.state.selected is None:
            raise SA3DError("no object is selected: pick one first.")
        return self.editor.state.selected

    def _show(self, shown: Sequence[str], hidden: Sequence[str]) -> None:
        already_hidden = {entry.name for entry in self.editor.state if entry.hidden}
        self.editor.show((already_hidden | set(hidden)) - set(shown))


def union(fields: Sequence[MaskField], threshold: float = 0.5) -> MaskField:
    """Union of several objects' fields: each cell has the highest probability of any.

    Args:
        fields: Fields of one kind; grids may lie in different places.
        threshold: Probability above which something is on an object.
    """
    result = fields[0].fresh()
    if isinstance(result, MaskGrid):
        points = [field.object_points(threshold) for field in fields]
        positions, weights = (torch.cat(tensors) for tensors in zip(*points, strict=True))
        finest = min(float(field.cell_size) for field in fields if isinstance(field, MaskGrid))
        result.place_around(positions, weights, spacing=finest)
    resampled = [field.resampled(result) for field in fields]
    seen = torch.stack([field.seen for field in resampled]).amax(0)
    probability = torch.stack([field.probability() for field in resampled]).amax(0)
    result.set(probability * seen, seen)
    return result


def cells_of(mask_field: MaskField, chosen: Bool[Tensor, " num_cells"]) -> MaskField:
    """Copy of a field in which only the chosen cells are on the object."""
    result = mask_field.fresh()
    result.set(torch.where(chosen, mask_field.hit, 0.0), mask_field.seen.clone())
    if mask_field.logits is not None:
        result.set_logits(torch.where(chosen, mask_field.logits, mask_field.logits.clamp(max=LIGHT_LOGIT)))
    return result


def piece_at(mask_field: MaskField, place: Tensor, threshold: float = 0.5) -> Bool[Tensor, " num_cells"] | None:
    """Cells of the connected piece of an object at a point in the world.

    Args:
        mask_field: Field of the object.
        place: World position x, y, z of the point.
        threshold: Probability above which something is on the object.

    Returns:
        Whether each cell belongs to the piece; None if the object is in one piece, or has no cell near the point.
    """
    on = mask_field.object_cells(threshold)
    points = mask_field.object_points(threshold)[0]
    if len(points) < 2:
        return None
    positions = points.cpu().numpy()
    neighbors = NearestNeighbors(n_neighbors=2).fit(positions)
    if isinstance(mask_field, MaskGrid):
        spacing = float(mask_field.cell_size)
    else:
        spacing = float(torch.from_numpy(neighbors.kneighbors(positions)[0][:, 1]).median())
    count, labels = connected_components(radius_neighbors_graph(positions, LINK * spacing))
    distance, nearest = neighbors.kneighbors(place.cpu().numpy()[None], n_neighbors=1)
    if count < 2 or distance[0, 0] > 2 * LINK * spacing:
        return None
    piece = torch.zeros_like(on)
    piece[on.nonzero()[:, 0]] = torch.from_numpy(labels == labels[nearest[0, 0]]).to(on.device)
    return piece
