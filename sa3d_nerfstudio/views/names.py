"""Lookup of a training view by a user's text."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path

from sa3d_nerfstudio.errors import SA3DError


def find_view(view: str | int, filenames: Sequence[Path]) -> int:
    """Index of a view that is given by its image's file name, or by its index.

    A number is an index. A text is the end of a path, or a file name without its suffix, or, where images are named by
    numbers, such a number with or without leading zeros. Digits are an index only if no image is named by a number, so
    an image that the run was not trained on is never taken for the view with that index.

    Args:
        view: The user's text, or an index from 0.
        filenames: Images of the training views, in order.

    Raises:
        SA3DError: No view matches, and the message names similar ones; or several match.
    """
    if isinstance(view, Integral):
        return _counted(int(view), len(filenames))
    wanted = Path(str(view))
    name, digits = wanted.name, wanted.name.isdecimal()
    rules: list[Callable[[Path], bool]] = [
        lambda path: path.parts[-len(wanted.parts) :] == wanted.parts,
        lambda path: path.name == name,
        lambda path: path.stem == name,
        lambda path: digits and path.stem.isdecimal() and int(path.stem) == int(name),
    ]
    for fits in rules:
        matches = [index for index, path in enumerate(filenames) if fits(path)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            named = ", ".join("/".join(filenames[index].parts[-2:]) for index in matches[:3])
            raise SA3DError(f"{len(matches)} training images go by {view}: say which, as in {named}.")
    if digits and not any(path.stem.isdecimal() for path in filenames):
        return _counted(int(name), len(filenames))
    names = [path.name for path in filenames]
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    raise SA3DError(f"there is no training view named {view}: did you mean {', '.join(near)}?")


def _counted(view: int, total: int) -> int:
    if 0 <= view < total:
        return view
    raise SA3DError(f"there is no training view {view}: there are {total}, counted from 0.")
