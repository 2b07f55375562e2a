"""The panel's text tool: what words name becomes a box."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.markdown import literal
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
        self._choice.on_update(lambda event: event.client and desk.do(self._pick, self._choice.value))

    def refresh(self) -> None:
        """Offer a choice where there is one."""
        self._choice.visible = len(self._found) > 1

    def _find(self, client: viser.ClientHandle) -> None:
        desk, text = self._desk, self._text.value.strip()
        if not text:
            raise SA3DError("there are no words yet: name the object in the field above, as in: a mug.")
        desk.say(f"Looking for {literal(text)} ...")
        desk.show_view("overlay")
        self._found, self._view = {}, self._prompting.look(client)
        desk.refresh_handles()
        self._found = desk.bench.sight.find(self._view, text, desk.pipeline().text_options())
        best = next(iter(self._found))
        self._choice.options = list(self._found)
        self._choice.value = best
        # Before the best is tried: it may select nothing, and another one something.
        self.refresh()
        more = " **Found** has the others." if len(self._found) > 1 else ""
        self._take(best, f"{len(self._found)} found; the best match is marked.{more}")

    def _pick(self, found: str) -> None:
        if found in self._found:
            self._take(found, f"**{literal(found)}** is marked.")

    def _take(self, found: str, said: str) -> None:
        desk = self._desk
        try:
            desk.bench.draw_box(self._view, *self._found[found])
        except SA3DError as error:
            if len(self._found) == 1:
                raise
            raise SA3DError(f"{str(error).rstrip('.')}, or take another match under Found.") from error
        desk.refresh()
        desk.say(f"{said} Then **Segment**, or add points.")
