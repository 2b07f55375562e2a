"""Prompts in a checkpoint: plain lists, numbers and strings beside the masks made from them.

For each object::

    {"segmented": True, "prompts": [{
        "view": "frame_0003.png",           # a training view; or, of a free view,
        "camera": {"pose": [...12 numbers, row by row], "fx": 80.0, "fy": 80.0, "cx": 80.0, "cy": 53.5,
                   "width": 160, "height": 107},
        "marks": [[x, y, on_object, world_x, world_y, world_z], ...],
        "box": [x0, y0, x1, y1] or None,    # this and x, y as shares of width and height
        "context": [[x, y, on_object], ...], "correcting": False, "choice": None}]}

A checkpoint is untrusted data: all of it is checked when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from nerfstudio.cameras.cameras import Cameras, CameraType

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.view_prompt import Mark, ViewPrompt
from sa3d_nerfstudio.segmentation.mask_depth import marker_position
from sa3d_nerfstudio.segmentation.session import SegmentationSession

MAX_SIZE = 16384
"""Greatest width and height of a saved camera's image, in pixels."""
MAX_CANDIDATES = 64
"""A saved choice must be less than this: it is the index of one of a segmenter's candidates."""


class _Damaged(Exception):
    """Saved prompts are malformed; the message names the defect."""


class NamedViews(Protocol):
    """Views by name: the training views, and free views of any camera."""

    cameras: dict[str, Cameras]
    """Cameras of the free views."""

    def remember(self, camera: Cameras) -> str:
        """Register a free view by its camera, without rendering it; returns its name."""
        ...

    def find_training_view(self, name: str) -> str:
        """Register a training view by its image's file name, without rendering it; returns its name.

        Raises:
            SA3DError: No training view has that file name.
        """
        ...


def write_prompts(prompts: Sequence[ViewPrompt], segmented: bool, views: NamedViews) -> dict[str, Any]:
    """Convert an object's prompts to plain data for a checkpoint.

    Args:
        prompts: The prompts.
        segmented: Whether other views have contributed evidence.
        views: Views of the prompts.
    """
    return {"segmented": segmented, "prompts": [_written(prompt, views) for prompt in prompts]}


def write_session_prompts(session: SegmentationSession) -> dict[str, Any]:
    """Convert the prompts of a session in training views to plain data for a checkpoint.

    Two kinds of prompts are left out, and their evidence counts like that of any other view: masks, which cannot be
    refined, and prompts in views that share their name with another view, which cannot be identified again.
    """
    prompts = []
    names = [session.views.name(view) for view in range(len(session.views))]
    for view, prompted in session.prompted.items():
        prompt, trace = prompted.prompt, session.trace(view)
        if prompt.mask is not None or names.count(session.name(view)) > 1:
            continue
        marks = []
        for (x, y), on_object in zip(prompt.points.long().tolist(), prompt.labels.tolist(), strict=True):
            position = marker_position(trace, session.position(view), x, y)
            marks.append(Mark((x + 0.5) / trace.width, (y + 0.5) / trace.height, on_object, position))
        box = None
        if prompt.box is not None:
            # A user's box may reach beyond the image.
            x0, y0, x1, y1 = (prompt.box / torch.tensor([trace.width, trace.height] * 2)).clamp(0, 1).tolist()
            box = (x0, y0, x1, y1)
        choice = prompted.choice if prompted.picked else None
        saved = ViewPrompt(session.name(view), tuple(marks), box, choice=choice)
        prompts.append({"view": session.name(view)} | _plain(saved))
    return {"segmented": bool(session.report.records), "prompts": prompts}


def read_prompts(name: str, content: object, views: NamedViews) -> tuple[tuple[ViewPrompt, ...], bool]:
    """Read an object's prompts, and whether other views have contributed evidence; no prompts where none were saved.

    Nothing is rendered: views are rendered when they are needed.

    Raises:
        SA3DError: The saved prompts are damaged.
    """
    if content is None:
        return (), True
    try:
        entries = _list(_field(content, "prompts"), "prompts")
        prompts = tuple(_read(entry, views) for entry in entries)
        if len({prompt.view for prompt in prompts}) < len(prompts):
            raise _Damaged("a view is there twice")
        return prompts, _bool(_field(content, "segmented"), "segmented")
    except _Damaged as error:
        raise SA3DError(
            f"the prompts saved with {name} are damaged ({error}): its mask is here all the same, so correct it with "
            "new points, and save."
        ) from None


