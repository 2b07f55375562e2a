"""The panel's rows that change what has been prompted: the segmenter's answers, undo."""

from __future__ import annotations

from sa3d_nerfstudio.viewer.desk import Desk, add_choice

SIZES = ("small", "mid", "large")


class Editing:
    """Which of the segmenter's answers to take; undo, redo, clear."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        bench = desk.bench
        self._sizes = add_choice(
            desk.gui,
            "Mask",
            list(SIZES),
            lambda size, _: desk.change(bench.choose, SIZES.index(size)),
            "Part, object, or whole",
        )
        edits = {"undo": bench.undo, "redo": bench.redo, "clear": bench.clear}
        add_choice(desk.gui, "Edit", list(edits), lambda edit, _: desk.change(edits[edit]))

    def refresh(self) -> None:
        """Offer the answers where there are several."""
        self._sizes.visible = self._desk.bench.may_choose
