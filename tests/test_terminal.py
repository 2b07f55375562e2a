"""Questions to the user, on a real terminal and without one."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest
from rich.console import Console

from sa3d_nerfstudio.terminal import confirm


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """Pseudo-terminal: file descriptor of the keyboard, and the process's stream."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r+b", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as stream:
        yield master, stream
    os.close(master)


@pytest.mark.parametrize(("typed", "answer"), [("y", True), ("n", False), ("", False), ("Yes", True), ("what", False)])
def test_the_user_answers(terminal: tuple[int, TextIO], typed: str, answer: bool):
    keyboard, stream = terminal
    os.write(keyboard, f"{typed}\n".encode())
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    assert confirm("use [grabcut] instead?", console, stream) is answer
    assert "use [grabcut] instead?" in console.file.getvalue()  # type: ignore[attr-defined]


def test_nobody_is_asked_where_nobody_can_answer(terminal: tuple[int, TextIO]):
    on_terminal, on_file = Console(file=io.StringIO(), force_terminal=True), Console(file=io.StringIO())
    assert not confirm("use grabcut?", on_terminal, io.StringIO("y\n"))
    assert not confirm("use grabcut?", on_file, terminal[1])
    assert on_terminal.file.getvalue() == on_file.file.getvalue() == ""  # type: ignore[attr-defined]
