"""Differences between versions of viser, a fix for all of them, and the escaping of text for its markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import viser

LABEL = "End the tool"
"""Label of the command in viser's palette."""


class _Handle(Protocol):
    def remove(self) -> None: ...


class EscapeKey:
    """Listener for Esc in one tab at a time, where viser has hotkeys (1.0.29 has, 1.0.0 has not); else without effect.

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
        """Stop listening. The tab may have been closed."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.remove()


def end_after_errors(server: viser.ViserServer) -> None:
    """Make a server's ``atomic()`` end its batch of messages after an error as well.

    That of viser 0.2.7 and 1.0 does not: after an error, nothing is sent to any tab.
    """
    original = server.atomic

    @contextmanager
    def atomic() -> Iterator[None]:
        batch = original()
        batch.__enter__()
        try:
            yield
        finally:
            # Without the error, for which viser would skip the end.
            batch.__exit__(None, None, None)

    server.atomic = atomic  # type: ignore[method-assign]


_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
"""Characters with a meaning in CommonMark, GitHub's dialect of it, or MDX; in all, a backslash escapes them."""
_STATEMENT = re.compile(r"[ie](?=(?:m|x)port\b)")
"""Start of a line that MDX takes for JavaScript: import or export."""


def literal(text: object) -> str:
    """Markdown that shows a text as it is, on one line, at any position in a sentence.

    Runs of white space become one space, as in HTML. Characters that UTF-8 cannot encode, such as a byte of a damaged
    file name, become question marks: viser could not send them.
    """
    line = " ".join(str(text).encode("utf8", "replace").decode("utf8").split())
    escaped = _PUNCTUATION.sub(r"\\\1", line)
    return _STATEMENT.sub(lambda letter: f"&#{ord(letter[0])};", escaped) if _STATEMENT.match(escaped) else escaped
