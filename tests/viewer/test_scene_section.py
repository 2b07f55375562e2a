"""The list of all objects, in a real viser server without a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import viser

from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.prompt_section import PromptSection
from sa3d_nerfstudio.viewer.scene_section import LISTED, SceneSection
from tests.viewer.browser import free_port
from tests.viewer.test_editor import ViewsOfBalls
from tests.viewer.test_scene_objects import bench


class Context:
    """What the sections ask of the panel; what is clicked is done at once."""

    def __init__(self, gui: viser.GuiApi, editor: Editor) -> None:
        self.gui, self.editor = gui, editor
        self.holder = None
        self.said: list[str] = []

    def do(self, action: Callable[..., None], *args: Any) -> None:
        action(*args)

    def change(self, operation: Callable[..., Any], *args: Any) -> None:
        operation(*args)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def server() -> Iterator[viser.ViserServer]:
    server = viser.ViserServer(host="127.0.0.1", port=free_port(), verbose=False)
    yield server
    server.stop()


def test_the_list_stays_short_and_shows_what_is_asked_for(server: viser.ViserServer):
    editor, _ = bench(ViewsOfBalls(), "both", "first", "second", "far", hidden=("both",))
    context: Any = Context(server.gui, editor)
    PromptSection(context).refresh()
    section = SceneSection(context)
    section.refresh()
    lines = section._list.content.splitlines()
    assert lines[0].startswith("- first (part of both)")
    assert lines[-1] == "- both (2 parts, hidden)"
    assert section._other.options[0] == "(none)"
    section._filter.value = "FA"
    section.refresh()
    assert section._list.content == "- **far**"
    section._filter.value = "teapot"
    section.refresh()
    assert "no object" in section._list.content
    for number in range(200):
        editor.add_object(f"object {number}")
    section._filter.value = ""
    section.refresh()
    seen: list[str] = []
    assert section._pages.visible
    for first in range(0, 204, LISTED):
        *lines, place = section._list.content.splitlines()
        assert place == f"- {first + 1} to {first + len(lines)} of 204"
        seen += lines
        section._turn(first + LISTED)
    assert len(seen) == len(set(seen)) == 204
    assert section._list.content.splitlines()[0] == seen[200], "there is nothing after the last page"
    section._filter.value = "object 199"
    section.refresh()
    assert section._list.content == "- **object 199**" and not section._pages.visible
