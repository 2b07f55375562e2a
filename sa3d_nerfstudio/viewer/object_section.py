"""Sections for the viewport's display of objects, and for the selected object."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.viewer.context import VIEWS, PanelContext
from sa3d_nerfstudio.viewer.prompt_section import PromptSection


class NameSection:
    """Section to rename, show, solo or delete the selected object."""

    def __init__(self, context: PanelContext) -> None:
        self._context = context
        gui, editor = context.gui, context.editor
        with gui.add_folder("This object", expand_by_default=False):
            self._name = gui.add_text("Name", initial_value="")
            self._rename = gui.add_button("Rename", color="gray")
            self._rename.on_click(lambda _: context.change(editor.rename, self._name.value))
            self._shown = gui.add_checkbox("Show", initial_value=True)
            self._shown.on_update(lambda event: event.client and context.change(self._show, self._shown.value))
            self._solo = gui.add_checkbox("Solo", initial_value=False, hint="Hide the others")
            self._solo.on_update(lambda event: event.client and context.change(editor.solo, self._solo.value))
            self._delete = gui.add_button("Delete", color="red", icon=viser.Icon.TRASH, hint="Undo brings it back")
            self._delete.on_click(lambda _: context.change(editor.delete))

    def refresh(self) -> None:
        """Show the name and the visibility of the selected object."""
        state, current = self._context.editor.state, self._context.editor.state.current
        self._name.value = state.selected or ""
        self._shown.value = current is None or not current.hidden
        unselected = [entry for entry in state if entry is not current]
        self._solo.value = bool(unselected) and all(entry.hidden for entry in unselected) and self._shown.value
        for handle in (self._rename, self._shown, self._solo, self._delete):
            handle.disabled = current is None

    def _show(self, shown: bool) -> None:
        state = self._context.editor.state
        hidden = {entry.name for entry in state if entry.hidden}
        selected = {state.selected or ""}
        self._context.editor.show(hidden - selected if shown else hidden | selected)


OTHER = "other"
"""Choice shown while nerfstudio's selector shows an output that is not in :data:`VIEWS`."""


class ViewSection:
    """Section for the viewport's output and the threshold."""

    def __init__(self, context: PanelContext, prompting: PromptSection) -> None:
        self._context = context
        self._prompting = prompting
        self._due = False
        self._view = context.gui.add_dropdown("View", options=list(VIEWS), hint="Sets nerfstudio's Output type")
        self._view.on_update(lambda event: event.client and self._show(self._view.value))
        self._threshold = context.gui.add_slider(
            "Threshold",
            min=0.05,
            max=0.95,
            step=0.05,
            initial_value=context.pipeline().config.threshold,
            hint="Probability above which something is on the object",
        )
        self._threshold.on_update(lambda event: event.client and self.set_threshold(self._threshold.value))
        # The user may also choose the output in nerfstudio's selector.
        context.viewer.on_output(self.refresh)

    def refresh(self) -> None:
        """Show the viewport's output in the list, also after a change in nerfstudio's selector."""
        # There is no output before the first render; the first output is the photo.
        output = self._context.viewer.output or VIEWS["photo"]
        choice = next((name for name, view_output in VIEWS.items() if view_output == output), OTHER)
        options = (*VIEWS, OTHER) if choice == OTHER else tuple(VIEWS)
        if self._view.options != options:
            self._view.options = options
        if self._view.value != choice:
            self._view.value = choice

    def set_threshold(self, value: float) -> None:
        """Set the threshold of the model and the run's configuration, so that exports of a saved run match the view."""
        pipeline = self._context.pipeline()
        pipeline.model.mask_threshold = pipeline.config.threshold = value
        self._context.editor.unsaved = True
        # A slider calls often while it is dragged.
        if not self._due:
            self._due = True
            self._context.do_in_turn(self._follow_threshold)

    def _follow_threshold(self) -> None:
        self._due = False
        self._context.refresh()

    def _show(self, name: str) -> None:
        if name == OTHER:
            return
        if self._prompting.is_on:
            self._context.do(self._prompting.put_down)
        self._context.show_view(name)
