"""The panel's text tool: what words name becomes a box."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.prompting import Prompting


class Wording:
    """Text, Find, and a choice where several places match; the best match is taken at once."""

    def __init__(self, desk: Desk, prompting: Prompting) -> None:
        self._desk = desk
        self._prompting = prompting
        self._view = ""
        self._found: dict[str, tuple[float, float, float, float]] = {}
        self._text = desk.gui.add_text("Text", initial_value="", hint="Name the object, as in: a mug")
        find = desk.gui.add_button("Find in this view", color="gray", icon=viser.Icon.SEARCH)
        find.on_click(lambda event: event.client and desk.do(self._find, event.client))
        self._choice = desk.gui.add_dropdown("Found", options=[""], visible=False, hint="What else looks like that")
        self._choice.on_update(lambda event: event.client and desk.change(self._take, self._choice.value))

    def refresh(self) -> None:
        """Offer a choice where there is one."""
        self._choice.visible = len(self._found) > 1

    def _find(self, client: viser.ClientHandle) -> None:
        desk, text = self._desk, self._text.value.strip()
        if not text:
            raise SA3DError("there are no words yet: name the object in the field above, as in: a mug.")
        desk.say(f"Looking for {text} ...")
        desk.show_view("overlay")
        self._found, self._view = {}, self._prompting.look(client)
        desk.refresh_handles()
        self._found = desk.bench.sight.find(self._view, text, desk.pipeline().text_options())
        best = next(iter(self._found))
        self._choice.options = list(self._found)
        self._choice.value = best
        # Before the best is tried: it may select nothing, and another one something.
        self.refresh()
        self._take(best)
        desk.refresh()
        more = " **Found** has the others." if len(self._found) > 1 else ""
        desk.say(f"{len(self._found)} found; the best match is marked.{more} Then **Segment**, or add points.")

    def _take(self, found: str) -> None:
        if found in self._found:
            self._desk.bench.draw_box(self._view, *self._found[found])
