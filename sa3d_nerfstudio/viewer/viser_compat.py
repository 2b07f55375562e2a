"""What viser 0.2.7 lacks."""

from __future__ import annotations

import json
import re
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


_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
"""What may mean something in CommonMark, in GitHub's dialect of it, or in MDX; all know a backslash before it."""
_STATEMENT = re.compile(r"[ie](?=(?:m|x)port\b)")
"""At its beginning, MDX takes the line of a text for JavaScript."""


def literal(text: object) -> str:
    """Markdown that shows a text as it is, on one line, wherever it stands between other words.

    Runs of white space become one space, as on any page. What cannot be written as UTF-8, such as a byte of a damaged
    file name, becomes a question mark: viser could not send it.
    """
    line = " ".join(str(text).encode("utf8", "replace").decode("utf8").split())
    escaped = _PUNCTUATION.sub(r"\\\1", line)
    return _STATEMENT.sub(lambda letter: f"&#{ord(letter[0])};", escaped) if _STATEMENT.match(escaped) else escaped
