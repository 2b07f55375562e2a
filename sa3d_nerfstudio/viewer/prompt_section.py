"""Sections for prompts: points, boxes, words, and undo."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.viewer.context import PanelContext, add_choice
from sa3d_nerfstudio.viewer.scene_objects import SceneObjects
from sa3d_nerfstudio.viewer.viser_compat import EscapeKey, literal

BOX = "box"
TOOLS = {
    "+ point": "Click on the object, as often as you like.",
    "− point": "Click on what is not the object.",
    BOX: "Drag a rectangle around the object.",
    "scribble": "Click along the object: the points are joined.",
    "pick": "Click on an object to select it.",
    "split off": "Click on a piece of the selected object to make it an object of its own.",
}
WITHOUT_SEGMENTER = ("pick", "split off")
"""Tools for existing objects: nothing is embedded, and no weights are needed."""
NO_OBJECT = "(none yet)"
DONE = "Done: move the camera again"


class PromptSection:
    """Section for objects and tools. One tool is active at a time, in one tab, whose camera stands still meanwhile."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        self._tool: str | None = None
        gui, editor = context.gui, context.editor
        self._object = gui.add_dropdown("Object", options=[NO_OBJECT], hint="Prompts go to this object")
        self._object.on_update(lambda event: event.client and self._select(self._object.value))
        new = gui.add_button("New object", color="gray", icon=viser.Icon.PLUS)
        new.on_click(lambda _: context.change(editor.add_object))
        # Two rows: four labels do not fit into one.
        hint = "Then point at it in the picture; press again, or Done, to end that"
        add_choice(gui, "Prompt", list(TOOLS)[:2], lambda tool, client: context.do(self._use, tool, client), hint)
        add_choice(gui, "with", list(TOOLS)[2:4], lambda tool, client: context.do(self._use, tool, client), hint)
        self._objects = SceneObjects(editor)
        use = lambda tool, client: context.do(self._use, tool, client)  # noqa: E731
        self._tools = add_choice(gui, "Objects", list(WITHOUT_SEGMENTER), use, "Then click in the picture")
        self._done = gui.add_button(DONE, color="green", visible=False)
        self._done.on_click(lambda _: context.do(self.put_down))
        self._escape = EscapeKey(lambda: context.do(self.put_down))

    @property
    def is_on(self) -> bool:
        """Whether a tool is active."""
        return self._tool is not None

    def refresh(self) -> None:
        """Show the list of objects, and the instruction for the active tool."""
        state = self._context.editor.state
        self._object.options = state.names or [NO_OBJECT]
        self._object.value = state.selected or NO_OBJECT
        self._tools.visible = bool(state.objects)
        if self._tool in WITHOUT_SEGMENTER:
            self._context.say(f"**{self._tool}** is on. {TOOLS[self._tool]} **Done** to move the camera.")
        elif self._tool is not None:
            self._context.say(
                f"**{self._tool}** is on. {TOOLS[self._tool]} Then **Segment**, or **Done** to move the camera."
            )

    def put_down(self, refresh: bool = True) -> None:
        """Deactivate the tool."""
        tool, client = self._tool, self._context.holder
        self._tool = self._context.holder = None
        self._done.visible = False
        self._escape.rest()
        if tool is None or client is None:
            return
        if client.client_id in self._context.viewer.server.get_clients():
            client.scene.remove_pointer_callback()
        if refresh:
            self._context.refresh()
            self._context.say(f"The camera moves again. {self._context.hint}")

    def left(self, client: viser.ClientHandle) -> None:
        """Deactivate the tool of a tab that was closed or reloaded."""
        if self._context.holder is client:
            self._context.do_in_turn(self.put_down)

    def look(self, client: viser.ClientHandle) -> str:
        """Make the view of a tab's current camera ready for prompts, and return its name."""
        context = self._context
        camera = context.camera(client)
        view = context.editor.free_views.known(camera)
        if view is None:
            view = self._objects.look(camera) if self._tool in WITHOUT_SEGMENTER else context.editor.look(camera)
            context.viewer.hold(client)
            context.viewer.send(client, context.editor.picture(view))
        return view

    def _select(self, name: str) -> None:
        if name != NO_OBJECT:
            self._context.change(self._context.editor.select, name)

    def _use(self, tool: str, client: viser.ClientHandle) -> None:
        """Activate a tool in one tab, or deactivate it if it is active there."""
        context = self._context
        same = tool == self._tool and context.holder is client
        self.put_down(refresh=same)
        if same:
            return
        context.say("One moment: looking at the scene from here ...")
        self._tool, context.holder = tool, client
        self._done.visible = True
        self._escape.listen(client)
        context.viewer.hide_cameras()
        context.show_view("overlay")
        try:
            self.look(client)
        except Exception:
            # The tool cannot be used, for instance without the segmenter's weights.
            self.put_down(refresh=False)
            raise
        if tool == BOX:
            client.scene.on_pointer_event("rect-select")(lambda event: context.do(self._boxed, event))
        else:
            client.scene.on_pointer_event("click")(lambda event: context.do(self._clicked, event))
        context.refresh()

    def _is_held_by(self, client_id: int) -> bool:
        """Whether a tool is active in a tab. Until the worker activates one, the earlier one sends events."""
        holder = self._context.holder
        return holder is not None and holder.client_id == client_id

    def _clicked(self, event: viser.ScenePointerEvent) -> None:
        context = self._context
        if not self._is_held_by(event.client_id) or self._tool in (None, BOX):
            return
        view = self.look(event.client)
        x, y = event.screen_pos[0]
        if self._tool in WITHOUT_SEGMENTER:
            name = (self._objects.pick if self._tool == "pick" else self._objects.split)(view, x, y)
            context.refresh()
            context.say(f"**{literal(name)}** is selected. {self._objects.describe(name)}")
            return
        context.editor.mark(view, x, y, on_object=self._tool != "− point", joined=self._tool == "scribble")
        context.refresh()

    def _boxed(self, event: viser.ScenePointerEvent) -> None:
        context = self._context
        if not self._is_held_by(event.client_id) or self._tool != BOX:
            return
        view = self.look(event.client)
        (x0, y0), (x1, y1) = event.screen_pos
        context.editor.draw_box(view, x0, y0, x1, y1)
        context.refresh()


