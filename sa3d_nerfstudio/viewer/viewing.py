"""The panel's choice of what the viewport shows, and the threshold."""

from __future__ import annotations

from sa3d_nerfstudio.viewer.desk import VIEWS, Desk
from sa3d_nerfstudio.viewer.prompting import Prompting

OTHER = "other"
"""What it says while nerfstudio's own selector shows an output that is none of :data:`VIEWS`."""


class Viewing:
    """View and threshold."""

    def __init__(self, desk: Desk, prompting: Prompting) -> None:
        self._desk = desk
        self._prompting = prompting
        self._due = False
        self._view = desk.gui.add_dropdown("View", options=list(VIEWS), hint="Sets nerfstudio's Output type")
        self._view.on_update(lambda event: event.client and self._show(self._view.value))
        self._threshold = desk.gui.add_slider(
            "Threshold",
            min=0.05,
            max=0.95,
            step=0.05,
            initial_value=desk.pipeline().config.threshold,
            hint="Probability above which something is on the object",
        )
        self._threshold.on_update(lambda event: event.client and self.set_threshold(self._threshold.value))
        # nerfstudio's own selector may be used as well.
        desk.host.on_output(self.refresh)

    def refresh(self) -> None:
        """Say what is shown, whoever has chosen it."""
        # Until something has been rendered there is no output; the first is the photo.
        output = self._desk.host.output or VIEWS["photo"]
        shown = next((name for name, known in VIEWS.items() if known == output), OTHER)
        options = (*VIEWS, OTHER) if shown == OTHER else tuple(VIEWS)
        if self._view.options != options:
            self._view.options = options
        if self._view.value != shown:
            self._view.value = shown

    def set_threshold(self, value: float) -> None:
        """Set the threshold of the model, and of the run's configuration, so that a saved run exports what is seen."""
        pipeline = self._desk.pipeline()
        pipeline.model.mask_threshold = pipeline.config.threshold = value
        self._desk.bench.unsaved = True
        # A slider that is being pulled calls often.
        if not self._due:
            self._due = True
            self._desk.do_in_turn(self._follow_threshold)

    def _follow_threshold(self) -> None:
        self._due = False
        self._desk.refresh()

    def _show(self, name: str) -> None:
        if name == OTHER:
            return
        if self._prompting.is_on:
            self._desk.do(self._prompting.put_down)
        self._desk.show_view(name)
