"""Faults of ranks: a thread in each process that notices where another one has ended, and sees to it that all end."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

from torch.distributed import Store  # type: ignore[reportPrivateImportUsage]

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import is_running

SECONDS = 0.5
"""Between two looks at the others."""
SILENT = 30.0
"""Seconds without a sign of life after which a rank on another machine is taken to have ended."""
GRACE = 15.0
"""Seconds that work has to come to an end by itself once a rank has ended; it may be within a render or a sum."""
STAYS = "what was saved stays, and the same command goes on from there"

ANSWER = 5.0
"""Seconds in which living ranks take note of a fault; so long the one waits that may hold what all read."""

_FAULT, _STOP = "fault", "stop"


class RankEnded(BaseException):
    """Another rank has ended, noticed at any line. No error, for those are handled: a save would try another way."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class RankFault(SA3DError):
    """The sentence for all ranks about the one that has ended."""

    is_of_rank = True


@dataclass
class Fault:
    """What has ended a rank."""

    rank: int
    host: str
    reason: str
    """What happened, as a part of a sentence, such as "was killed"."""
    told: bool
    """Whether the rank has said so itself."""


@dataclass
class Member:
    """A rank's process."""

    host: str
    """Name of its machine, for people."""
    process: int
    space: str = ""
    """Where that number counts: containers of one host may have one name, and numbers of their own."""

    def is_beside(self, other: Member) -> bool:
        """Whether this process can tell by the number whether the other runs."""
        return (self.host, self.space) == (other.host, other.space)


class Watch:
    """Looks after the other ranks.

    Each rank looks whether the processes of its own machine run; rank 0 looks for signs of life of those elsewhere, and
    these for its own. Whoever notices first writes down what happened, for all to read.

    Args:
        store: Where all ranks write and read. Only for this object's thread, but for :meth:`report`.
        rank: Of this process.
        members: All processes, by rank.
        speaks: Whether processes say by themselves why they end; else the one that has started them does.
    """

    def __init__(self, store: Store, rank: int, members: list[Member], speaks: bool) -> None:
        self.rank = rank
        self.host = members[rank].host
        self.fault: Fault | None = None
        self.tells = False
        """Whether this process says what has happened."""
        self.is_stopping = False
        """Whether all are asked to stop at the next view."""
        self.speaks = speaks
        self._store = store
        self._members = members
        self._signs = {other: (b"", time.monotonic()) for other in self._watched_by_signs()}
        self._closed = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="sa3d-ranks", daemon=True)

    def _watched_by_signs(self) -> list[int]:
        others = range(1, len(self._members)) if self.rank == 0 else [0]
        return [other for other in others if not self._members[self.rank].is_beside(self._members[other])]

    @property
    def is_closed(self) -> bool:
        """Whether this rank has left."""
        return self._closed.is_set()

    def begin(self) -> None:
        """Start to look."""
        self._thread.start()

    def close(self) -> None:
        """Tell the others that this rank leaves as it should, and look no longer."""
        self._store.set(f"left/{self.rank}", "1")
        self._closed.set()
        self._thread.join()

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""
        self._store.set(_STOP, "1")
        self.is_stopping = True

    def check(self) -> None:
        """End here if another rank has.

        Raises:
            RankEnded: It has.
        """
        if self.fault is not None:
            raise RankEnded(self.fault)

    def ending(self, fault: Fault) -> BaseException:
        """What ends this process for a fault: the sentence, or where others say it nothing but the exit code."""
        return RankFault(self.sentence(fault)) if self.tells or not self.speaks else SystemExit(1)

    def sentence(self, fault: Fault) -> str:
        """What to say of a fault."""
        return f"rank {fault.rank} of {len(self._members)}, on {fault.host}, {fault.reason}; {STAYS}."

    def _note(self, fault: Fault) -> None:
        """Take note of a fault, and find out who tells of it: one on each machine, be it the rank itself."""
        own = self._members[self.rank]
        tells = fault.rank == self.rank
        if not tells and not (fault.told and own.is_beside(self._members[fault.rank])):
            try:
                claimed = self._store.compare_set(f"tells/{own.host}/{own.space}", "", str(self.rank))
                tells = claimed == str(self.rank).encode()
            except RuntimeError:
                tells = True
        self.tells, self.fault = tells, fault
        with suppress(RuntimeError):
            self._store.set(f"noted/{self.rank}", "1")

    def await_others(self) -> None:
        """Wait until the others have taken note of a fault: what they read may be in this process."""
        until = time.monotonic() + ANSWER
        with suppress(RuntimeError):
            for rank, member in enumerate(self._members):
                own = self._members[self.rank].is_beside(member)
                while time.monotonic() < until and not self._store.check([f"noted/{rank}"]):
                    if (self.fault is not None and rank == self.fault.rank) or (own and not is_running(member.process)):
                        break
                    time.sleep(0.02)

    def report(self, reason: str, told: bool = True) -> Fault:
        """Write down what ends this rank; if another one has ended before, that is what ends all."""
        return self.fault or self._write(Fault(self.rank, self.host, reason, told))

    def await_fault(self, seconds: float) -> Fault | None:
        """What has ended another rank, as soon as that is known; None if it is not by then."""
        until = time.monotonic() + seconds
        while self.fault is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.fault

    def look(self) -> Fault | None:
        """Look at the processes of this machine at once."""
        if self.fault is None:
            self._look_at_processes()
        return self.fault

    def _write(self, fault: Fault) -> Fault:
        with suppress(RuntimeError):
            fault = Fault(**json.loads(self._store.compare_set(_FAULT, "", json.dumps(asdict(fault)))))
        self._note(fault)
        return fault

    def _run(self) -> None:
        while not self._closed.wait(SECONDS):
            try:
                self._look()
            except RuntimeError:
                # Where all write and read is gone, and with it the process that held it.
                if not self._closed.is_set():
                    first = self._members[0].host
                    self._note(self.fault or Fault(0, first, "was killed, or its machine does not answer", False))
            if self.fault is not None:
                self._see_to_the_end(self.fault)
                return

    def _look(self) -> None:
        self._beats += 1
        self._store.set(f"sign/{self.rank}", str(self._beats))
        self.is_stopping = self.is_stopping or self._store.check([_STOP])
        if self._store.check([_FAULT]):
            self._note(Fault(**json.loads(self._store.get(_FAULT))))
            return
        self._look_at_processes()
        for other, (last, when) in list(self._signs.items()):
            sign = self._store.get(f"sign/{other}") if self._store.check([f"sign/{other}"]) else b""
            if sign != last:
                self._signs[other] = (sign, time.monotonic())
            elif time.monotonic() - when > SILENT and not self._has_left(other):
                host = self._members[other].host
                self._write(Fault(other, host, "was killed, or its machine does not answer", told=False))

    def _look_at_processes(self) -> None:
        own = self._members[self.rank]
        for other, member in enumerate(self._members):
            if own.is_beside(member) and not is_running(member.process) and not self._has_left(other):
                self._write(Fault(other, member.host, "was killed: look for a lack of memory there", told=False))
                return

    def _has_left(self, other: int) -> bool:
        return self._store.check([f"left/{other}"])

    def _see_to_the_end(self, fault: Fault) -> None:
        """Whatever this process is at, a render or a sum that others will never join, it ends soon."""
        if self._closed.wait(GRACE):
            return
        ending = self.ending(fault)
        if isinstance(ending, RankFault):
            print(f"error: {ending}", file=sys.stderr, flush=True)
        os._exit(1)


def this_member() -> Member:
    """This process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return Member(socket.gethostname(), os.getpid(), space)


def as_reason(error: BaseException, describe: Callable[[BaseException], str]) -> str:
    """What an error is in the sentence about a rank."""
    if isinstance(error, KeyboardInterrupt):
        return "was stopped by Ctrl-C"
    return f"stopped, for {describe(error)}"
