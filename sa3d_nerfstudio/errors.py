"""Errors that a user can fix, and how they are printed."""

from __future__ import annotations

import os
import re
import socket
import sys
from types import TracebackType

STAYS = (
    "what was saved stays: the same command goes on from there with --load-dir RUN, the saved run's folder, or with "
    "the same --timestamp"
)
"""Part of a sentence about the end of a process: how its job is continued."""


class SA3DError(Exception):
    """An error that a user can fix. Its message is one sentence that names the remedy."""

    is_of_rank = False
    """Whether the error concerns one of several processes; other errors occur in all of them alike."""


class MissingWeightsError(SA3DError):
    """A network's weights are missing and could not be fetched; segmenters without weights still work."""


class EmptyObjectError(SA3DError):
    """No surface was found behind the prompted pixels of an object; other objects are not affected."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Another library's error as part of a sentence: one line, no final stop, cut after `limit` characters."""
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
            # torchrun starts several processes on a machine; one of them prints the error of all.
            if error.is_of_rank or os.environ.get("LOCAL_RANK", "0") == "0":
                print(f"error: {error}", file=sys.stderr)
        elif (sentence := sentence_of_process(error)) is not None:
            print(f"error: {sentence}", file=sys.stderr)
        else:
            previous(kind, error, traceback)

    sys.excepthook = hook


def sentence_of_process(error: BaseException) -> str | None:
    """Sentence about the end of a process that torch has started for nerfstudio; None if neither the user nor the
    machine is the cause.

    Args:
        error: Error that ``torch.multiprocessing`` raises in the parent process, with the text of the traceback or the
            signal.
    """
    kind = f"{type(error).__module__}.{type(error).__name__}"
    if kind == "torch.multiprocessing.spawn.ProcessRaisedException":
        sentences = re.findall(r"^sa3d_nerfstudio\.[\w.]+: (.+)", str(error), flags=re.MULTILINE)
        return sentences[-1] if sentences else None
    if kind == "torch.multiprocessing.spawn.ProcessExitedException":
        process, name = getattr(error, "error_index", "?"), getattr(error, "signal_name", None)
        how = f"was ended by {name}: look for a lack of memory there" if name else "has ended"
        return f"process {process} on {socket.gethostname()} {how}; {STAYS}."
    return None
