"""States of the edited objects, as immutable values, and their history for undo and redo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.object_tree import ObjectTree
from sa3d_nerfstudio.prompts.view_prompt import ViewPrompt

Color = tuple[float, float, float]


@dataclass(frozen=True)
class ObjectState:
    """One object: its display, the user's prompts, and the evidence of other views."""

    name: str
    color: Color
    hidden: bool = False
    prompts: tuple[ViewPrompt, ...] = ()
    evidence: MaskField | None = None
    """Evidence of the views that the user has not prompted. Shared by many states, hence never changed."""
    total: MaskField | None = None
    """All evidence, that of the prompts included, fitted to its masks, as a run or a session leaves it; in the place of
    ``evidence`` until a prompt changes."""
    parent: str | None = None
    """The object that this one is a part of."""

    @property
    def is_empty(self) -> bool:
        """Whether the object has neither prompts nor evidence."""
        return not self.prompts and not self.is_segmented

    @property
    def is_segmented(self) -> bool:
        """Whether views beside the prompted ones have contributed evidence."""
        return self.evidence is not None or self.total is not None

    def below(self, parent: str, other: str | None) -> ObjectState:
        """The object with parent ``other``, if its parent was ``parent``."""
        return replace(self, parent=other) if self.parent == parent and other != parent else self

    def prompt_in(self, view: str) -> ViewPrompt:
        """The prompt in a view, empty if there is none."""
        return next((prompt for prompt in self.prompts if prompt.view == view), ViewPrompt(view))

    def prompted(self, prompt: ViewPrompt) -> ObjectState:
        """The object with the prompt of one view replaced, as the last one; an empty prompt is removed."""
        remaining = tuple(earlier for earlier in self.prompts if earlier.view != prompt.view)
        return replace(self, prompts=remaining if prompt.is_empty else (*remaining, prompt))


@dataclass(frozen=True)
class SceneState:
    """All objects, and the name of the one that prompts go to."""

    objects: tuple[ObjectState, ...] = ()
    selected: str | None = None

    def __iter__(self) -> Iterator[ObjectState]:
        return iter(self.objects)

    @property
    def names(self) -> list[str]:
        """Names of the objects, in the order in which they were made."""
        return [entry.name for entry in self]

    @property
    def current(self) -> ObjectState | None:
        """The selected object."""
        return next((entry for entry in self if entry.name == self.selected), None)

    @property
    def tree(self) -> ObjectTree:
        """Tree of the objects and their parts."""
        names = set(self.names)
        return ObjectTree({entry.name: entry.parent if entry.parent in names else None for entry in self})

    def selecting(self, name: str) -> SceneState:
        """The state with another object selected.

        Raises:
            SA3DError: No object has that name.
        """
        if name not in self.names:
            raise SA3DError(f"there is no object named {name}: choose one of {', '.join(self.names) or 'none yet'}.")
        return replace(self, selected=name)

    def adding(self, entry: ObjectState) -> SceneState:
        """The state with one more object, which is selected."""
        return SceneState((*self.objects, entry), entry.name)

    def replacing(self, name: str, entry: ObjectState) -> SceneState:
        """The state with an object in the place of another, selected if that was."""
        objects = tuple(entry if item.name == name else item.below(name, entry.name) for item in self)
        return SceneState(objects, entry.name if self.selected == name else self.selected)

    def removing(self, name: str) -> SceneState:
        """The state without an object; the one before it is selected."""
        index = self.names.index(name)
        grandparent = self.objects[index].parent
        objects = tuple(entry.below(name, grandparent) for entry in self.objects[:index] + self.objects[index + 1 :])
        return SceneState(objects, objects[max(index - 1, 0)].name if objects else None)


@dataclass
class History:
    """The present state, the states before it, and the undone states."""

    present: SceneState = field(default_factory=SceneState)
    past: list[SceneState] = field(default_factory=list)
    future: list[SceneState] = field(default_factory=list)

    def push(self, state: SceneState) -> None:
        """Add a new present state; undone states are dropped."""
        self.past.append(self.present)
        self.present = state
        self.future.clear()

    def before(self) -> SceneState:
        """The state that undo leads to.

        Raises:
            SA3DError: There is nothing to undo.
        """
        if not self.past:
            raise SA3DError("there is nothing to undo: this is where the run began.")
        return self.past[-1]

    def after(self) -> SceneState:
        """The state that redo leads to.

        Raises:
            SA3DError: There is nothing to redo.
        """
        if not self.future:
            raise SA3DError("there is nothing to redo: nothing was undone since the last change.")
        return self.future[-1]

    def undo(self) -> None:
        """Return to the state before the last change."""
        before = self.before()
        self.past.pop()
        self.future.append(self.present)
        self.present = before

    def redo(self) -> None:
        """Return to the state undone last."""
        after = self.after()
        self.future.pop()
        self.past.append(self.present)
        self.present = after
