"""Faults that the user can mend, and how they reach the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class SA3DError(Exception):
    """A fault that the user can mend. Its message is one sentence that names what to do."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Another library's error as part of a sentence of ours: one line, no final stop, at most `limit` characters."""
    text = " ".join(str(error).split()).rstrip(".")
    text = "".join(character for character in text if character.isprintable())
    return f"{text[:limit]}..." if len(text) > limit else text or type(error).__name__


@contextmanager
def errors_end_in_a_sentence() -> Iterator[None]:
    """Turn an :class:`SA3DError` into its sentence on stderr and exit code 1, with no traceback.

    Used where a command begins; library code only raises.
    """
    try:
        yield
    except SA3DError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
