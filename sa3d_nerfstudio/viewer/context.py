"""What all sections of the Segment panel share: one worker, the status line, the viewports."""

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
"""What the viewport may show, and the model's output that it is."""
ON_COLOR, OFF_COLOR = (0.1, 0.9, 0.2), (1.0, 0.1, 0.1)


class Section(Protocol):
    """A part of the panel."""

    def refresh(self) -> None:
        """Show in the section's handles what there is now."""
        ...


class PanelContext:
    """Where the sections of the panel meet.

    All that touches the model runs on one thread of its own, one thing after another, so that viser's threads are
    never blocked and the workbench is used by one thread only.

    Args:
        host: The viewer.
        bench: What the panel works on.
        pipeline: Gives the pipeline. A function, because nerfstudio walks all attributes and must not walk in circles.
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
        """The tab in which a tool is on; its viewport shows the picture that prompts go to."""
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="sa3d")
        self._closed = False
        self._status = self.gui.add_markdown("")

    # What sections do.

    def do(self, action: Callable[..., None], *args: Any) -> None:
        """Have the worker do something, unless a job runs: that is stopped first, by the user."""
        if self.busy.is_set():
            self.say("It is still at work: press **Stop** first, or wait.")
            return
        self.do_in_turn(action, *args)

    def do_in_turn(self, action: Callable[..., None], *args: Any) -> None:
        """Have the worker do something when its turn comes, whatever runs now."""
        if not self._closed:
            self._worker.submit(self._guarded, action, *args)

    def change(self, operation: Callable[..., Any], *args: Any) -> None:
        """Have the worker change something, show it, and say what may come next: what was said before is over."""

        def action() -> None:
            operation(*args)
            self.say(self.hint)
            self.refresh()

        self.do(action)

    def say(self, text: str) -> None:
        """Put a sentence into the status line: markdown, in which what comes from outside is :func:`literal`."""
        self._status.content = text

    def complain(self, text: str) -> None:
        """Put an error into the status line, escaped: it may repeat what the user typed."""
        self.say(f"⚠ **{literal(text[:1].upper() + text[1:])}**")

    @property
    def hint(self) -> str:
        """What may come next, as a sentence."""
        current = self.editor.state.current
        if current is None or current.is_empty:
            return "Choose **+ point**, then click on a thing."
        if current.is_segmented:
            return "Add points in any view, and **Segment** again."
        return "Add points in any view, or press **Segment**."

    def save(self) -> Path:
        """Write the run, and say where its config.yml is."""
        config = self.viewer.save(self.pipeline())
        self.editor.unsaved = False
        self.refresh_handles()
        return config

    def begin(self) -> None:
        """Show what there is at first."""
        self.refresh()
        self.say(self.hint)
        if self.editor.masks.troubles:
            self.complain(" ".join(self.editor.masks.troubles))
            for trouble in self.editor.masks.troubles:
                say(f"warning: {trouble}")

    def close(self) -> None:
        """Wait for what the worker is at, and have it begin nothing else."""
        self._closed = True
        self._worker.shutdown(wait=True, cancel_futures=True)

    # What there is to see.

    def refresh(self) -> None:
        """Show what there is now, in the panel and in every viewport."""
        marks = self.editor.markers()
        points = np.array([place for place, _ in marks]).reshape(-1, 3)
        colors = np.array([ON_COLOR if on else OFF_COLOR for _, on in marks]).reshape(-1, 3)
        self.viewer.mark(points, colors)
        self.show_masks()
        self.refresh_handles()

    def refresh_handles(self) -> None:
        """Show what there is now in the panel alone."""
        for section in self.sections:
            section.refresh()

    def show_view(self, name: str) -> None:
        """Have all viewports show one of :data:`VIEWS`."""
        self.viewer.show_output(VIEWS[name])

    def show_masks(self, render: bool = True) -> None:
        """Bring all viewports up to date.

        A tab whose view has been traced is sent a picture made of that, at once; others render, if they may.
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
        """A tab's camera, at the size at which it is prompted."""
        return self.viewer.camera(client, self.editor.views.long_side)

    def _guarded(self, action: Callable[..., None], *args: Any) -> None:
        try:
            self.editor.adopt()
            action(*args)
        except SA3DError as error:
            self.complain(str(error))
        except Exception as error:
            # Whoever works in the browser sees no terminal; that one gets all of it.
            CONSOLE.print_exception()
            self.complain(f"{one_line(error)} (the terminal tells more).")


def add_choice(
    gui: viser.GuiApi,
    label: str,
    options: list[str],
    pressed: Callable[[str, viser.ClientHandle], None],
    hint: str | None = None,
) -> viser.GuiButtonGroupHandle[str]:
    """A row of buttons, each of which may be pressed again and again.

    viser 0.2.7 reports a press only where it changes the value of the row; so the value is taken back each time.
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
