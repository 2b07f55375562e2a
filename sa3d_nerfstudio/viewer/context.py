"""Shared state of all sections of the Segment panel: one worker, the status line, the viewports."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import viser
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.terminal import say
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.nerfstudio_viewer import NerfstudioViewer, PanelPipeline
from sa3d_nerfstudio.viewer.viser_compat import literal

VIEWS = {
    "overlay": "mask_overlay",
    "object only": "object_rgb",
    "object removed": "background_rgb",
    "mask": "mask",
    "photo": "rgb",
}
"""Choices for the viewport, and the model's output of each."""
ON_COLOR, OFF_COLOR = (0.1, 0.9, 0.2), (1.0, 0.1, 0.1)


class Section(Protocol):
    """Section of the panel."""

    def refresh(self) -> None:
        """Bring the section's handles up to date."""
        ...


class PanelContext:
    """Shared context of the panel's sections.

    All work on the model runs in sequence on one worker thread, so that viser's threads are never blocked and the
    editor is used by one thread only.

    Args:
        viewer: The viewer.
        editor: The editor that the panel operates.
        pipeline: Returns the pipeline. A function, since nerfstudio walks all attributes and must not walk in circles.
    """

    def __init__(self, viewer: NerfstudioViewer, editor: Editor, pipeline: Callable[[], PanelPipeline]) -> None:
        self.viewer = viewer
        self.editor = editor
        self.pipeline = pipeline
        self.gui = viewer.server.gui
        self.sections: list[Section] = []
        self.busy = threading.Event()
        """Set while a job runs that only Stop ends."""
        self.holder: viser.ClientHandle | None = None
        """Tab in which a tool is active; its viewport shows the picture that is prompted."""
        self._waiting: set[Callable[[], None]] = set()
        """Actions that wait for their turn, of those that are done once."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sa3d")
        self.closed = False
        """Whether the panel is being closed: a running job stops at its next step, and no further action begins."""
        self._status = self.gui.add_markdown("")

    # Actions of the sections.

    def do(self, action: Callable[..., None], *args: Any) -> None:
        """Queue an action for the worker, unless a job runs, which the user must stop first."""
        if not self._is_busy():
            self.do_in_turn(action, *args)

    def do_once(self, action: Callable[[], None]) -> None:
        """Queue an action as :meth:`do` does, unless it waits for its turn already: users press a button again if
        nothing happens."""
        if not self._is_busy() and action not in self._waiting and not self.closed:
            self._waiting.add(action)
            self._worker.submit(self._begin, action)

    def do_in_turn(self, action: Callable[..., None], *args: Any) -> None:
        """Queue an action for the worker, even if a job runs."""
        if not self.closed:
            self._worker.submit(self._guarded, action, *args)

    def change(self, operation: Callable[..., Any], *args: Any) -> None:
        """Queue an operation for the worker, then refresh the panel, with the next step in the status line."""

        def action() -> None:
            operation(*args)
            self.say(self.hint)
            self.refresh()

        self.do(action)

    def say(self, text: str) -> None:
        """Show a sentence in the status line, as markdown; foreign text in it must be escaped by :func:`literal`."""
        self._status.content = text

    def complain(self, text: str) -> None:
        """Show an error in the status line, escaped, since it may repeat the user's input."""
        self.say(f"⚠ **{literal(text[:1].upper() + text[1:])}**")

    @property
    def hint(self) -> str:
        """Sentence about the user's next step."""
        current = self.editor.state.current
        if current is None or current.is_empty:
            return "Choose **+ point**, then click on a thing."
        if current.is_segmented:
            return "Add points in any view, and **Segment** again."
        return "Add points in any view, or press **Segment**."

    def save(self) -> Path:
        """Write the run, and return the path of its config.yml."""
        self.editor.rest()
        # Before the run is written: the threshold may change meanwhile.
        self.editor.unsaved = False
        try:
            config = self.viewer.save(self.pipeline())
        except BaseException:
            self.editor.unsaved = True
            raise
        self.refresh_handles()
        return config

    def begin(self) -> None:
        """Show the initial state, and faults of saved prompts."""
        self.refresh()
        self.say(self.hint)
        self._report_faults()

    def _report_faults(self) -> None:
        """Show faults of prompts that have been read since the last call."""
        faults, self.editor.masks.faults = self.editor.masks.faults, []
        if faults:
            self.complain(" ".join(faults))
        for fault in faults:
            say(f"warning: {fault}")

    def close(self) -> None:
        """Stop a running job at its next step, wait for the worker's current action, and cancel all others."""
        self.closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)

    # Display.

    def refresh(self) -> None:
        """Bring the panel and all viewports up to date."""
        marks = self.editor.markers()
        points = np.array([position for position, _ in marks]).reshape(-1, 3)
        colors = np.array([ON_COLOR if on else OFF_COLOR for _, on in marks]).reshape(-1, 3)
        self.viewer.mark(points, colors)
        self.show_masks()
        self.refresh_handles()

    def refresh_handles(self) -> None:
        """Bring the panel alone up to date."""
        for section in self.sections:
            section.refresh()

    def show_view(self, name: str) -> None:
        """Show one of :data:`VIEWS` in all viewports."""
        self.viewer.show_output(VIEWS[name])

    def show_masks(self, render: bool = True) -> None:
        """Bring all viewports up to date.

        A tab whose view has been traced gets a picture made from the trace at once; others render if ``render`` is set.
        """
        overlaid = self.viewer.shows(VIEWS["overlay"])
        for client in self.viewer.server.get_clients().values():
            view = self.editor.free_views.known(self.camera(client)) if overlaid or client is self.holder else None
            if view is not None:
                self.viewer.hold(client)
                self.viewer.send(client, self.editor.picture(view))
            elif render:
                self.viewer.rerender(client)

    def camera(self, client: viser.ClientHandle) -> Cameras:
        """A tab's camera, at the image size for prompts."""
        return self.viewer.camera(client, self.editor.views.long_side)

    def _is_busy(self) -> bool:
        """Whether a job runs; if so, the status line says what to do."""
        busy = self.busy.is_set()
        if busy:
            self.say("It is still at work: press **Stop** first, or wait.")
        return busy

    def _begin(self, action: Callable[[], None]) -> None:
        self._waiting.remove(action)
        self._guarded(action)

    def _guarded(self, action: Callable[..., None], *args: Any) -> None:
        try:
            self.editor.adopt()
            action(*args)
            self._report_faults()
        except SA3DError as error:
            self.complain(str(error))
            if self.closed:
                # The status line is gone in a moment.
                say(f"error: {error}")
        except Exception as error:
            # The status line holds one line; the whole traceback goes to the terminal.
            CONSOLE.print_exception()
            self.complain(f"{one_line(error)} (the terminal tells more).")
        finally:
            self.editor.rest()


def add_choice(
    gui: viser.GuiApi,
    label: str,
    options: list[str],
    pressed: Callable[[str, viser.ClientHandle], None],
    hint: str | None = None,
) -> viser.GuiButtonGroupHandle[str]:
    """Add a row of buttons, each of which may be pressed repeatedly.

    viser 0.2.7 reports a press only if it changes the value of the row, so the value is reset each time.
    """
    group = gui.add_button_group(label, options=options, hint=hint)
    group.value = ""

    def on_click(event: viser.GuiEvent) -> None:
        option = group.value
        if event.client is not None and option:
            group.value = ""
            pressed(option, event.client)

    group.on_click(on_click)
    return group
