"""The objects to export, and their names in files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.files import unique_stems
from sa3d_nerfstudio.models.outputs import NO_OBJECT


@dataclass(frozen=True)
class ExportObject:
    """An object to export."""

    name: str
    id: int
    """Number of the object in the run, from 1, the same in all exports; 0 is background."""
    stem: str
    """Name of the object in files, unique in the run."""
    field: MaskField
    color: tuple[float, float, float]
    """Colour that marks the object, each channel in [0, 1]."""


def all_objects(masks: MaskObjects) -> list[ExportObject]:
    """All objects of a run that are not empty, hidden ones included, in its order; ids count the empty ones too."""
    stems = unique_stems(masks.names)
    return [
        ExportObject(name, number, stems[number - 1], masks[name], masks.colors[name])
        for number, name in enumerate(masks.names, start=1)
        if masks[name].holds_object(masks.threshold)
    ]


def select(masks: MaskObjects, names: Sequence[str] = ()) -> list[ExportObject]:
    """The objects to export, in the order of the run.

    Args:
        masks: All objects of a run.
        names: Names of objects to export, hidden or not; by default, all objects that are not hidden.

    Raises:
        SA3DError: No object has such a name, a named object is empty, or there is no object to export.
    """
    unknown = [name for name in names if name not in masks]
    if unknown and masks.names:
        raise SA3DError(f"there is no object {unknown[0]!r} in this run: it has {listed(masks.names)}.")
    available = all_objects(masks)
    empty = [name for name in names if name not in {item.name for item in available}]
    if empty and masks.names:
        raise SA3DError(f"the object {empty[0]!r} is empty: segment it again with another prompt.")
    chosen = [item for item in available if (item.name in names if names else item.name not in masks.hidden)]
    if not chosen and available:
        raise SA3DError(
            f"all objects of this run are hidden: name those to export, --object {listed(masks.names, ' ')}."
        )
    if not chosen:
        raise SA3DError(NO_OBJECT)
    return chosen


def listed(names: Sequence[str], between: str = ", ", limit: int = 12) -> str:
    """Names in a row, for messages: the first ``limit``, and the number of the others."""
    more = len(names) - limit
    return between.join([*names[:limit], *([f"... ({more} more)"] if more > 0 else [])])


def left_out(masks: MaskObjects, chosen: Sequence[ExportObject]) -> list[str]:
    """Names of the hidden objects that are not exported."""
    exported = {item.name for item in chosen}
    return [name for name in masks.names if name in masks.hidden and name not in exported]


@contextmanager
def only(masks: MaskObjects, chosen: Sequence[ExportObject]) -> Iterator[None]:
    """Context in which these objects are shown and all others hidden."""
    hidden = masks.hidden
    masks.hidden = set(masks.names) - {item.name for item in chosen}
    try:
        yield
    finally:
        masks.hidden = hidden