class TextSection:
    """Section for words: text, Find, and a choice of several matches, of which the best is taken at once."""

    def __init__(self, context: PanelContext, prompting: PromptSection) -> None:
        self._context = context
        self._prompting = prompting
        self._view = ""
        self._matches: dict[str, tuple[float, float, float, float]] = {}
        self._text = context.gui.add_text("Text", initial_value="", hint="Name the object, as in: a mug")
        find = context.gui.add_button("Find in this view", color="gray", icon=viser.Icon.SEARCH)
        find.on_click(lambda event: event.client and context.do(self._find, event.client))
        self._choice = context.gui.add_dropdown("Found", options=[""], visible=False, hint="What else looks like that")
        self._choice.on_update(lambda event: event.client and context.do(self._pick, self._choice.value))

    def refresh(self) -> None:
        """Show the choice if there are several matches."""
        self._choice.visible = len(self._matches) > 1

    def _find(self, client: viser.ClientHandle) -> None:
        context, text = self._context, self._text.value.strip()
        if not text:
            raise SA3DError("there are no words yet: name the object in the field above, as in: a mug.")
        context.say(f"Looking for {literal(text)} ...")
        context.show_view("overlay")
        self._matches, self._view = {}, self._prompting.look(client)
        context.refresh_handles()
        self._matches = context.editor.free_views.find(self._view, text, context.pipeline().text_options())
        best = next(iter(self._matches))
        self._choice.options = list(self._matches)
        self._choice.value = best
        # The choice appears before the best match is tried, which may select nothing where another match does.
        self.refresh()
        more = " **Found** has the others." if len(self._matches) > 1 else ""
        self._take(best, f"{len(self._matches)} found; the best match is marked.{more}")

    def _pick(self, label: str) -> None:
        if label in self._matches:
            self._take(label, f"**{literal(label)}** is marked.")

    def _take(self, label: str, said: str) -> None:
        context = self._context
        try:
            context.editor.draw_box(self._view, *self._matches[label])
        except SA3DError as error:
            if len(self._matches) == 1:
                raise
            raise SA3DError(f"{str(error).rstrip('.')}, or take another match under Found.") from error
        context.refresh()
        context.say(f"{said} Then **Segment**, or add points.")


SIZES = ("small", "mid", "large")


class EditSection:
    """Section for the choice of a candidate, and for undo, redo and clear."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        editor = context.editor
        self._sizes = add_choice(
            context.gui,
            "Mask",
            list(SIZES),
            lambda size, _: context.change(editor.choose, SIZES.index(size)),
            "Part, object, or whole",
        )
        edits = {"undo": editor.undo, "redo": editor.redo, "clear": editor.clear}
        add_choice(context.gui, "Edit", list(edits), lambda edit, _: context.change(edits[edit]))

    def refresh(self) -> None:
        """Show the choice if there may be several candidates."""
        self._sizes.visible = self._context.editor.may_choose
