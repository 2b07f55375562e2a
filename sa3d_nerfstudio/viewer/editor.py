"""Operations of the Segment panel, from prompts to masks of named objects; independent of the user interface."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.objects import next_color
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.prompts.view_prompt import Mark, ViewPrompt
from sa3d_nerfstudio.segmentation.saved_prompts import read_prompts, write_prompts
from sa3d_nerfstudio.segmentation.self_prompting import self_prompt
from sa3d_nerfstudio.segmentation.session_progress import Progress, followed
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.viewer.free_views import FreeViews
from sa3d_nerfstudio.viewer.history import History, ObjectState, SceneState


class SceneMasks:
    """The model's masks, kept equal to a state: changed objects are lifted again, and published to renders.

    Args:
        free_views: The views, and the model that holds the masks.
        resolution: Vertices of the mask grids along each axis.
    """

    def __init__(self, free_views: FreeViews, resolution: int) -> None:
        self.free_views = free_views
        self.objects = free_views.model.masks
        self.resolution = resolution
        self.changes = 0
        """Number of changes of the model's masks."""
        self.faults: list[str] = []
        """Sentences about faulty prompts saved in the run."""
        self._published: dict[str, MaskField] = {}

    def __getitem__(self, name: str) -> MaskField:
        return self._published[name]

    def taken_over(self) -> SceneState | None:
        """State of the model's masks and their prompts, if these changed outside of the panel."""
        masks = self.objects
        fields = {name: masks[name] for name in masks.names}
        if list(fields.items()) == list(self._published.items()):
            return None
        self._published = fields
        objects = tuple(self._taken_over(name, grid) for name, grid in fields.items())
        return SceneState(objects, objects[-1].name if objects else None)

    def _taken_over(self, name: str, grid: MaskField) -> ObjectState:
        masks = self.objects
        entry = ObjectState(name, masks.colors[name], name in masks.hidden, parent=masks.parents.get(name))
        field = None if grid.is_empty else grid
        if isinstance(field, MaskGrid):
            # A loaded grid could never become finer; its copy may have up to the configured resolution.
            field = self.free_views.model.new_field(self.resolution)
            field.copy_from(grid)
        try:
            prompts, segmented = read_prompts(name, masks.prompts.get(name), self.free_views)
        except SA3DError as error:
            self.faults.append(str(error))
            prompts, segmented = (), True
        if not prompts:
            return replace(entry, evidence=field)
        return replace(entry, prompts=prompts, total=field if segmented else None)

    def follow(self, before: SceneState, state: SceneState) -> None:
        """Update the model's masks to a state; unchanged objects keep their fields."""
        previous = {_evidence_of(entry): self._published[entry.name] for entry in before}
        grids = {}
        for entry in state:
            grid = previous.get(_evidence_of(entry))
            grids[entry.name] = grid if grid is not None and not entry.is_empty else self._lifted(entry)
        self.publish(state, grids)

    def preview(self, state: SceneState, name: str, grid: MaskField) -> None:
        """Publish a copy of an object's field while it is being segmented."""
        copy = grid.fresh()
        copy.copy_from(grid)
        self.publish(state, {**self._published, name: copy})

    def publish(self, state: SceneState, grids: dict[str, MaskField]) -> None:
        """Publish fields to renders. Published fields never change, since a render may still use the old ones."""
        hidden = {entry.name for entry in state if entry.hidden}
        prompts = {
            entry.name: write_prompts(entry.prompts, entry.is_segmented, self.free_views)
            for entry in state
            if entry.prompts
        }
        # Objects without a known relation to others are not in the tree yet.
        in_tree = self.objects.parents.keys() | {entry.parent for entry in state}
        parents = {entry.name: entry.parent for entry in state if entry.parent is not None or entry.name in in_tree}
        self.objects.replace(grids, hidden, {entry.name: entry.color for entry in state}, prompts, parents)
        self._published = grids
        self.changes += 1

    def rest(self, states: Iterable[SceneState]) -> None:
        """Pack the splat masks of the published objects, and the evidence of some states, after they have been read."""
        kept = {field for state in states for entry in state for field in (entry.evidence, entry.total)}
        for field in kept.union(self._published.values()):
            if isinstance(field, SplatMask):
                field.rest()

    def without(self, prompts: tuple[ViewPrompt, ...], total: MaskField) -> MaskField:
        """Evidence of the views that the user has not prompted: the total minus that of the prompted views.

        Evidence is a sum over views; the published gradient update is not, so its total is returned unchanged.
        """
        if self.free_views.settings.lifting != "evidence":
            return total
        session = self.free_views.session(total.fresh(), prompts)
        session.lift_prompts(total.fresh())
        evidence = total.fresh()
        seen = (total.seen - session.grid.seen).clamp(min=0)
        evidence.set((total.hit - session.grid.hit).clamp(min=0).minimum(seen), seen)
        return evidence

    def _lifted(self, entry: ObjectState) -> MaskField:
        if entry.total is not None:
            return entry.total
        if entry.evidence is not None and not entry.prompts:
            return entry.evidence
        grid = self.free_views.model.new_field(self.resolution)
        if entry.prompts:
            session = self.free_views.session(grid, entry.prompts)
            session.lift_prompts(entry.evidence)
        return grid


