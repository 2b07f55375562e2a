"""What the terminal asks, on a real terminal and where there is none."""

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
    """A pseudo-terminal: the end that somebody types at, and the end that a process sees."""
    master, slave = pty.openpty()
    with os.fdopen(slave, "r+b", buffering=0) as raw, io.TextIOWrapper(raw, write_through=True) as stream:
        yield master, stream
    os.close(master)


@pytest.mark.parametrize(("typed", "answer"), [("y", True), ("n", False), ("", False), ("Yes", True), ("what", False)])
def test_the_user_answers(terminal: tuple[int, TextIO], typed: str, answer: bool):
    keyboard, stream = terminal
    os.write(keyboard, f"{typed}\n".encode())
    asked = Console(file=io.StringIO(), force_terminal=True, width=200)
    assert confirm("use [grabcut] instead?", asked, stream) is answer
    assert "use [grabcut] instead?" in asked.file.getvalue()  # type: ignore[attr-defined]


def test_nobody_is_asked_where_nobody_can_answer(terminal: tuple[int, TextIO]):
    deaf, mute = Console(file=io.StringIO(), force_terminal=True), Console(file=io.StringIO())
    assert not confirm("use grabcut?", deaf, io.StringIO("y\n"))
    assert not confirm("use grabcut?", mute, terminal[1])
    assert deaf.file.getvalue() == mute.file.getvalue() == ""  # type: ignore[attr-defined]