def _written(prompt: ViewPrompt, views: NamedViews) -> dict[str, Any]:
    camera = views.cameras.get(prompt.view)
    return ({"view": prompt.view} if camera is None else {"camera": _camera(camera)}) | _plain(prompt)


def _plain(prompt: ViewPrompt) -> dict[str, Any]:
    return {
        "marks": [[mark.x, mark.y, mark.on_object, *(mark.place or ())] for mark in prompt.marks],
        "box": None if prompt.box is None else list(prompt.box),
        "context": [[mark.x, mark.y, mark.on_object] for mark in prompt.context],
        "correcting": prompt.correcting,
        "choice": prompt.choice,
    }


def _camera(camera: Cameras) -> dict[str, Any]:
    numbers = {name: float(getattr(camera, name).reshape(-1)[0]) for name in ("fx", "fy", "cx", "cy")}
    size = {name: int(getattr(camera, name).reshape(-1)[0]) for name in ("width", "height")}
    return {"pose": camera.camera_to_worlds[0].reshape(-1).tolist(), **numbers, **size}


def _read(entry: object, views: NamedViews) -> ViewPrompt:
    content = _mapping(entry)
    if "camera" in content:
        view = views.remember(_read_camera(content["camera"]))
    else:
        name = _field(content, "view")
        if not isinstance(name, str):
            raise _Damaged("a view has no name")
        try:
            view = views.find_training_view(name)
        except SA3DError:
            raise _Damaged(f"there is no training view {name[:80]}") from None
    box = _field(content, "box")
    choice = _field(content, "choice")
    if choice is not None and (type(choice) is not int or not 0 <= choice < MAX_CANDIDATES):
        raise _Damaged("the chosen answer is out of range")
    prompt = ViewPrompt(
        view,
        tuple(_mark(mark) for mark in _list(_field(content, "marks"), "marks")),
        None if box is None else _box(box),
        tuple(_mark(mark) for mark in _list(_field(content, "context"), "context")),
        _bool(_field(content, "correcting"), "correcting"),
        choice,
    )
    if prompt.is_empty:
        raise _Damaged("a prompt is empty")
    return prompt


def _read_camera(entry: object) -> Cameras:
    content = _mapping(entry)
    pose = torch.tensor(_numbers(_field(content, "pose"), 12)).reshape(3, 4)
    if not 0.99 < float(torch.det(pose[:, :3])) < 1.01:
        raise _Damaged("a camera's pose is none")
    fx, fy, cx, cy = _numbers([_field(content, name) for name in ("fx", "fy", "cx", "cy")], 4)
    width, height = _field(content, "width"), _field(content, "height")
    if not all(type(size) is int and 0 < size <= MAX_SIZE for size in (width, height)) or fx <= 0 or fy <= 0:
        raise _Damaged("a camera's size or focal length is out of range")
    return Cameras(
        pose[None], fx=fx, fy=fy, cx=cx, cy=cy, width=width, height=height, camera_type=CameraType.PERSPECTIVE
    )


def _mark(entry: object) -> Mark:
    values = _list(entry, "a point")
    if len(values) not in (3, 6):
        raise _Damaged("a point has too many numbers, or too few")
    x, y, *position = _numbers([*values[:2], *values[3:]], len(values) - 1)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise _Damaged("a point lies outside of its image")
    return Mark(x, y, _bool(values[2], "a point's side"), (position[0], position[1], position[2]) if position else None)


def _box(entry: object) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = _numbers(entry, 4)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise _Damaged("a box lies outside of its image")
    return x0, y0, x1, y1


def _mapping(entry: object) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise _Damaged("something is missing")
    return entry


def _field(entry: object, name: str) -> Any:
    content = _mapping(entry)
    if name not in content:
        raise _Damaged(f"{name} is missing")
    return content[name]


def _list(entry: object, what: str) -> list[Any]:
    if not isinstance(entry, list):
        raise _Damaged(f"{what} should be a list")
    return entry


def _bool(entry: object, what: str) -> bool:
    if not isinstance(entry, bool):
        raise _Damaged(f"{what} should be true or false")
    return entry


def _numbers(entry: object, count: int) -> list[float]:
    values = _list(entry, "numbers")
    if len(values) != count or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise _Damaged(f"{count} numbers were expected")
    return [float(value) for value in values]
