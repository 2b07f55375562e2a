"""Section for all objects of a scene: the list, the tree, and merging of two objects."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.viewer.context import PanelContext, add_choice
from sa3d_nerfstudio.viewer.history import ObjectState
from sa3d_nerfstudio.viewer.scene_objects import SceneObjects
from sa3d_nerfstudio.viewer.viser_compat import literal

LISTED = 20
"""Objects that the list shows at a time."""
NOTHING = "(none)"
NO_OBJECT = "There is no object, or none of such a name."


class SceneSection:
    """List with a filter, and buttons for parts and wholes, merge, and show all or none."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._objects = objects = SceneObjects(context.editor)
        gui = context.gui
        with gui.add_folder("All objects", expand_by_default=False):
            self._filter = gui.add_text("Filter", initial_value="", hint="Part of a name; the list shows what has it")
            self._filter.on_update(lambda _: self._turn(0))
            self._list = gui.add_markdown("")
            self._first = 0
            pages = {"back": -LISTED, "more": LISTED}
            hint = f"{LISTED} objects at a time"
            self._pages = add_choice(
                gui, "List", list(pages), lambda page, _: self._turn(self._first + pages[page]), hint
            )
            walks = {"smaller": objects.smaller, "larger": objects.larger}
            hint = "Show the parts of the selected object, or what it is a part of"
            add_choice(gui, "Level", list(walks), lambda walk, _: context.change(walks[walk]), hint)
            self._other = gui.add_dropdown("With", options=[NOTHING], hint="What to merge the selected object with")
            merge = gui.add_button("Merge", color="gray", icon=viser.Icon.ARROWS_JOIN, hint="Undo takes it back")
            merge.on_click(lambda _: context.change(self._merge))
            shows = {"all": set[str](), "none": None}
            choose = lambda show, _: context.change(self._show, shows[show])  # noqa: E731
            add_choice(gui, "Show", list(shows), choose, "All objects that are parts of nothing, or none")

    def refresh(self) -> None:
        """Bring the list of objects up to date."""
        state = self._context.editor.state
        wanted = self._filter.value.strip().casefold()
        entries = [entry for entry in state if wanted in entry.name.casefold()]
        # Shown objects come first: their parts and wholes are hidden.
        entries.sort(key=lambda entry: entry.hidden)
        several = self._pages.visible = len(entries) > LISTED
        self._first = min(self._first, max(len(entries) - 1, 0) // LISTED * LISTED)
        page = entries[self._first : self._first + LISTED]
        lines = [self._line(entry) for entry in page]
        if several:
            lines.append(f"{self._first + 1} to {self._first + len(page)} of {len(entries)}")
        self._list.content = "\n".join(f"- {line}" for line in lines) or NO_OBJECT
        options = [NOTHING, *(entry.name for entry in entries if entry.name != state.selected)]
        if tuple(self._other.options) != tuple(options):
            self._other.options = options

    def _turn(self, first: int) -> None:
        """Show the objects from this number on."""
        self._first = max(first, 0)
        self.refresh()

    def _line(self, entry: ObjectState) -> str:
        name, tree = literal(entry.name), self._context.editor.state.tree
        notes = [f"part of {literal(entry.parent)}"] if entry.parent else []
        parts = len(tree.children(entry.name))
        notes += [f"{parts} parts"] if parts else []
        notes += ["hidden"] if entry.hidden else []
        title = f"**{name}**" if entry.name == self._context.editor.state.selected else name
        return f"{title} ({', '.join(notes)})" if notes else title

    def _merge(self) -> None:
        state = self._context.editor.state
        self._objects.merge([name for name in (state.selected, self._other.value) if name and name != NOTHING])

    def _show(self, hidden: set[str] | None) -> None:
        editor = self._context.editor
        if hidden is None:
            editor.show(set(editor.state.names))
        else:
            tree = editor.state.tree
            editor.show(set(tree) - set(tree.roots))
