"""The panel's worker and its status line, in a real viser server without a browser."""

from __future__ import annotations

import copy
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import viser

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.viewer.context import PanelContext
from sa3d_nerfstudio.viewer.panel import close_at_interrupt
from sa3d_nerfstudio.viewer.segment_section import Job
from tests.viewer.browser import HANG, free_port
from tests.viewer.test_editor import ViewsOfBalls, bench_on, click, views

__all__ = ["views"]


class Viewer:
    """What the panel asks of the viewer; the run is not written."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.server = server

    def shows(self, output: str) -> bool:
        return False

    def mark(self, points: Any, colors: Any) -> None: ...

    def save(self, pipeline: Any) -> Path:
        raise SA3DError("the disk is full; the objects are safe for now in /tmp/sa3d-1.")


@pytest.fixture
def context(views: ViewsOfBalls) -> Iterator[PanelContext]:
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    viewer: Any = Viewer(server)
    context = PanelContext(viewer, bench_on(views), SimpleNamespace)  # type: ignore[arg-type, return-value]
    yield context
    context.close()
    server.stop()


def test_faults_of_prompts_are_shown_when_masks_are_loaded_beside_the_panel(
    context: PanelContext, views: ViewsOfBalls, capsys: pytest.CaptureFixture[str]
):
    editor = context.editor
    click(editor, views, 1)
    state = copy.deepcopy(editor.model.masks.state_dict())
    state["_extra_state"]["prompts"]["object"]["prompts"] = "none"
    context.begin()
    assert "damaged" not in context._status.content
    editor.model.masks.load_state_dict(state)
    context._guarded(lambda: context.say("done"))
    assert "damaged" in context._status.content
    assert "damaged" in capsys.readouterr().out
    context._guarded(lambda: context.say("done"))
    assert context._status.content == "done", "each fault is shown once"


def test_an_interrupt_stops_the_job_and_waits_for_it(context: PanelContext):
    job = Job(context, context.gui.add_button("Segment"))
    stopped: list[bool] = []
    begun = threading.Event()

    def action() -> None:
        with job.running():
            begun.set()
            while not job.stopped:
                time.sleep(0.01)
        stopped.append(True)

    def close() -> None:
        job.stop()
        context.close()

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        close_at_interrupt(close)
        context.do(action)
        assert begun.wait(HANG)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert stopped
        # The second one is the last.
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_the_terminal_names_what_fails_while_the_panel_closes(
    context: PanelContext, capsys: pytest.CaptureFixture[str]
):
    begun, closing = threading.Event(), threading.Event()

    def action() -> None:
        begun.set()
        assert closing.wait(HANG)
        context.save()

    context.do(action)
    assert begun.wait(HANG)
    waiting = threading.Thread(target=context.close)
    waiting.start()
    while not context._closed:
        time.sleep(0.01)
    closing.set()
    waiting.join(HANG)
    assert "safe for now in /tmp/sa3d-1" in capsys.readouterr().out


def test_a_change_during_a_save_is_not_saved(context: PanelContext, monkeypatch: pytest.MonkeyPatch):
    editor = context.editor
    editor.unsaved = True
    with pytest.raises(SA3DError, match="full"):
        context.save()
    assert editor.unsaved

    def save(pipeline: Any) -> Path:
        # As the slider does, on a thread of its own.
        editor.unsaved |= moved
        return Path("config.yml")

    monkeypatch.setattr(context.viewer, "save", save)
    moved = False
    context.save()
    assert not editor.unsaved
    moved = True
    context.save()
    assert editor.unsaved