def _evidence_of(entry: ObjectState) -> tuple[object, ...]:
    """The inputs that determine an object's mask."""
    return entry.prompts, entry.evidence, entry.total


SCRIBBLE_STEP = 0.04
"""Distance of the points that join two clicks of a scribble, in shares of the image's width and height."""
CLEARANCE = 0.1
"""Distance from the user's negative points within which context points are dropped (likewise)."""


class Editor:
    """Editor of a run's objects, by prompts in views of any camera.

    Operations that raise :class:`SA3DError` change nothing. They may be called from one thread at a time while other
    threads render: ``free_views`` holds its lock when it renders with the model.

    Args:
        free_views: The views; the masks of their model are the initial state.
        resolution: Vertices of the mask grids along each axis.
    """

    def __init__(self, free_views: FreeViews, resolution: int = 128) -> None:
        self.free_views = free_views
        self.model = free_views.model
        self.views = free_views.views
        self.settings = free_views.settings
        self.masks = SceneMasks(free_views, resolution)
        self.history = History()
        self.unsaved = False
        """Whether the objects or the threshold have changed since the last save."""
        self.adopt()

    @property
    def state(self) -> SceneState:
        """The present state of all objects."""
        return self.history.present

    def adopt(self) -> None:
        """Take over the model's masks if they changed outside of the panel."""
        state = self.masks.taken_over()
        if state is not None:
            self.history = History(state)

    def rest(self) -> None:
        """Reduce memory after an operation. A splat mask that has been read takes some twenty times that of one that
        has not."""
        history = self.history
        self.masks.rest((*history.past[-1:], history.present, *history.future[-1:]))

    # Views.

    def look(self, camera: Cameras) -> str:
        """Render and embed a camera's view, once each, so that it can be prompted; return its name."""
        return self.free_views.look(camera)

    def picture(self, view: str) -> Float[Tensor, "height width 3"]:
        """Image of a view, with the objects tinted, and the selected one of several outlined in white.

        The radiance field is not rendered again.
        """
        trace = self.free_views.trace(view)
        overlay = self.model.render_overlay(trace, trace.rgb.reshape(-1, 3))[1].reshape(trace.rgb.shape)
        current = self.state.current
        if current is None or current.hidden or current.is_empty or len(self.state.objects) < 2:
            return overlay
        probability = render_probability(trace, self.masks[current.name])[0].reshape(trace.height, trace.width)
        outside = (probability <= self.model.mask_threshold).float()
        outline = (F.max_pool2d(outside[None], 3, stride=1, padding=1)[0] > 0) & (outside == 0)
        return torch.where(outline[..., None], torch.ones_like(overlay), overlay)

    def markers(self) -> list[tuple[tuple[float, float, float], bool]]:
        """World positions of the selected object's points, a little in front of the surface; True for those on it."""
        current = self.state.current
        marks = [mark for prompt in (current.prompts if current else ()) for mark in prompt.marks]
        return [(mark.place, mark.on_object) for mark in marks if mark.place is not None]

    # Prompts.

    def mark(self, view: str, x: float, y: float, on_object: bool, joined: bool = False) -> None:
        """Add a point to the selected object's prompt in a view.

        Args:
            view: As :meth:`look` named it.
            x: Share of the width, from the left.
            y: Share of the height, from the top.
            on_object: Whether the point lies on the object, or on something else.
            joined: Whether to add a line of points from the last one with the same ``on_object``.
        """
        prompt = self._prompt_in(view)
        x, y = _within(x), _within(y)
        marks = [Mark(x, y, on_object)]
        last = next((mark for mark in reversed(prompt.marks) if mark.on_object == on_object), None)
        if joined and last is not None:
            steps = max(1, round(((x - last.x) ** 2 + (y - last.y) ** 2) ** 0.5 / SCRIBBLE_STEP))
            shares = [step / steps for step in range(1, steps + 1)]
            marks = [Mark(last.x + (x - last.x) * share, last.y + (y - last.y) * share, on_object) for share in shares]
        placed = tuple(replace(mark, place=self.free_views.placed(view, mark)) for mark in marks)
        self._set_prompt(replace(prompt, marks=(*prompt.marks, *placed), choice=None))

    def draw_box(self, view: str, x0: float, y0: float, x1: float, y1: float) -> None:
        """Set the box around the object in a view, in shares of width and height, in place of an earlier one."""
        x0, y0, x1, y1 = (_within(value) for value in (x0, y0, x1, y1))
        if x1 - x0 < 0.01 or y1 - y0 < 0.01:
            raise SA3DError("the box is empty: drag from one corner of the object to the other.")
        self._set_prompt(replace(self._prompt_in(view), box=(x0, y0, x1, y1), choice=None))

    def choose(self, candidate: int) -> None:
        """Choose one of the segmenter's candidates for the last prompt, by index from the smallest to the largest."""
        current = self.state.current
        if current is None or not current.prompts:
            raise SA3DError("there is no mask to choose from: put a point on the object first.")
        prompt = current.prompts[-1]
        order = self.free_views.answer(prompt).candidates.by_area()
        self._set_prompt(replace(prompt, choice=order[min(candidate, len(order) - 1)]))

    @property
    def may_choose(self) -> bool:
        """Whether the last prompt has several candidates, or has not been answered yet."""
        current = self.state.current
        if current is None or not current.prompts:
            return False
        answer = self.free_views.answered(current.prompts[-1])
        return answer is None or len(answer.candidates.masks) > 1

    def clear(self) -> None:
        """Remove the prompts and the evidence of the selected object."""
        current = self._current()
        self._go_to(self.state.replacing(current.name, replace(current, prompts=(), evidence=None, total=None)))

    # Objects.

    def add_object(self, name: str | None = None) -> str:
        """Add an object, select it, and return its name."""
        entry = self.new_object(name)
        self._go_to(self.state.adding(entry))
        return entry.name

    def select(self, name: str) -> None:
        """Select the object that prompts go to."""
        self.history.present = self.state.selecting(name)

    def rename(self, name: str) -> None:
        """Rename the selected object."""
        current = self._current()
        if name != current.name:
            self._check_name(name)
            self._go_to(self.state.replacing(current.name, replace(current, name=name)))

    def delete(self) -> None:
        """Delete the selected object."""
        self._go_to(self.state.removing(self._current().name))

    def show(self, hidden: set[str]) -> None:
        """Hide these objects, and show all others. Not an undo step, since nothing is lost."""
        objects = tuple(replace(entry, hidden=entry.name in hidden) for entry in self.state)
        self.history.present = replace(self.state, objects=objects)
        self.model.masks.hidden = {entry.name for entry in objects if entry.hidden}
        self.unsaved = True

    def solo(self, on: bool) -> None:
        """Show the selected object alone, or all."""
        current = self._current()
        self.show({name for name in self.state.names if name != current.name} if on else set())

    def undo(self) -> None:
        """Undo the last step."""
        self._follow(self.history.before())
        self.history.undo()

    def redo(self) -> None:
        """Redo the step undone last."""
        self._follow(self.history.after())
        self.history.redo()

    # The loop over the training views.

    def segment(self, live_every: float = 4.0) -> Generator[Progress, None, None]:
        """Segment the selected object in all training views, one view a step.

        The iterator may be closed at any step; the evidence so far is kept.

        Args:
            live_every: Least time between two updates of the model's mask, in seconds.

        Raises:
            SA3DError: The object has no prompts, or the result is empty.
        """
        current = self._current()
        if not current.prompts:
            raise SA3DError(f"nothing points at {current.name} yet: choose '+ point' and click on it first.")
        session = self.free_views.session(self.model.new_field(self.masks.resolution), current.prompts)
        updated = time.monotonic()
        try:
            for progress in followed(session):
                if time.monotonic() - updated > live_every:
                    self.masks.preview(self.state, current.name, session.grid)
                    updated = time.monotonic()
                yield progress
        finally:
            # The total stays until a prompt changes: it is fitted to all masks, which the rest without a prompt is not.
            if session.report.records:
                self._go_to(self.state.replacing(current.name, replace(current, evidence=None, total=session.grid)))
        if session.grid.is_empty:
            raise SA3DError(f"{current.name} is empty: no surface lies behind what is prompted; prompt another view.")

    def change(self, state: SceneState) -> None:
        """Change to another state, as one undo step."""
        self._go_to(state)

    # Implementation.

    def _current(self) -> ObjectState:
        current = self.state.current
        if current is None:
            raise SA3DError("there is no object yet: choose '+ point' and click on one.")
        return current

    def new_object(self, name: str | None = None) -> ObjectState:
        """Make an empty object with a name and a new colour, without adding it to the state.

        Raises:
            SA3DError: The name is taken, or blank.
        """
        if name is None:
            number = len(self.state.objects) + 1
            while f"object {number}" in self.state.names:
                number += 1
            name = f"object {number}" if self.state.objects else "object"
        self._check_name(name)
        return ObjectState(name, next_color([entry.color for entry in self.state]))

    def _check_name(self, name: str) -> None:
        if not name.strip():
            raise SA3DError("an object needs a name: type one.")
        if name in self.state.names:
            raise SA3DError(f"there is an object named {name} already: type another name.")

    def _prompt_in(self, view: str) -> ViewPrompt:
        """The selected object's prompt in a view; a new one begins with context points from the rendered mask."""
        current = self.state.current
        prompt = ViewPrompt(view) if current is None else current.prompt_in(view)
        if prompt.is_empty and current is not None and not current.is_empty:
            prompt = replace(prompt, context=self._context(current, view), correcting=current.is_segmented)
        return prompt

    def _context(self, current: ObjectState, view: str) -> tuple[Mark, ...]:
        trace = self.free_views.trace(view)
        shape = (trace.height, trace.width)
        rendered = render_probability(trace, self.masks[current.name])
        probability, known = (image.reshape(shape) for image in rendered)
        settings = self.settings
        prompt = self_prompt(probability, known, trace.depth[..., 0], settings.num_prompts, settings.threshold)
        if prompt is None:
            return ()
        return tuple(Mark((x + 0.5) / trace.width, (y + 0.5) / trace.height, True) for x, y in prompt.points.tolist())

    def _set_prompt(self, prompt: ViewPrompt) -> None:
        off = [mark for mark in prompt.marks if not mark.on_object]
        far = [all((m.x - o.x) ** 2 + (m.y - o.y) ** 2 > CLEARANCE**2 for o in off) for m in prompt.context]
        context = tuple(mark for mark, keep in zip(prompt.context, far, strict=True) if keep)
        state, current = self.state, self.state.current
        if current is None:
            # The object is added in the same step as its first prompt, so that a failed prompt leaves no empty object.
            current = self.new_object()
            state = state.adding(current)
        current = self._split(current)
        self._go_to(state.replacing(current.name, current.prompted(replace(prompt, context=context))))

    def _split(self, current: ObjectState) -> ObjectState:
        """Separate other views' evidence from the prompts'; masks are averages until the object is segmented again."""
        if current.total is None:
            return current
        return replace(current, evidence=self.masks.without(current.prompts, current.total), total=None)

    def _go_to(self, state: SceneState) -> None:
        self._follow(state)
        self.history.push(state)

    def _follow(self, state: SceneState) -> None:
        self.masks.follow(self.state, state)
        self.unsaved = True


def _within(share: float) -> float:
    """Clamp a share to the image, as a drag may end outside."""
    return min(max(float(share), 0.0), 1.0)
