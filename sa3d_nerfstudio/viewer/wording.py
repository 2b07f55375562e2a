"""The panel's text tool: what words name becomes a box."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.text import TextBox, find_boxes
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.prompting import Prompting


class Wording:
    """Text, Find, and a choice where several places match; the best match is taken at once."""

    def __init__(self, desk: Desk, prompting: Prompting) -> None:
        self._desk = desk
        self._prompting = prompting
        self._view = ""
        self._found: dict[str, TextBox] = {}
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
        self._view = self._prompting.look(client)
        trace = desk.bench.sight.trace(self._view)
        image = SegmenterImage(trace.rgb, self._view, trace.depth[..., 0])
        found = find_boxes(image, text, desk.pipeline().text_options())
        if not found:
            raise SA3DError(f"nothing here looks like {text}: try other words or another view, or use + point.")
        self._found = {f"{number}: {box.label} {box.score:.2f}": box for number, box in enumerate(found, start=1)}
        best = next(iter(self._found))
        self._choice.options = list(self._found)
        self._choice.value = best
        self._take(best)
        desk.refresh()
        more = " **Found** has the others." if len(found) > 1 else ""
        desk.say(f"{len(found)} found; the best match is marked.{more} Then **Segment**, or add points.")

    def _take(self, found: str) -> None:
        box = self._found.get(found)
        if box is None:
            return
        trace = self._desk.bench.sight.trace(self._view)
        x0, y0, x1, y1 = box.box
        self._desk.bench.draw_box(self._view, x0 / trace.width, y0 / trace.height, x1 / trace.width, y1 / trace.height)
