"""The Segment panel: handles and callbacks. What it shows and does is in :mod:`sa3d_nerfstudio.viewer.workbench`."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import viser
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer import Viewer
from nerfstudio.viewer.viewer_elements import ViewerControl

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.viewer.host import Host
from sa3d_nerfstudio.viewer.points import view_points, write_ply
from sa3d_nerfstudio.viewer.workbench import Workbench

if TYPE_CHECKING:
    from sa3d_nerfstudio.pipeline import SA3DPipeline

TOOLS = {
    "+ point": "Click on the object, as often as you like.",
    "− point": "Click on what is not the object.",
    "box": "Drag a rectangle around the object.",
    "scribble": "Click along the object: the points are joined.",
}
VIEWS = {
    "overlay": "mask_overlay",
    "object only": "object_rgb",
    "object removed": "background_rgb",
    "mask": "mask",
    "photo": "rgb",
}
SIZES = ("small", "mid", "large")
LIVE_SECONDS = 2.0
"""Between two updates of the viewport while all views are segmented."""
RENDER_SECONDS = 30.0
"""Likewise, where the viewport has to be rendered for it: on a CPU that takes the job's time."""
NO_OBJECT = "(none yet)"
GREEN, RED, GRAY = "green", "red", "gray"


class SegmentPanel(ViewerControl):
    """Prompting in nerfstudio's viewer. nerfstudio finds it among the pipeline's attributes, and sets it up.

    All that touches the model runs on one thread of its own, one thing after another, so that viser's threads are
    never blocked and the workbench is used by one thread only.
    """

    def __init__(self, pipeline: SA3DPipeline) -> None:
        # Kept in a function: nerfstudio walks all attributes of the pipeline, and must not walk in circles.
        self._pipeline: Callable[[], SA3DPipeline] = lambda: pipeline
        self._tool: str | None = None
        self._client: viser.ClientHandle | None = None
        self._stop = threading.Event()
        self._busy = threading.Event()

    def _setup(self, viewer: Viewer) -> None:
        super()._setup(viewer)
        pipeline = self._pipeline()
        self.host = Host(viewer)
        self.bench = Workbench(
            pipeline.model,
            pipeline.views,
            pipeline.make_segmenter,
            pipeline.config,
            pipeline.config.resolution,
            self.host.lock,
        )
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sa3d")
        self.host.prepare(pipeline.views.long_side if pipeline.device.type == "cpu" else None)
        # Above nerfstudio's own controls, whose order begins at 0.
        with self.viser_server.gui.add_folder("Segment", order=-1.0):
            self._add_prompting()
            self._add_segmenting()
            self._add_viewing()
            self._add_objects()
            self._add_saving()
        self.viser_server.on_client_connect(self._came)
        self.viser_server.on_client_disconnect(self._left)
        self._say("Choose **+ point**, then click on a thing.")
        self._refresh_handles()

    # What is there. Handles are made here and nowhere else.

    def _add_prompting(self) -> None:
        gui = self.viser_server.gui
        self._status = gui.add_markdown("")
        self._object = gui.add_dropdown("Object", [NO_OBJECT], hint="Prompts go to this object")
        self._object.on_update(lambda event: event.client and self._do(self._select, self._object.value))
        self._new = gui.add_button("New object", color=GRAY, icon=viser.Icon.PLUS)
        self._new.on_click(lambda _: self._do(self._change, self.bench.add_object))
        # Two rows: four labels do not fit into one.
        hint = "Press again, or Done, to end it"
        self._add_choice("Prompt", list(TOOLS)[:2], lambda tool, client: self._do(self._use, tool, client), hint)
        self._add_choice("with", list(TOOLS)[2:], lambda tool, client: self._do(self._use, tool, client), hint)
        self._done = gui.add_button("Done: move the camera again", color=GREEN, visible=False)
        self._done.on_click(lambda _: self._do(self._put_down))
        self._sizes = self._add_choice(
            "Mask",
            list(SIZES),
            lambda size, _: self._do(self._change, self.bench.choose, SIZES.index(size)),
            "Part, object, or whole",
        )
        self._add_choice(
            "Edit", ["undo", "redo", "clear"], lambda edit, _: self._do(self._change, getattr(self.bench, edit))
        )

    def _add_segmenting(self) -> None:
        gui = self.viser_server.gui
        self._segment = gui.add_button("Segment", color=GREEN, icon=viser.Icon.CUBE, hint="In all training views")
        self._segment.on_click(lambda _: self._do(self._run_segment))
        self._halt = gui.add_button("Stop", color=RED, icon=viser.Icon.PLAYER_STOP, visible=False)
        self._halt.on_click(lambda _: self._stop.set())
        self._bar = gui.add_progress_bar(0.0, visible=False)

    def _add_viewing(self) -> None:
        gui = self.viser_server.gui
        self._output = gui.add_dropdown("View", list(VIEWS), hint="Sets nerfstudio's Output type")
        self._output.on_update(lambda event: event.client and self._show_output(self._output.value))
        threshold = self._pipeline().config.threshold
        self._threshold = gui.add_slider(
            "Threshold", 0.05, 0.95, 0.05, threshold, hint="Probability above which something is on the object"
        )
        self._threshold.on_update(lambda event: event.client and self._set_threshold(self._threshold.value))

    def _add_objects(self) -> None:
        gui = self.viser_server.gui
        with gui.add_folder("This object", expand_by_default=False):
            self._name = gui.add_text("Name", "")
            self._rename = gui.add_button("Rename", color=GRAY)
            self._rename.on_click(lambda _: self._do(self._change, self.bench.rename, self._name.value))
            self._shown = gui.add_checkbox("Show", True)
            self._shown.on_update(lambda event: event.client and self._do(self._change, self._show))
            self._solo = gui.add_checkbox("Solo", False, hint="Hide the others")
            self._solo.on_update(lambda event: event.client and self._do(self._change, self._set_solo))
            self._delete = gui.add_button("Delete", color=RED, icon=viser.Icon.TRASH, hint="Undo brings it back")
            self._delete.on_click(lambda _: self._do(self._change, self.bench.delete))

    def _add_saving(self) -> None:
        gui = self.viser_server.gui
        with gui.add_folder("Save and export", expand_by_default=False):
            self._save = gui.add_button("Save the run", color=GREEN, icon=viser.Icon.DEVICE_FLOPPY)
            self._save.on_click(lambda _: self._do(self._write_run))
            self._points = gui.add_button("Write the object's points", color=GRAY, icon=viser.Icon.FILE_EXPORT)
            self._points.on_click(lambda _: self._do(self._write_points))
            # In fields, which scroll: the panel would be as wide as the longest command.
            self._commands = {
                what: gui.add_text(what, "", hint=hint) for what, (hint, _) in self.host.commands().items()
            }

    def _add_choice(
        self,
        label: str,
        options: list[str],
        pressed: Callable[[str, viser.ClientHandle], None],
        hint: str | None = None,
    ) -> viser.GuiButtonGroupHandle[str]:
        """A row of buttons, each of which may be pressed again and again.

        viser 0.2.7 reports a press only where it changes the value of the row; so the value is taken back each time.
        """
        group = self.viser_server.gui.add_button_group(label, options, hint=hint)
        group.value = ""

        def on_click(event: viser.GuiEvent) -> None:
            option = group.value
            if event.client is not None and option:
                group.value = ""
                pressed(option, event.client)

        group.on_click(on_click)
        return group

    # What happens when. Each of these runs on the worker.

    def _use(self, tool: str, client: viser.ClientHandle | None) -> None:
        """Take up a tool in one tab, or put it down if it is in use there."""
        same = tool == self._tool and self._client is client
        self._put_down(refresh=same)
        if same or client is None:
            return
        self._say("One moment: looking at the scene from here ...")
        self._tool, self._client = tool, client
        self._done.visible = True
        self.host.hide_cameras()
        self._output.value = "overlay"
        self.host.show_output(VIEWS["overlay"])
        self._look()
        if tool == "box":
            client.scene.on_pointer_event("rect-select")(lambda event: self._do(self._boxed, event))
        else:
            client.scene.on_pointer_event("click")(lambda event: self._do(self._clicked, event))
        self._refresh()

    def _put_down(self, refresh: bool = True) -> None:
        tool, client = self._tool, self._client
        self._tool = self._client = None
        self._done.visible = False
        if tool is None or client is None:
            return
        if client.client_id in self.viser_server.get_clients():
            client.scene.remove_pointer_callback()
        if refresh:
            self._refresh()

    def _came(self, client: viser.ClientHandle) -> None:
        """A tab was opened; it begins where a picture was taken, and not somewhere in the middle of things."""

        def welcome() -> None:
            self.host.look_from(client, 0)
            self.host.hide_cameras()

        # Not on the worker, which may be at work for minutes.
        threading.Thread(target=welcome, daemon=True).start()

    def _left(self, client: viser.ClientHandle) -> None:
        """A tab was closed, or reloaded; the tool that it held is free."""
        if self._client is client:
            self._worker.submit(self._guarded, self._put_down)

    def _look(self) -> str:
        """Make the tool's tab ready for prompts, from wherever its camera is now."""
        client = self._client
        assert client is not None
        camera = self._camera(client)
        if self.bench.sight.known(camera) is None:
            self.host.hold(client)
            self.host.send(client, self.bench.picture(self.bench.look(camera)))
        return self.bench.look(camera)

    def _camera(self, client: viser.ClientHandle) -> Cameras:
        height, width = self.host.size(client, self.bench.views.long_side)
        camera = self.get_camera(height, width, client.client_id)
        assert camera is not None
        return camera

    def _show_masks(self, render: bool = True) -> None:
        """Bring all viewports up to date.

        A tab whose view has been traced is sent a picture made of that, at once; others render, if they may.
        """
        overlaid = self.host.shows(VIEWS["overlay"])
        for client in self.viser_server.get_clients().values():
            view = self.bench.sight.known(self._camera(client)) if overlaid or client is self._client else None
            if view is not None:
                self.host.hold(client)
                self.host.send(client, self.bench.picture(view))
            elif render:
                self.host.rerender(client)

    def _clicked(self, event: viser.ScenePointerEvent) -> None:
        if self._client is None or self._tool is None:
            return
        view = self._look()
        x, y = event.screen_pos[0]
        self.bench.mark(view, x, y, on_object=self._tool != "− point", joined=self._tool == "scribble")
        self._refresh()

    def _boxed(self, event: viser.ScenePointerEvent) -> None:
        if self._client is None:
            return
        view = self._look()
        (x0, y0), (x1, y1) = event.screen_pos
        self.bench.draw_box(view, x0, y0, x1, y1)
        self._refresh()

    def _change(self, operation: Callable[..., Any], *args: Any) -> None:
        operation(*args)
        self._refresh()

    def _select(self, name: str) -> None:
        if name != NO_OBJECT:
            self._change(self.bench.select, name)

    def _show(self) -> None:
        hidden = {thing.name for thing in self.bench.state if thing.hidden}
        selected = {self.bench.state.selected or ""}
        self.bench.show(hidden - selected if self._shown.value else hidden | selected)

    def _set_solo(self) -> None:
        self.bench.solo(self._solo.value)

    def _run_segment(self) -> None:
        self._put_down(refresh=False)
        self._output.value = "overlay"
        self.host.show_output(VIEWS["overlay"])
        self._running(True)
        steps = self.bench.segment(LIVE_SECONDS)
        try:
            drawn, rendered = 0, time.monotonic()
            for progress in steps:
                self._bar.value = 100 * progress.done / progress.total
                self._say(
                    f"Segmenting **{self.bench.state.selected}**, pass {progress.number_of_pass}: view {progress.done} "
                    f"of {progress.total}, {progress.used} used, {progress.rejected} rejected."
                )
                if self.bench.publications != drawn:
                    drawn = self.bench.publications
                    due = time.monotonic() - rendered > RENDER_SECONDS
                    self._show_masks(render=due)
                    rendered = time.monotonic() if due else rendered
                if self._stop.is_set():
                    break
            stopped = self._stop.is_set()
        finally:
            steps.close()
            self._running(False)
            self._refresh()
        if self.host.trains:
            self.host.save(self._pipeline())
            self.bench.unsaved = False
            self._refresh_handles()
        done = "Stopped; what was found is kept." if stopped else "Done."
        self._say(f"{done} {self._last_words(progress)} Move around; add points in any view, and segment again.")

    def _last_words(self, progress: Any) -> str:
        return f"{progress.used} of {progress.total} views used, {progress.rejected} rejected."

    def _write_run(self) -> None:
        self._say("Saving ...")
        config = self.host.save(self._pipeline())
        self.bench.unsaved = False
        self._refresh_handles()
        self._say(f"Saved: {_short(config)}")

    def _write_points(self) -> None:
        name = self.bench.state.selected
        model = self._pipeline().model
        if name is None or model.masks[name].is_empty:
            raise SA3DError("there is no object to write yet: segment one first.")
        path = self.host.run_dir / "exports" / (re.sub(r"[^\w.-]+", "_", name) + ".ply")
        self._running(True)
        try:
            found = []
            for view in view_points(self.bench.views, model.masks[name], model.mask_threshold):
                found.append(view)
                self._bar.value = 100 * len(found) / len(self.bench.views)
                self._say(f"Writing points: view {len(found)} of {len(self.bench.views)}.")
                if self._stop.is_set():
                    self._say("Stopped; nothing was written.")
                    return
        finally:
            self._running(False)
        points, colors = (torch.cat(part) for part in zip(*found, strict=True))
        if len(points) == 0:
            raise SA3DError(f"no training view shows {name}: lower the threshold, or segment it again.")
        write_ply(path, points, colors)
        self._say(f"{len(points)} points written: {_short(path)}")

    # What happens at once.

    def _show_output(self, name: str) -> None:
        if self._tool is not None:
            self._do(self._put_down)
        self.host.show_output(VIEWS[name])

    def _set_threshold(self, value: float) -> None:
        # The run's configuration goes along, so that a saved run exports what was seen here.
        self._pipeline().model.mask_threshold = self._pipeline().config.threshold = value
        self._do(self._refresh)

    # How it is done.

    def _do(self, action: Callable[..., None], *args: Any) -> None:
        """Have the worker do something, unless it segments: that is stopped first, by the user."""
        if self._busy.is_set():
            self._say("It is still at work: press **Stop** first, or wait.")
            return
        self._worker.submit(self._guarded, action, *args)

    def _guarded(self, action: Callable[..., None], *args: Any) -> None:
        try:
            self.bench.adopt()
            action(*args)
        except SA3DError as error:
            self._complain(str(error))
        except Exception as error:
            # Whoever works in the browser sees no terminal; that one gets all of it.
            CONSOLE.print_exception()
            self._complain(f"{one_line(error)} (the terminal tells more).")

    def _running(self, on: bool) -> None:
        self._stop.clear()
        (self._busy.set if on else self._busy.clear)()
        self._bar.value = 0.0
        self._bar.visible = self._halt.visible = on
        self._segment.visible = not on

    def _refresh(self) -> None:
        """Show what there is now, in the panel and in every viewport."""
        self._refresh_handles()
        marks = self.bench.markers()
        points = np.array([position.numpy() for position, _ in marks]).reshape(-1, 3)
        colors = np.array([(0.1, 0.9, 0.2) if on else (1.0, 0.1, 0.1) for _, on in marks]).reshape(-1, 3)
        self.host.mark(points, colors)
        self._show_masks()
        if self._tool is not None:
            self._say(f"**{self._tool}** is on. {TOOLS[self._tool]} Then **Segment**, or **Done** to move the camera.")

    def _refresh_handles(self) -> None:
        state, current = self.bench.state, self.bench.state.current
        self._object.options = state.names or [NO_OBJECT]
        self._object.value = state.selected or NO_OBJECT
        self._sizes.visible = self.bench.num_candidates() > 1
        self._segment.disabled = current is None or not current.prompts
        self._name.value = state.selected or ""
        self._shown.value = current is None or not current.hidden
        others = [thing for thing in state if thing is not current]
        self._solo.value = bool(others) and all(thing.hidden for thing in others) and self._shown.value
        for handle in (self._rename, self._shown, self._solo, self._delete, self._points):
            handle.disabled = current is None
        saved = self.host.config.exists() and not self.bench.unsaved
        for what, (_, command) in self.host.commands().items():
            self._commands[what].value = command if saved else "(save the run first)"

    def _say(self, text: str) -> None:
        self._status.content = text

    def _complain(self, text: str) -> None:
        self._status.content = f"⚠ **{text[:1].upper()}{text[1:]}**"


def _short(path: Path) -> str:
    """The end of a path; the panel is narrow."""
    return "/".join(path.parts[-3:])
