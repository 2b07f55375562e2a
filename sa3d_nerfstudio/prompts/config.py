"""Prompts as the user writes them: command-line options and prompt files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.prompts.images import draw_polyline, points_of_stroke, read_mask, read_scribble
from sa3d_nerfstudio.prompts.prompt import CANDIDATES, CandidateName, Prompt
from sa3d_nerfstudio.terminal import say

Kind = Literal["points", "box", "scribble", "mask", "text"]

Instances = Literal["best", "all"]


class WordFinder(Protocol):
    """Finder of the objects that words name, in one training view or, where none is given, in several."""

    def box(self, view: int | None, text: str, index: int | None = None) -> tuple[int, Sequence[float]]:
        """View and box (x0, y0, x1, y1 in its original image) of the best match, or of the match with an index."""
        ...

    def objects(self, view: int | None, text: str, every: bool) -> list[dict[int, Prompt]] | None:
        """Masks of each object, by view; None where :meth:`box` suffices."""
        ...


@dataclass
class PromptConfig:
    """Prompt for the object in one training view. Pixels are x y from the top left of the original image."""

    view: str | None = None
    """Training view to prompt: its image's file name (as much of the path, or as little, as tells it from
    the others), or, where no image has a number for its name, its index among the training views, from 0."""
    points: tuple[float, ...] = ()
    """x y of points on the object, several pairs in a row."""
    negative_points: tuple[float, ...] = ()
    """x y of points on something else, several pairs in a row."""
    box: tuple[float, ...] = ()
    """x0 y0 x1 y1 of a rectangle around the object."""
    scribble: Path | None = None
    """PNG with brush strokes: white or green on the object, red beside it, black or transparent elsewhere."""
    mask: Path | None = None
    """PNG with the object in white: taken as it is, without a segmenter. Any size."""
    file: Path | None = None
    """JSON file with prompts for any number of named objects and views; all of them are segmented."""
    kinds: tuple[Kind, ...] = ("points", "box", "scribble", "text")
    """Which kinds of prompts to take from the file: by default all but masks, which would replace the others."""
    candidate: CandidateName = "auto"
    """Which mask to take where the segmenter answers with several: its own choice, or the small, medium or large one
    (for SAM about a part, the object, and more than it)."""
    text: str | None = None
    """Words for the object, such as "a mug"; without a view, several views from all around are searched."""
    instances: Instances = "best"
    """Whether the words mean the best match, or all objects that they fit, which are then numbered: mug, mug 2, ..."""
    box_index: int | None = None
    """Index of the match to take where the words fit several places in a view, instead of the best; from 0, as in the
    note that lists them."""

    @property
    def is_given(self) -> bool:
        """Whether any prompt is given."""
        return self.view is not None or self.file is not None or self.text is not None or self.needs_view

    @property
    def needs_view(self) -> bool:
        """Whether a prompt in pixels is given, which needs a view."""
        return bool(self.points or self.negative_points or self.box or self.scribble or self.mask)


@dataclass
class ObjectPrompts:
    """Prompts of one object, by training view."""

    name: str
    views: dict[int, Prompt] = field(default_factory=dict)


class NamedViews(Protocol):
    """Names and image sizes of the training views."""

    def find(self, view: str | int) -> int: ...

    def image_size(self, view: int) -> tuple[int, int]: ...

    def name(self, view: int) -> str: ...


def read_prompts(
    config: PromptConfig, views: NamedViews, object_name: str, finder: WordFinder | None = None
) -> list[ObjectPrompts]:
    """Read the prompts of all objects in the configuration.

    Args:
        config: Options and files.
        views: The training views.
        object_name: Name of the object that the options prompt.
        finder: Finds the objects that words name; without it, words are an error.

    Raises:
        SA3DError: A view is unknown, a value is invalid, or a file cannot be read.
    """
    if config.file is not None:
        options = [option for option in fields(config) if option.name not in ("file", "kinds")]
        conflicts = [option.name for option in options if getattr(config, option.name) != option.default]
        if conflicts:
            key, option = conflicts[0], conflicts[0].replace("_", "-")
            raise SA3DError(
                f"give either --pipeline.prompt.file or --pipeline.prompt.{option}, not both: in the file, {key} is a "
                "key of each entry."
            )
        return _read_file(config.file, views, config.kinds, finder)
    if config.view is None and (config.text is None or config.needs_view):
        raise SA3DError("points, boxes, scribbles and masks need a view: name one with --pipeline.prompt.view.")
    view = None if config.view is None else views.find(config.view)
    entry = {
        "points": _pairs(config.points, "points"),
        "negative_points": _pairs(config.negative_points, "negative-points"),
        "box": list(config.box) or None,
        "text": config.text,
        "box_index": config.box_index,
        "instances": config.instances,
        "candidate": config.candidate,
    }
    if not config.needs_view and (named := _named_objects(entry, view, finder)) is not None:
        return _numbered(object_name, named)
    view, prompt = _prompt(entry, views, view, finder=finder)
    height, width = views.image_size(view)
    if config.scribble is not None:
        positive, negative = read_scribble(config.scribble, height, width)
        prompt = prompt.with_points(positive, negative)
    if config.mask is not None:
        prompt.mask = torch.from_numpy(read_mask(config.mask, height, width))
    if prompt.is_empty:
        raise SA3DError(
            "the prompt selects nothing: give at least one point on it with --pipeline.prompt.points, or a box, "
            "a scribble, a mask or words."
        )
    return [ObjectPrompts(object_name, {view: prompt})]


_IN_A_VIEW = frozenset({"points", "negative_points", "box", "scribble", "background_scribble", "mask"})
"""Keys of prompts in pixels, which need a view."""


def _read_file(path: Path, views: NamedViews, kinds: Sequence[Kind], finder: WordFinder | None) -> list[ObjectPrompts]:
    try:
        content = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise SA3DError(f"there is no prompt file {path}: check the path.") from None
    except IsADirectoryError:
        raise SA3DError(f"{path} is a folder: name the prompt file in it.") from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SA3DError(f"{path} cannot be read as JSON ({one_line(error)}): correct it.") from error
    entries = content.get("objects") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise SA3DError(f'{path} holds no prompts: it needs {{"objects": [{{"name": …, "view": …, "points": …}}, …]}}.')
    objects: dict[str, ObjectPrompts] = {}
    numbered: set[str] = set()
    for entry in entries:
        found = _read_entry(entry, path, views, kinds, finder)
        for item in found:
            known = objects.setdefault(item.name, ObjectPrompts(item.name))
            if known.views and (len(found) > 1 or item.name in numbered):
                raise SA3DError(
                    f"two entries of {path} name an object {item.name}, one by words for several: rename one."
                )
            twice = [views.name(view) for view in item.views if view in known.views]
            if twice:
                raise SA3DError(f"two entries of {path} prompt {item.name} in {twice[0]}: make one entry of the two.")
            known.views |= item.views
        if len(found) > 1:
            numbered |= {item.name for item in found}
    if kinds == PromptConfig.kinds and any("mask" in entry for entry in entries):
        say(f"note        masks in {path} are left out; with them: --pipeline.prompt.kinds {' '.join(get_args(Kind))}")
    return list(objects.values())


def _read_entry(
    entry: dict[str, Any], path: Path, views: NamedViews, kinds: Sequence[Kind], finder: WordFinder | None
) -> list[ObjectPrompts]:
    """Prompts of an entry of a file: of one object, or of several that its words fit."""
    name, view_name = entry.get("name"), entry.get("view", entry.get("frame"))
    only_words = "text" in entry and not _IN_A_VIEW & set(entry)
    is_view = isinstance(view_name, (str, int)) and not isinstance(view_name, bool)
    if not isinstance(name, str) or not name or not (is_view or (view_name is None and only_words)):
        raise SA3DError(f'every entry of {path} needs a "name" and a "view".')
    try:
        view = None if view_name is None else views.find(view_name)
        if only_words and "text" in kinds and (named := _named_objects(entry, view, finder)) is not None:
            return _numbered(name, named)
        view, prompt = _prompt(entry, views, view, kinds, finder)
        if "mask" in kinds and "mask" in entry:
            mask_path = path.parent / str(entry["mask"])
            prompt.mask = torch.from_numpy(read_mask(mask_path, *views.image_size(view)))
        if prompt.is_empty:
            mask = ", or take the mask by --pipeline.prompt.kinds mask" * ("mask" in entry)
            raise SA3DError(f"the prompt selects nothing; give a point, a box, a scribble or words{mask}.")
    except SA3DError as error:
        raise SA3DError(f"object {name} in {path}: {error}") from error
    return [ObjectPrompts(name, {view: prompt})]


def _prompt(
    entry: dict[str, Any],
    views: NamedViews,
    view: int | None,
    kinds: Sequence[Kind] = ("points", "box", "scribble", "text"),
    finder: WordFinder | None = None,
) -> tuple[int, Prompt]:
    """Prompt of an entry, and its view: that of the best match of the words where none is given."""
    text_box: Sequence[float] | None = None
    has_text = "text" in kinds and entry.get("text") is not None
    if has_text and entry.get("box") is not None and "box" in kinds:
        raise SA3DError(
            f'there are two boxes, one given and one around "{entry["text"]}": give the box or the words, not both.'
        )
    if entry.get("instances") == "all" and "text" in kinds:
        raise SA3DError("instances all means every object that words fit: give words alone, or leave it out.")
    if view is None:
        view, text_box = _box_of_text(entry, None, finder) if has_text else (0, None)
    height, width = views.image_size(view)
    size = (views.name(view), height, width)
    positive, negative, box = np.zeros((0, 2), np.float32), np.zeros((0, 2), np.float32), None
    if "points" in kinds:
        positive = _checked(entry.get("points"), "point", *size)
        negative = _checked(entry.get("negative_points"), "negative point", *size)
    if "box" in kinds and entry.get("box") is not None:
        box = _numbers(entry["box"], "box")
        if box.shape != (4,) or not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            raise SA3DError(
                f"a box is x0 y0 x1 y1 with x0 < x1 and y0 < y1 inside of {views.name(view)}, which is "
                f"{width} x {height} pixels, and not {' '.join(f'{value:g}' for value in box.reshape(-1))}."
            )
    candidate = entry.get("candidate", "auto")
    if candidate not in CANDIDATES:
        raise SA3DError(f"a candidate is one of {', '.join(CANDIDATES)}, and not {str(candidate)[:40]!r}.")
    prompt = Prompt.from_points(height, width, positive, negative, box, candidate=candidate)
    if "scribble" in kinds:
        strokes = []
        for key in ("scribble", "background_scribble"):
            line = _checked(entry.get(key), "scribble", *size)
            strokes.append(
                points_of_stroke(draw_polyline(line, height, width), key == "scribble") if len(line) else line
            )
        prompt = prompt.with_points(*strokes)
    # Last, because it runs a network.
    if has_text:
        text_box = _box_of_text(entry, view, finder)[1] if text_box is None else text_box
        prompt.box = torch.tensor([float(value) for value in text_box])
    return view, prompt


def _text_of(entry: dict[str, Any], finder: WordFinder | None) -> tuple[str, int | None, WordFinder]:
    """Words of an entry, index of the match to take, and the finder."""
    text, index = entry["text"], entry.get("box_index")
    if not isinstance(text, str) or not (index is None or type(index) is int):
        raise SA3DError(f"a text is made of words, and a box_index is a whole number, and not {text!r} and {index!r}.")
    if finder is None:
        raise SA3DError(f'words cannot be looked for here: point at "{text}", or give a box around it.')
    return text, index, finder


def _box_of_text(entry: dict[str, Any], view: int | None, finder: WordFinder | None) -> tuple[int, Sequence[float]]:
    """View and box that the words of an entry match, in pixels of the view's original image."""
    text, index, finder = _text_of(entry, finder)
    return finder.box(view, text, index)


