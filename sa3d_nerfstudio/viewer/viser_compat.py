"""What differs between versions of viser, what is amiss in all of them, and how text is escaped for its markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import viser

LABEL = "End the tool"
"""Its name in viser's palette of commands."""


class _Handle(Protocol):
    def remove(self) -> None: ...


class EscapeKey:
    """Listens for Esc in one tab at a time, where viser has hotkeys (1.0 and later); else it does nothing.

    Args:
        pressed: Called when the key is pressed.
    """

    def __init__(self, pressed: Callable[[], None]) -> None:
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

    def rest(self) -> None:
        """Listen no longer. The tab may have been closed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()


def end_after_errors(server: viser.ViserServer) -> None:
    """Have messages that a server sends together come to an end where an error leaves them.

    ``atomic()`` of viser, 0.2.7 and 1.0 alike, does not: nothing is sent after an error, to any tab.
    """
    original = server.atomic

    @contextmanager
    def atomic() -> Iterator[None]:
        together = original()
        together.__enter__()
        try:
            yield
        finally:
            # Told of no error: viser would skip the end.
            together.__exit__(None, None, None)

    server.atomic = atomic  # type: ignore[method-assign]


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
