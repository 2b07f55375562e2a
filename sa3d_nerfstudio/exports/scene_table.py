"""Table of all objects of a run: ids, names, the tree, boxes and sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sa3d_nerfstudio.exports.boxes import object_box
from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.exports.objects import ExportObject, all_objects
from sa3d_nerfstudio.fields.object_tree import ObjectTree
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.files import write_json


def tree_of(masks: MaskObjects) -> ObjectTree:
    """The tree of the run's objects; objects whose parent is not in the run are roots."""
    names = set(masks.names)
    parents = {name: masks.parents.get(name) for name in masks.names}
    return ObjectTree({name: parent if parent in names else None for name, parent in parents.items()})


def object_table(
    masks: MaskObjects, frame: Frame, chosen: Sequence[ExportObject] | None = None
) -> list[dict[str, Any]]:
    """Objects for JSON.

    Each has its ``id``, ``name``, ``color`` (0-255) and whether it is ``hidden``; its ``level`` relative to the shown
    objects (object, part or whole), the ids of its ``parent`` (or null) and ``children``; the number of its ``cells``;
    and its ``box``: ``center``, ``size`` along the box's axes, and ``rotation`` from these to the frame's, row by row.

    Args:
        masks: The objects of a run.
        frame: Frame of the boxes.
        chosen: The objects to list; by default all that are not empty, hidden ones included.
    """
    objects = all_objects(masks)
    numbers = {item.name: item.id for item in objects}
    tree = tree_of(masks)
    shown_names = [name for name in tree if name not in masks.hidden]
    table = []
    for item in objects if chosen is None else chosen:
        box = object_box(item.field, masks.threshold).moved(frame)
        parent = tree.parents[item.name]
        table.append(
            {
                "id": item.id,
                "name": item.name,
                "color": [round(255 * value) for value in item.color],
                "hidden": item.name in masks.hidden,
                "level": tree.level(item.name, shown_names),
                "parent": numbers.get(parent) if parent is not None else None,
                "children": [numbers[child] for child in tree.children(item.name) if child in numbers],
                "cells": int(item.field.object_cells(masks.threshold).sum()),
                "box": {
                    "center": _rounded(box.center),
                    "size": _rounded(box.scale),
                    "rotation": [_rounded(row) for row in box.rotation],
                },
            }
        )
    return table


def write_object_table(
    path: Path, masks: MaskObjects, frame: Frame, chosen: Sequence[ExportObject] | None = None
) -> None:
    """Write :func:`object_table` as JSON, with the name of its boxes' frame."""
    write_json(path, {"background_id": 0, "frame": frame.name, "objects": object_table(masks, frame, chosen)})


def _rounded(values: Any) -> list[float]:
    return [round(float(value), 6) + 0.0 for value in values]
