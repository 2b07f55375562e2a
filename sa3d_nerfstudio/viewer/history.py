"""What the user has made in the viewer, as values that never change; undo is going back to an earlier one."""

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
    """One object: how it is shown, the user's prompts, and what the other views have said."""

    name: str
    color: Color
    hidden: bool = False
    prompts: tuple[ViewPrompt, ...] = ()
    evidence: MaskField | None = None
    """Of the views that the user has not prompted. Shared by many states, hence never changed."""
    total: MaskField | None = None
    """Instead of that, all evidence in one, the prompts' included, fitted to its masks, as a run or a session leaves
    it; split when a prompt changes."""
    parent: str | None = None
    """The object that this one is a part of."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show yet."""
        return not self.prompts and not self.is_segmented

    @property
    def is_segmented(self) -> bool:
        """Whether views beside the prompted ones have contributed evidence."""
        return self.evidence is not None or self.total is not None

    def below(self, parent: str, other: str | None) -> ObjectState:
        """With another parent, if it had this one."""
        return replace(self, parent=other) if self.parent == parent and other != parent else self

    def prompt_in(self, view: str) -> ViewPrompt:
        """The prompt in a view, empty if there is none."""
        return next((prompt for prompt in self.prompts if prompt.view == view), ViewPrompt(view))

    def prompted(self, prompt: ViewPrompt) -> ObjectState:
        """With the prompt of one view replaced; it becomes the last one. An empty prompt is left out."""
        others = tuple(other for other in self.prompts if other.view != prompt.view)
        return replace(self, prompts=others if prompt.is_empty else (*others, prompt))


@dataclass(frozen=True)
class SceneState:
    """All objects, and the one that prompts go to."""

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
        """Which objects are parts of which."""
        names = set(self.names)
        return ObjectTree({entry.name: entry.parent if entry.parent in names else None for entry in self})

    def selecting(self, name: str) -> SceneState:
        """With another object selected.

        Raises:
            SA3DError: There is none of that name.
        """
        if name not in self.names:
            raise SA3DError(f"there is no object named {name}: choose one of {', '.join(self.names) or 'none yet'}.")
        return replace(self, selected=name)

    def adding(self, entry: ObjectState) -> SceneState:
        """With one more object, selected."""
        return SceneState((*self.objects, entry), entry.name)

    def replacing(self, name: str, entry: ObjectState) -> SceneState:
        """With one object in the place of another; if that was selected, it is, too."""
        objects = tuple(entry if other.name == name else other.below(name, entry.name) for other in self)
        return SceneState(objects, entry.name if self.selected == name else self.selected)

    def removing(self, name: str) -> SceneState:
        """Without an object; the one before it is selected."""
        index = self.names.index(name)
        above = self.objects[index].parent
        objects = tuple(other.below(name, above) for other in self.objects[:index] + self.objects[index + 1 :])
        return SceneState(objects, objects[max(index - 1, 0)].name if objects else None)


@dataclass
class History:
    """The present, what came before it, and what was undone."""

    present: SceneState = field(default_factory=SceneState)
    past: list[SceneState] = field(default_factory=list)
    future: list[SceneState] = field(default_factory=list)

    def push(self, state: SceneState) -> None:
        """Go on to a new state; what was undone is forgotten."""
        self.past.append(self.present)
        self.present = state
        self.future.clear()

    def before(self) -> SceneState:
        """The state that undo leads to.

        Raises:
            SA3DError: There is none.
        """
        if not self.past:
            raise SA3DError("there is nothing to undo: this is where the run began.")
        return self.past[-1]

    def after(self) -> SceneState:
        """The state that redo leads to.

        Raises:
            SA3DError: There is none.
        """
        if not self.future:
            raise SA3DError("there is nothing to redo: nothing was undone since the last change.")
        return self.future[-1]

    def undo(self) -> None:
        """Go back."""
        before = self.before()
        self.past.pop()
        self.future.append(self.present)
        self.present = before

    def redo(self) -> None:
        """Take back the last undo."""
        after = self.after()
        self.future.pop()
        self.past.append(self.present)
        self.present = after
