"""The terminal: lines to copy, questions, and Ctrl-C as a request to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
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
        question: The question.
        console: Console for the question.
        answers: Stream of the answer.
    """
    if not (console.is_terminal and answers.isatty()):
        return False
    return console.input(Text(f"{question} [y/N] "), stream=answers).strip().lower() in ("y", "yes")


@contextmanager
def interruptible(on_first: Callable[[], None] | None = None, repeated: float = 0.0) -> Iterator[threading.Event]:
    """Event that the first Ctrl-C sets instead of raising; on threads other than the main one, it is never set.

    Args:
        on_first: Called on the first Ctrl-C, at any line of the program.
        repeated: Seconds in which further signals count as the first: launchers pass on the terminal's signal.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)
    first = [0.0]

    def note(number: int, frame: FrameType | None) -> None:
        if event.is_set():
            if time.monotonic() - first[0] < repeated:
                return
            signal.signal(signal.SIGINT, previous)
            signal.raise_signal(number)
            return
        first[0] = time.monotonic()
        event.set()
        if on_first is not None:
            on_first()

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
