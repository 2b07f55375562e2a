"""The panel's upper part: which object, and the tools that point at it."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.viewer.desk import Desk, add_choice
from sa3d_nerfstudio.viewer.escape import EscapeKey

TOOLS = {
    "+ point": "Click on the object, as often as you like.",
    "− point": "Click on what is not the object.",
    "box": "Drag a rectangle around the object.",
    "scribble": "Click along the object: the points are joined.",
}
NO_OBJECT = "(none yet)"
DONE = "Done: move the camera again"


class Prompting:
    """Objects and tools. One tool is on at a time, in one tab; meanwhile that tab's camera stands still."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._tool: str | None = None
        gui, bench = desk.gui, desk.bench
        self._object = gui.add_dropdown("Object", options=[NO_OBJECT], hint="Prompts go to this object")
        self._object.on_update(lambda event: event.client and self._select(self._object.value))
        new = gui.add_button("New object", color="gray", icon=viser.Icon.PLUS)
        new.on_click(lambda _: desk.change(bench.add_object))
        # Two rows: four labels do not fit into one.
        hint = "Then point at it in the picture; press again, or Esc, to end that"
        add_choice(gui, "Prompt", list(TOOLS)[:2], lambda tool, client: desk.do(self._use, tool, client), hint)
        add_choice(gui, "with", list(TOOLS)[2:], lambda tool, client: desk.do(self._use, tool, client), hint)
        self._done = gui.add_button(DONE, color="green", visible=False)
        self._done.on_click(lambda _: desk.do(self.put_down))
        self._escape = EscapeKey(DONE, lambda: desk.do(self.put_down))

    @property
    def is_on(self) -> bool:
        """Whether a tool is on."""
        return self._tool is not None

    def refresh(self) -> None:
        """Show which objects there are, and what the tool waits for."""
        state = self._desk.bench.state
        self._object.options = state.names or [NO_OBJECT]
        self._object.value = state.selected or NO_OBJECT
        if self._tool is not None:
            self._desk.say(
                f"**{self._tool}** is on. {TOOLS[self._tool]} Then **Segment**, or **Done** (Esc) to move the camera."
            )

    def put_down(self, refresh: bool = True) -> None:
        """End the tool."""
        tool, client = self._tool, self._desk.holder
        self._tool = self._desk.holder = None
        self._done.visible = False
        self._escape.rest()
        if tool is None or client is None:
            return
        if client.client_id in self._desk.host.server.get_clients():
            client.scene.remove_pointer_callback()
        if refresh:
            self._desk.refresh()
            self._desk.say(f"The camera moves again. {self._desk.hint}")

    def left(self, client: viser.ClientHandle) -> None:
        """A tab was closed, or reloaded; the tool that it held is free."""
        if self._desk.holder is client:
            self._desk.do_in_turn(self.put_down)

    def look(self, client: viser.ClientHandle) -> str:
        """Make a tab ready for prompts, from wherever its camera is now, and name what it sees."""
        desk = self._desk
        camera = desk.camera(client)
        view = desk.bench.sight.known(camera)
        if view is None:
            view = desk.bench.look(camera)
            desk.host.hold(client)
            desk.host.send(client, desk.bench.picture(view))
        return view

    def _select(self, name: str) -> None:
        if name != NO_OBJECT:
            self._desk.change(self._desk.bench.select, name)

    def _use(self, tool: str, client: viser.ClientHandle) -> None:
        """Take up a tool in one tab, or put it down if it is in use there."""
        desk = self._desk
        same = tool == self._tool and desk.holder is client
        self.put_down(refresh=same)
        if same:
            return
        desk.say("One moment: looking at the scene from here ...")
        self._tool, desk.holder = tool, client
        self._done.visible = True
        self._escape.listen(client)
        desk.host.hide_cameras()
        desk.show_view("overlay")
        try:
            self.look(client)
        except Exception:
            # Such as weights that cannot be had: there is nothing to point with then.
            self.put_down(refresh=False)
            raise
        if tool == "box":
            client.scene.on_pointer_event("rect-select")(lambda event: desk.do(self._boxed, event))
        else:
            client.scene.on_pointer_event("click")(lambda event: desk.do(self._clicked, event))
        desk.refresh()

    def _clicked(self, event: viser.ScenePointerEvent) -> None:
        desk = self._desk
        if desk.holder is None or self._tool is None:
            return
        view = self.look(desk.holder)
        x, y = event.screen_pos[0]
        desk.bench.mark(view, x, y, on_object=self._tool != "− point", joined=self._tool == "scribble")
        desk.refresh()

    def _boxed(self, event: viser.ScenePointerEvent) -> None:
        desk = self._desk
        if desk.holder is None:
            return
        view = self.look(desk.holder)
        (x0, y0), (x1, y1) = event.screen_pos
        desk.bench.draw_box(view, x0, y0, x1, y1)
        desk.refresh()
