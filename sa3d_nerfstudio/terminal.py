"""The terminal: lines to copy, questions, and Ctrl-C as a request to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TextIO

from rich.console import Console
from rich.text import Text


def say(line: object, console: Console | None = None) -> None:
    """Print a line as it is: no wrapping, no highlighting, no markup, so that paths and commands can be copied.

    Args:
        line: The line.
        console: Where to print; nerfstudio's console by default.
    """
    if console is None:
        from nerfstudio.utils.rich_utils import CONSOLE as console
    console.print(str(line), highlight=False, soft_wrap=True, markup=False)


def confirm(question: str, console: Console, answers: TextIO) -> bool:
    """Ask yes or no on an interactive terminal; False without one, or for any answer but yes.

    Args:
        question: What to ask.
        console: Where to ask it.
        answers: Where the answer is typed.
    """
    if not (console.is_terminal and answers.isatty()):
        return False
    return console.input(Text(f"{question} [y/N] "), stream=answers).strip().lower() in ("y", "yes")


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets instead of raising; on other threads than the main one, it is never set."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, previous)
        event.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