def _named_objects(
    entry: dict[str, Any], view: int | None, finder: WordFinder | None
) -> list[dict[int, Prompt]] | None:
    """Masks of the objects that the words of an entry name; None where a box suffices."""
    if entry.get("text") is None:
        return None
    text, index, finder = _text_of(entry, finder)
    instances = entry.get("instances", "best")
    if instances not in get_args(Instances):
        raise SA3DError(f"instances are one of {', '.join(get_args(Instances))}, and not {str(instances)[:40]!r}.")
    if instances == "all" and index is not None:
        raise SA3DError("a box-index means one of several places, and instances all of them: give one of the two.")
    return None if index is not None else finder.objects(view, text, instances == "all")


def _numbered(name: str, named: list[dict[int, Prompt]]) -> list[ObjectPrompts]:
    """Name objects by a common name, with numbers from the second on."""
    return [ObjectPrompts(f"{name} {number}" if number > 1 else name, views) for number, views in enumerate(named, 1)]


def _pairs(values: tuple[float, ...], option: str) -> list[tuple[float, float]]:
    if len(values) % 2:
        raise SA3DError(f"--pipeline.prompt.{option} takes pairs x y, but holds {len(values)} numbers.")
    return list(zip(values[::2], values[1::2], strict=True))


def _numbers(values: Any, what: str) -> NDArray[np.float32]:
    try:
        numbers = np.asarray(values, dtype=np.float32)
        if any(isinstance(value, bool) for value in np.asarray(values, dtype=object).flat):
            raise TypeError
    except (TypeError, ValueError, OverflowError):
        raise SA3DError(f"a {what} is made of numbers, and not of {str(values)[:40]!r}.") from None
    if not np.isfinite(numbers).all():
        raise SA3DError(f"a {what} is made of finite numbers.")
    return numbers


def _checked(values: Any, what: str, name: str, height: int, width: int) -> NDArray[np.float32]:
    """Check that x y pairs lie within the image, and return them as an array."""
    numbers = _numbers([] if values is None else values, what)
    if numbers.size == 0:
        return np.zeros((0, 2), np.float32)
    if numbers.ndim != 2 or numbers.shape[1] != 2:
        raise SA3DError(f"{what}s are given as pairs [x, y].")
    for x, y in numbers:
        if not (0 <= x < width and 0 <= y < height):
            raise SA3DError(
                f"{what} {x:g} {y:g} lies outside {name}, which is {width} x {height} pixels: "
                "give x from 0 to the width and y from 0 to the height, from the top left."
            )
    return numbers
