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
from sa3d_nerfstudio.viewer.export_section import ExportSection
from sa3d_nerfstudio.viewer.panel import close_at_interrupt
from sa3d_nerfstudio.viewer.prompt_section import PromptSection
from sa3d_nerfstudio.viewer.segment_section import Job
from tests.viewer.browser import HANG, free_port
from tests.viewer.test_editor import ViewsOfBalls, bench_on, click, viewer_camera, views

__all__ = ["views"]


class Viewer:
    """What the panel asks of the viewer; the run is not written."""

    def __init__(self, server: viser.ViserServer) -> None:
        self.server = server

    def shows(self, output: str) -> bool:
        return False

    def mark(self, points: Any, colors: Any) -> None: ...

    def hide_cameras(self) -> None: ...

    def show_output(self, name: str) -> None: ...

    def hold(self, client: Any) -> None: ...

    def send(self, client: Any, image: Any) -> None: ...

    def camera(self, client: Any, long_side: int) -> Any:
        return client.seen

    def save(self, pipeline: Any) -> Path:
        raise SA3DError("the disk is full; the objects are safe for now in /tmp/sa3d-1.")


@pytest.fixture
def context(views: ViewsOfBalls) -> Iterator[PanelContext]:
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    viewer: Any = Viewer(server)
    views.long_side = 64  # type: ignore[attr-defined]
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

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        close_at_interrupt(context.close)
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
    while not context.closed:
        time.sleep(0.01)
    closing.set()
    waiting.join(HANG)
    assert "safe for now in /tmp/sa3d-1" in capsys.readouterr().out


class Tab:
    """A tab that looks at the balls, and sends what is clicked as viser does: to the callback that was set last."""

    def __init__(self, number: int, views: ViewsOfBalls) -> None:
        self.client_id, self.seen = number, viewer_camera(views, number)
        self.scene, self.gui = self, SimpleNamespace()
        self.callback: Any = None

    def on_pointer_event(self, kind: str) -> Any:
        return lambda callback: setattr(self, "callback", callback)

    def remove_pointer_callback(self) -> None: ...

    def point(self, *places: tuple[float, float]) -> None:
        self.callback(SimpleNamespace(client=self, client_id=self.client_id, screen_pos=places))


def test_events_of_an_earlier_tool_are_dropped(context: PanelContext, views: ViewsOfBalls):
    editor, first, second = context.editor, Tab(0, views), Tab(1, views)
    section = PromptSection(context)

    def use(tool: str, tab: Any, *late: tuple[Any, tuple[tuple[float, float], ...]]) -> None:
        """Press a button; before the worker gets to it, others point with the tools that they have."""
        waiting, pressed = threading.Event(), threading.Event()

        def work() -> None:
            waiting.set()
            assert pressed.wait(HANG)

        context.do(work)
        assert waiting.wait(HANG)
        context.do(section._use, tool, tab)
        for other, places in late:
            other.point(*places)
        pressed.set()
        finish(context)

    def finish(context: PanelContext) -> None:
        done = threading.Event()
        context.do(done.set)
        assert done.wait(HANG)

    y, x = (views.elsewhere.ids(0) == 1).nonzero().float().mean(0).tolist()
    place = ((x + 0.5) / 64, (y + 0.5) / 48)
    box = ((0.1, 0.1), (0.9, 0.9))
    use("+ point", first)
    use("+ point", second, (first, (place,)))
    assert editor.state.names == [], "a click in one tab is no prompt in the view of another"
    use("box", second)
    use("+ point", first, (second, box))
    use("box", first)
    use("+ point", first, (first, box))
    assert editor.state.names == [], "a drag is no box when the tool has been changed"
    use("box", first, (first, (place,)))
    assert editor.state.names == [], "nor is a click a point"
    use("+ point", first)
    first.point(place)
    finish(context)
    assert [prompt.view for prompt in editor.state.objects[0].prompts] == ["view 0"]


def test_a_button_pressed_again_while_it_waits_is_pressed_once(context: PanelContext):
    runs: list[int] = []
    begin, done = threading.Event(), threading.Event()

    def action() -> None:
        runs.append(1)

    def work() -> None:
        assert begin.wait(HANG)

    context.do(work)
    for _ in range(3):
        context.do_once(action)
    begin.set()
    context.do(done.set)
    assert done.wait(HANG) and len(runs) == 1
    done.clear()
    context.do_once(action)
    context.do(done.set)
    assert done.wait(HANG) and len(runs) == 2


def test_points_go_to_a_file_of_their_own(
    context: PanelContext, views: ViewsOfBalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    viewer: Any = context.viewer
    viewer.run_dir, viewer.is_elsewhere, viewer.commands = tmp_path, False, dict
    monkeypatch.setattr(views, "is_partly_rendered", lambda view: True, raising=False)
    monkeypatch.setattr(views, "object_trace", lambda view, *_: views.trace(view), raising=False)
    section = ExportSection(context, Job(context, context.gui.add_button("Segment")))
    for ball, name in ((1, "a b"), (3, "a/b")):
        context.editor.add_object(name)
        click(context.editor, views, ball)
        section._write_points()
    files = sorted((tmp_path / "exports").iterdir())
    assert len(files) == 2 and files[0].read_bytes() != files[1].read_bytes()
    # As of views in which no ray passes through the object.
    monkeypatch.setattr(views, "object_trace", lambda view, *_: None)
    with pytest.raises(SA3DError, match="no view shows a/b"):
        section._write_points()


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
