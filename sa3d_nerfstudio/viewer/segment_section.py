"""The panel's Segment button, and the progress bar and Stop button of a long job."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import viser

from sa3d_nerfstudio.segmentation.report import advice
from sa3d_nerfstudio.segmentation.session_progress import Progress
from sa3d_nerfstudio.viewer.context import PanelContext
from sa3d_nerfstudio.viewer.prompt_section import PromptSection
from sa3d_nerfstudio.viewer.viser_compat import literal

LIVE_SECONDS = 2.0
"""Seconds between two updates of the viewport while all views are segmented."""
RENDER_SECONDS = 30.0
"""Likewise, where an update renders the viewport: on a CPU, that delays the job."""


class Job:
    """Progress bar and Stop button of a running job."""

    def __init__(self, context: PanelContext, instead_of: viser.GuiButtonHandle) -> None:
        self._context = context
        self._hidden = instead_of
        self._stop = threading.Event()
        self._halt = context.gui.add_button("Stop", color="red", icon=viser.Icon.PLAYER_STOP, visible=False)
        self._halt.on_click(lambda _: self.stop())
        self._bar = context.gui.add_progress_bar(0.0, visible=False)

    @property
    def stopped(self) -> bool:
        """Whether the job is to stop."""
        return self._stop.is_set() or self._context.closed

    def stop(self) -> None:
        """Stop the job at its next step."""
        self._stop.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context of a running job: no other action begins until it has ended."""
        self._show(True)
        try:
            yield
        finally:
            self._show(False)

    def show(self, done: int, total: int, text: str) -> None:
        """Show the progress, and a text in the status line."""
        self._bar.value = 100 * done / total
        self._context.say(text)

    def _show(self, on: bool) -> None:
        self._stop.clear()
        (self._context.busy.set if on else self._context.busy.clear)()
        self._bar.value = 0.0
        self._bar.visible = self._halt.visible = on
        self._hidden.visible = not on


class SegmentSection:
    """Segment button: segments the prompted object in all training views."""

    def __init__(self, context: PanelContext, prompting: PromptSection) -> None:
        self._context = context
        self._prompting = prompting
        self._button = context.gui.add_button(
            "Segment", color="green", icon=viser.Icon.CUBE, hint="In all training views"
        )
        self._button.on_click(lambda _: context.do_once(self._segment))
        self.job = Job(context, instead_of=self._button)

    def refresh(self) -> None:
        """Enable the button if the selected object has prompts."""
        current = self._context.editor.state.current
        self._button.disabled = current is None or not current.prompts

    def _segment(self) -> None:
        context = self._context
        with self.job.running():
            self._prompting.put_down(refresh=False)
            context.show_view("overlay")
            # Within the context, so that the result is shown before another action begins.
            try:
                progress, stopped = self._run()
            finally:
                context.refresh()
        if context.viewer.trains:
            context.save()
        words = f"{progress.used} of {progress.total} views used, {progress.rejected} rejected."
        trouble = None if stopped else advice(progress.used, progress.rejected)
        if trouble is not None:
            context.complain(f"{words} {trouble[:1].upper()}{trouble[1:]}")
            return
        done = "Stopped; what was found is kept." if stopped else "Done."
        context.say(f"{done} {words} Move around; add points in any view, and segment again.")

    def _run(self) -> tuple[Progress, bool]:
        context = self._context
        progress = Progress(0, 0, 0, 0, 0, "")
        drawn, rendered = 0, time.monotonic()
        steps = context.editor.segment(LIVE_SECONDS)
        try:
            for progress in steps:
                name = literal(context.editor.state.selected)
                text = (
                    f"Segmenting **{name}**, pass {progress.number_of_pass}: view {progress.done} "
                    f"of {progress.total}, {progress.used} used, {progress.rejected} rejected."
                )
                self.job.show(progress.done, progress.total, text)
                if context.editor.masks.changes != drawn:
                    drawn = context.editor.masks.changes
                    due = time.monotonic() - rendered > RENDER_SECONDS
                    context.show_masks(render=due)
                    rendered = time.monotonic() if due else rendered
                if self.job.stopped:
                    return progress, True
        finally:
            steps.close()
        return progress, False
