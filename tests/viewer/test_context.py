"""The panel's status line: faults of saved prompts, whenever they are read."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import viser

from sa3d_nerfstudio.viewer.context import PanelContext
from tests.viewer.browser import free_port
from tests.viewer.test_editor import ViewsOfBalls, bench_on, click, views

__all__ = ["views"]


def test_faults_of_prompts_are_shown_when_masks_are_loaded_beside_the_panel(
    views: ViewsOfBalls, capsys: pytest.CaptureFixture[str]
):
    editor = bench_on(views)
    click(editor, views, 1)
    state = copy.deepcopy(editor.model.masks.state_dict())
    state["_extra_state"]["prompts"]["object"]["prompts"] = "none"
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        viewer: Any = SimpleNamespace(server=server, shows=lambda _: False, mark=lambda *_: None)
        context = PanelContext(viewer, editor, lambda: pytest.fail("nothing is saved"))
        context.begin()
        assert "damaged" not in context._status.content
        editor.model.masks.load_state_dict(state)
        context._guarded(lambda: context.say("done"))
        assert "damaged" in context._status.content
        assert "damaged" in capsys.readouterr().out
        context._guarded(lambda: context.say("done"))
        assert context._status.content == "done", "each fault is shown once"
    finally:
        server.stop()
