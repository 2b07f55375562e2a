"""Esc, which ends the tool that is on.

viser has two ways to hear of a key, depending on its version:

- Commands with a hotkey (``gui.add_command``; 1.0.30 and 1.1.1 have it, 1.0.24 does not). viser leaves keys alone that
  are pressed in a text field.
- None at all. But these versions compile markdown as MDX, which is run in the browser: an element that nobody sees
  listens for the key as long as it is on the page, and presses the button that ends the tool, as the user might.

Where there is a command it is used, for MDX is gone from viser 1.1.1. Both are put into the one tab in which the tool
is on, so that the key keeps its meaning in all others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

import viser

LABEL = "End the tool"
"""What viser's palette of commands calls it."""

# React calls `ref` with the element when it comes and with null when it goes, in pairs, and again whenever the panel is
# drawn anew. There is one listener in a page, and a page adds the same one only once.
_LISTENER = """<span hidden ref={(element) => {
  window.sa3dEscape ??= (event) => {
    const typing = "input:not([type=checkbox]), textarea, select, [contenteditable]";
    if (event.key !== "Escape" || event.target.closest?.(typing)) return;
    [...document.querySelectorAll("button")].find((button) => button.textContent === LABEL)?.click();
  };
  window[element ? "addEventListener" : "removeEventListener"]("keydown", window.sa3dEscape);
}} />"""
_LAST = 1e6
"""Below everything else in the panel: the element has no height, but viser puts a margin under it."""


class _Handle(Protocol):
    def remove(self) -> None: ...


class EscapeKey:
    """Listens for Esc in one tab at a time.

    Args:
        button: Label of a button that does the same, and is in the panel whenever this listens.
        pressed: Called when the key is pressed, where viser says so; else the button is.
    """

    def __init__(self, button: str, pressed: Callable[[], None]) -> None:
        self._button = button
        self._pressed = pressed
        self._handle: _Handle | None = None

    def listen(self, client: viser.ClientHandle) -> None:
        """Listen in this tab, and in no other."""
        self.rest()
        add_command = getattr(client.gui, "add_command", None)
        if add_command is not None:
            command = add_command(LABEL, hotkey="escape")
            command.on_trigger(lambda _: self._pressed())
            self._handle = command
        else:
            self._handle = client.gui.add_markdown(_LISTENER.replace("LABEL", json.dumps(self._button)), order=_LAST)

    def rest(self) -> None:
        """Listen no longer. The tab may have been closed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()
