"""Faults that the user can mend, and how they reach the terminal."""

from __future__ import annotations

import sys
from types import TracebackType


class SA3DError(Exception):
    """A fault that the user can mend. Its message is one sentence that names what to do."""


class MissingWeightsError(SA3DError):
    """A network's weights are not there and could not be had: something else works without them."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Another library's error as part of a sentence of ours: one line, no final stop, at most `limit` characters."""
    text = " ".join(str(error).split()).rstrip(".")
    text = "".join(character for character in text if character.isprintable())
    return f"{text[:limit]}..." if len(text) > limit else text or type(error).__name__


def end_in_a_sentence() -> None:
    """Make an uncaught :class:`SA3DError` end the process with its sentence on stderr and exit code 1.

    nerfstudio's commands (ns-train, ns-export, ...) call into the plugin and show a traceback for whatever it raises;
    this hook is the one place where they all can be taught better. Other exceptions are reported as before.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, SA3DError):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
