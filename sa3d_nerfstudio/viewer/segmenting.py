"""The panel's Segment button, and what a job that takes its time shows: a bar, and Stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import viser

from sa3d_nerfstudio.segmentation.report import advice
from sa3d_nerfstudio.viewer.desk import Desk
from sa3d_nerfstudio.viewer.loop import Progress
from sa3d_nerfstudio.viewer.markdown import literal
from sa3d_nerfstudio.viewer.prompting import Prompting

LIVE_SECONDS = 2.0
"""Between two updates of the viewport while all views are segmented."""
RENDER_SECONDS = 30.0
"""Likewise, where the viewport has to be rendered for it: on a CPU that takes the job's time."""


class Job:
    """The bar and the Stop button of whatever runs."""

    def __init__(self, desk: Desk, instead_of: viser.GuiButtonHandle) -> None:
        self._desk = desk
        self._hidden = instead_of
        self._stop = threading.Event()
        self._halt = desk.gui.add_button("Stop", color="red", icon=viser.Icon.PLAYER_STOP, visible=False)
        self._halt.on_click(lambda _: self.stop())
        self._bar = desk.gui.add_progress_bar(0.0, visible=False)

    @property
    def stopped(self) -> bool:
        """Whether the user has had enough of it."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End what runs when it has got to a good place."""
        self._stop.set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run a job in this context: nothing else is begun until it has ended."""
        self._show(True)
        try:
            yield
        finally:
            self._show(False)

    def show(self, done: int, total: int, text: str) -> None:
        """Tell how far it has got."""
        self._bar.value = 100 * done / total
        self._desk.say(text)

    def _show(self, on: bool) -> None:
        self._stop.clear()
        (self._desk.busy.set if on else self._desk.busy.clear)()
        self._bar.value = 0.0
        self._bar.visible = self._halt.visible = on
        self._hidden.visible = not on


class Segmenting:
    """Segment: takes what is prompted through all training views."""

    def __init__(self, desk: Desk, prompting: Prompting) -> None:
        self._desk = desk
        self._prompting = prompting
        self._button = desk.gui.add_button("Segment", color="green", icon=viser.Icon.CUBE, hint="In all training views")
        self._button.on_click(lambda _: desk.do(self._segment))
        self.job = Job(desk, instead_of=self._button)

    def refresh(self) -> None:
        """Segment asks for prompts."""
        current = self._desk.bench.state.current
        self._button.disabled = current is None or not current.prompts

    def _segment(self) -> None:
        desk = self._desk
        self._prompting.put_down(refresh=False)
        desk.show_view("overlay")
        with self.job.running():
            # Within the context: what was found is shown before anything else is begun.
            try:
                progress, stopped = self._run()
            finally:
                desk.refresh()
        if desk.host.trains:
            desk.save()
        words = f"{progress.used} of {progress.total} views used, {progress.rejected} rejected."
        trouble = None if stopped else advice(progress.used, progress.rejected)
        if trouble is not None:
            desk.complain(f"{words} {trouble[:1].upper()}{trouble[1:]}")
            return
        done = "Stopped; what was found is kept." if stopped else "Done."
        desk.say(f"{done} {words} Move around; add points in any view, and segment again.")

    def _run(self) -> tuple[Progress, bool]:
        desk = self._desk
        progress = Progress(0, 0, 0, 0, 0, "")
        drawn, rendered = 0, time.monotonic()
        steps = desk.bench.segment(LIVE_SECONDS)
        try:
            for progress in steps:
                name = literal(desk.bench.state.selected)
                text = (
                    f"Segmenting **{name}**, pass {progress.number_of_pass}: view {progress.done} "
                    f"of {progress.total}, {progress.used} used, {progress.rejected} rejected."
                )
                self.job.show(progress.done, progress.total, text)
                if desk.bench.masks.changes != drawn:
                    drawn = desk.bench.masks.changes
                    due = time.monotonic() - rendered > RENDER_SECONDS
                    desk.show_masks(render=due)
                    rendered = time.monotonic() if due else rendered
                if self.job.stopped:
                    return progress, True
        finally:
            steps.close()
        return progress, False
