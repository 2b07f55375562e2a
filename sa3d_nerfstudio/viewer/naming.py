"""The panel's folder about the selected object: its name, whether it is shown, its end."""

from __future__ import annotations

import viser

from sa3d_nerfstudio.viewer.desk import Desk


class Naming:
    """Rename, show, solo, delete."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        gui, bench = desk.gui, desk.bench
        with gui.add_folder("This object", expand_by_default=False):
            self._name = gui.add_text("Name", initial_value="")
            self._rename = gui.add_button("Rename", color="gray")
            self._rename.on_click(lambda _: desk.change(bench.rename, self._name.value))
            self._shown = gui.add_checkbox("Show", initial_value=True)
            self._shown.on_update(lambda event: event.client and desk.change(self._show, self._shown.value))
            self._solo = gui.add_checkbox("Solo", initial_value=False, hint="Hide the others")
            self._solo.on_update(lambda event: event.client and desk.change(bench.solo, self._solo.value))
            self._delete = gui.add_button("Delete", color="red", icon=viser.Icon.TRASH, hint="Undo brings it back")
            self._delete.on_click(lambda _: desk.change(bench.delete))

    def refresh(self) -> None:
        """Show what the selected object is."""
        state, current = self._desk.bench.state, self._desk.bench.state.current
        self._name.value = state.selected or ""
        self._shown.value = current is None or not current.hidden
        others = [thing for thing in state if thing is not current]
        self._solo.value = bool(others) and all(thing.hidden for thing in others) and self._shown.value
        for handle in (self._rename, self._shown, self._solo, self._delete):
            handle.disabled = current is None

    def _show(self, shown: bool) -> None:
        state = self._desk.bench.state
        hidden = {thing.name for thing in state if thing.hidden}
        selected = {state.selected or ""}
        self._desk.bench.show(hidden - selected if shown else hidden | selected)
