"""Errors that a user can fix, and how they are printed."""

from __future__ import annotations

import sys
from types import TracebackType


class SA3DError(Exception):
    """An error that a user can fix. Its message is one sentence that names the remedy."""


class MissingWeightsError(SA3DError):
    """A network's weights are missing and could not be fetched; segmenters without weights still work."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Another library's error as part of a sentence of ours: one line, no final stop, at most `limit` characters."""
    text = " ".join(str(error).split()).rstrip(".")
    text = "".join(character for character in text if character.isprintable())
    return f"{text[:limit]}..." if len(text) > limit else text or type(error).__name__


def end_in_a_sentence() -> None:
    """Make an uncaught :class:`SA3DError` end the process with its sentence on stderr and exit code 1.

    nerfstudio's commands (ns-train, ns-export, ...) call into the plugin and show a traceback for any error;
    this hook covers all of them. Other exceptions are reported as before.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if isinstance(error, SA3DError):
            print(f"error: {error}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook
