"""Faults of ranks: a thread in each process that detects the end of another rank, and then ends its process."""

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

from sa3d_nerfstudio.errors import STAYS, SA3DError
from sa3d_nerfstudio.files import is_running

SECONDS = 0.5
"""Seconds between two checks of the other ranks."""
SILENT = 30.0
"""Seconds without a sign of life after which a rank on another machine counts as ended."""
GRACE = 15.0
"""Seconds for work to end by itself once another rank has ended; it may be within a render or a sum."""

ANSWER = 5.0
"""Seconds in which living ranks note a fault; rank 0, which may hold the store, waits that long for them."""

_FAULT, _STOP = "fault", "stop"


class RankEnded(BaseException):
    """Another rank has ended; raised at any line. Not an error, for those are handled: a save would try another way."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class RankFault(SA3DError):
    """Error on all ranks about the one that has ended."""

    is_of_rank = True


@dataclass
class Fault:
    """Reason for which a rank has ended."""

    rank: int
    host: str
    reason: str
    """The reason, as a part of a sentence, such as "was killed"."""
    told: bool
    """Whether the rank has reported it itself."""


@dataclass
class Member:
    """Process of a rank."""

    host: str
    """Name of its machine."""
    process: int
    space: str = ""
    """Namespace of the process number: containers on one host may share a host name, but not these numbers."""

    def is_beside(self, other: Member) -> bool:
        """Whether the other is in the same namespace, so that its process number shows whether it runs."""
        return (self.host, self.space) == (other.host, other.space)


class Watch:
    """Watch over the other ranks.

    Each rank checks that the processes of its own machine run; rank 0 checks signs of life of ranks elsewhere, and
    these check those of rank 0. The first rank to detect a fault writes it to the store, for all to read.

    Args:
        store: Connection to the store of all ranks, for this object only.
        rank: Rank of this process.
        members: All processes, by rank.
        speaks: Whether processes print the reason for which they end; else the process that has started them does.
    """

    def __init__(self, store: Store, rank: int, members: list[Member], speaks: bool) -> None:
        self.rank = rank
        self.host = members[rank].host
        self.fault: Fault | None = None
        self.tells = False
        """Whether this process prints the fault."""
        self.is_stopping = False
        """Whether all ranks are to stop at the next view."""
        self.speaks = speaks
        self._store = store
        self._members = members
        self._signs = {peer: (b"", time.monotonic()) for peer in self._watched_by_signs()}
        self._closed = threading.Event()
        self._beats = 0
        self._thread = threading.Thread(target=self._run, name="sa3d-ranks", daemon=True)

    def _watched_by_signs(self) -> list[int]:
        peers = range(1, len(self._members)) if self.rank == 0 else [0]
        return [peer for peer in peers if not self._members[self.rank].is_beside(self._members[peer])]

    @property
    def is_closed(self) -> bool:
        """Whether this rank has left."""
        return self._closed.is_set()

    def begin(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Report to the others that this rank leaves as it should, and end the thread."""
        self._store.set(f"left/{self.rank}", "1")
        self._closed.set()
        self._thread.join()

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""
        self._store.set(_STOP, "1")
        self.is_stopping = True

    def check(self) -> None:
        """Raise if another rank has ended.

        Raises:
            RankEnded: Another rank has ended.
        """
        if self.fault is not None:
            raise RankEnded(self.fault)

    def ending(self, fault: Fault) -> BaseException:
        """Exception that ends this process: the sentence on a fault, or an exit code if another process prints it."""
        return RankFault(self.sentence(fault)) if self.tells or not self.speaks else SystemExit(1)

    def sentence(self, fault: Fault) -> str:
        """Sentence about a fault."""
        return f"rank {fault.rank} of {len(self._members)}, on {fault.host}, {fault.reason}; {STAYS}."

    def _note(self, fault: Fault) -> None:
        """Record a fault, and decide who prints it: one process on each machine, the faulty rank itself if it can."""
        member = self._members[self.rank]
        tells = fault.rank == self.rank
        if not tells and not (fault.told and member.is_beside(self._members[fault.rank])):
            try:
                claimed = self._store.compare_set(f"tells/{member.host}/{member.space}", "", str(self.rank))
                tells = claimed == str(self.rank).encode()
            except RuntimeError:
                tells = True
        self.tells, self.fault = tells, fault
        with suppress(RuntimeError):
            self._store.set(f"noted/{self.rank}", "1")

    def await_others(self) -> None:
        """Wait until the others have noted a fault: the store that they read may be in this process."""
        until = time.monotonic() + ANSWER
        with suppress(RuntimeError):
            for rank, member in enumerate(self._members):
                is_local = self._members[self.rank].is_beside(member)
                while time.monotonic() < until and not self._store.check([f"noted/{rank}"]):
                    if (self.fault is not None and rank == self.fault.rank) or (
                        is_local and not is_running(member.process)
                    ):
                        break
                    time.sleep(0.02)

    def report(self, reason: str, told: bool = True) -> Fault:
        """Report the reason for which this rank ends; return the fault that ends all, which may be an earlier one."""
        return self.fault or self._write(Fault(self.rank, self.host, reason, told))

    def await_fault(self, seconds: float) -> Fault | None:
        """Wait for a fault, and return it; None if there is none within these seconds."""
        until = time.monotonic() + seconds
        while self.fault is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.fault

    def look(self) -> Fault | None:
        """Check the processes of this machine at once, and return a fault."""
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
                # The store is gone, and with it the process that held it.
                if not self._closed.is_set():
                    host = self._members[0].host
                    self._note(self.fault or Fault(0, host, "was killed, or its machine does not answer", False))
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
        for peer, (last_sign, changed) in list(self._signs.items()):
            sign = self._store.get(f"sign/{peer}") if self._store.check([f"sign/{peer}"]) else b""
            if sign != last_sign:
                self._signs[peer] = (sign, time.monotonic())
            elif time.monotonic() - changed > SILENT and not self._has_left(peer):
                host = self._members[peer].host
                self._write(Fault(peer, host, "was killed, or its machine does not answer", told=False))

    def _look_at_processes(self) -> None:
        this_process = self._members[self.rank]
        for peer, member in enumerate(self._members):
            if this_process.is_beside(member) and not is_running(member.process) and not self._has_left(peer):
                self._write(Fault(peer, member.host, "was killed: look for a lack of memory there", told=False))
                return

    def _has_left(self, other: int) -> bool:
        return self._store.check([f"left/{other}"])

    def _see_to_the_end(self, fault: Fault) -> None:
        """End this process after a grace period, even within a render or a sum that others will never join."""
        if self._closed.wait(GRACE):
            return
        ending = self.ending(fault)
        if isinstance(ending, RankFault):
            print(f"error: {ending}", file=sys.stderr, flush=True)
        os._exit(1)


def this_member() -> Member:
    """Description of this process."""
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:
        space = ""
    return Member(socket.gethostname(), os.getpid(), space)


def as_reason(error: BaseException, describe: Callable[[BaseException], str]) -> str:
    """Describe an error as the reason of a fault."""
    if isinstance(error, KeyboardInterrupt):
        return "was stopped by Ctrl-C"
    return f"stopped, for {describe(error)}"
