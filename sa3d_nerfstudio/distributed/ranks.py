"""Ranks: the processes that share a job, each with its own views, and what they sum and tell each other.

A session asks few things: which views are its own, the sum of tensors over all ranks, what rank 0 says, what each rank
has to say. One process by itself answers all of them at once. Tensors go through ``torch.distributed`` (NCCL on GPUs,
gloo on CPUs). All else goes through its key-value store, which can be waited at for as long as it takes: rank 0 may be
writing, or its user thinking, and no collective's timeout ends the others: these begin when all have come to them.
"""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[reportPrivateImportUsage]

from sa3d_nerfstudio.distributed.watch import RankEnded, RankFault, Watch, as_reason
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.gpu_memory import is_out_of_memory

Value = TypeVar("Value")
Item = TypeVar("Item")

PART_BYTES = 1 << 22
"""Values are stored in parts of this size; a store takes 8 MB at a time."""
LONGEST_SLEEP = 0.02
"""Seconds between two looks at the store, at most."""
LEAVING_SECONDS = 60.0
"""How long rank 0 waits at the end for the others to have left."""
OUT_OF_MEMORY = "its memory is full: start fewer processes there, or give --pipeline.cache-gb"


def tell_as_data(*classes: type) -> None:
    """Let ranks tell each other of instances of these classes of data, beside tensors and plain values.

    All else is refused when it is read, as in any weights-only file.
    """
    torch.serialization.add_safe_globals(list(classes))


class Ranks:
    """The processes that share a job. This class is the one process that is by itself; see :class:`ProcessRanks`."""

    rank = 0
    """Of this process; 0 is the one that writes, prints, and has the viewer."""
    size = 1
    """Number of processes."""
    local_rank = 0
    """Among those of this machine."""
    local_size = 1
    """Number of processes on this machine."""
    bytes_sent = 0
    """Of tensors that this process has put into sums."""
    seconds = 0.0
    """Spent on sums and on waiting for others."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_stopping(self) -> bool:
        """Whether all are asked to stop at the next view."""
        return False

    def owner(self, view: int | str) -> int:
        """Rank that visits a view: always the same, so that what has been rendered of it is kept in one place.

        Args:
            view: Index of a training view, or name of another, which is the first rank's.
        """
        return view % self.size if isinstance(view, int) else 0

    def own(self, views: Sequence[int]) -> list[int]:
        """Those of the views that are this rank's, in their order."""
        return [view for view in views if self.owner(view) == self.rank]

    def rounds(self, views: Sequence[int]) -> int:
        """How many views the rank has that has most of them."""
        counts = [0] * self.size
        for view in views:
            counts[self.owner(view)] += 1
        return max(counts)

    def share(self, compute: Callable[[], Value]) -> Value:
        """What rank 0 computes, on all ranks; the others do not compute it."""
        return compute()

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on all of them, by rank."""
        return [value]

    def collect(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank, on rank 0; nothing on the others, which do not wait."""
        return [value]

    def every(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share of what may be done anywhere: every ``size``-th."""
        return list(items[self.rank :: self.size])

    def merged(self, own: Sequence[Item]) -> list[Item]:
        """What all ranks have made of their shares by :meth:`every`, on all ranks, in the order of the whole."""
        parts = self.gather(list(own))
        return [part[place] for place in range(len(parts[0])) for part in parts if place < len(part)]

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(flag))

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors summed over all ranks, by one collective; the same bits everywhere.

        Args:
            tensors: Of the same sizes on all ranks, and of one type.
        """
        return tensors

    def begin(self, value: Value, *tensors: Tensor) -> Callable[[], tuple[list[Value], tuple[Tensor, ...]]]:
        """Begin to gather values and to sum tensors, and go on meanwhile.

        At most one such exchange may have begun and not ended when the next begins.

        Returns:
            Ends it: waits until all ranks have begun it too, and returns what :meth:`gather` and :meth:`sum` do.
        """
        return lambda: ([value], tensors)

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around all work: what ends one rank ends all of them, with one sentence."""
        yield

    def close(self) -> None:
        """Wait until all ranks have come here, and part."""


class ProcessRanks(Ranks):
    """Several processes, one of which is this one.

    Args:
        store: What they tell each other goes through it.
        watch: Looks after the others.
        rank: Of this process.
        size: How many there are.
        local_rank: Of this process on its machine.
        local_size: How many there are on this machine.
        device: Where tensors are that are told.
        destroys_group: Whether the process group was made for this, and is taken down at the end.
    """

    def __init__(
        self,
        store: Store,
        watch: Watch,
        rank: int,
        size: int,
        local_rank: int,
        local_size: int,
        device: torch.device,
        destroys_group: bool = False,
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self.watch = watch
        self.device = device
        self._store = store
        self._destroys_group = destroys_group
        self._count = 0
        self._posted: list[tuple[int, list[str]]] = []
        """What this rank has stored and others may still have to read, by the number of the exchange."""

    @property
    def is_stopping(self) -> bool:
        """Whether all are asked to stop at the next view."""
        return self.watch.is_stopping

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""
        self.watch.stop()

    def share(self, compute: Callable[[], Value]) -> Value:
        """What rank 0 computes, on all ranks; the others do not compute it."""
        self._count += 1
        if self.rank == 0:
            value = compute()
            self._post(f"{self._count}/0", value)
            return value
        return self._take(f"{self._count}/0")

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, on all of them, by rank."""
        return self._gathered(self._begin_gathering(value), value)

    def _begin_gathering(self, value: Any) -> int:
        self._count += 1
        self._post(f"{self._count}/{self.rank}", value)
        return self._count

    def _gathered(self, number: int, value: Value) -> list[Value]:
        values = [value if rank == self.rank else self._take(f"{number}/{rank}") for rank in range(self.size)]
        # Whoever has come here has read what was stored before, but for an exchange that has not ended.
        for _, keys in (done := [item for item in self._posted if item[0] < number - 1]):
            for key in keys:
                self._store.delete_key(key)
        self._posted = self._posted[len(done) :]
        return values

    def collect(self, value: Value) -> list[Value]:
        """The values of all ranks, by rank, on rank 0; nothing on the others, which do not wait."""
        self._count += 1
        if self.rank > 0:
            self._post(f"{self._count}/{self.rank}", value)
            return []
        keys = [f"{self._count}/{rank}" for rank in range(1, self.size)]
        values = [value, *(self._take(key) for key in keys)]
        for key in keys:
            self._store.delete_key(key)
        return values

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors summed over all ranks, by one collective; the same bits everywhere."""
        self.gather(None)
        return self._summed(*self._begin_summing(tensors))

    def begin(self, value: Value, *tensors: Tensor) -> Callable[[], tuple[list[Value], tuple[Tensor, ...]]]:
        """Begin to gather values and to sum tensors, and go on meanwhile."""
        number = self._begin_gathering(value)
        begun = self._begin_summing(tensors)
        return lambda: (self._gathered(number, value), self._summed(*begun))

    def _begin_summing(self, tensors: Sequence[Tensor]) -> tuple[Any, Tensor, Sequence[Tensor]]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.bytes_sent += flat.numel() * flat.element_size()
        try:
            return dist.all_reduce(flat, async_op=True), flat, tensors
        except RuntimeError as error:
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> BaseException:
        """What ends this rank where a sum has failed: the connection breaks before it is noticed why."""
        fault = self.watch.await_fault(60.0)
        if fault is not None:
            return RankEnded(fault)
        return SA3DError(f"the ranks have lost each other ({one_line(error)}): start them again.")

    def _summed(self, sum_at_work: Any, flat: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        begun = time.perf_counter()
        try:
            sum_at_work.wait()
            if flat.is_cuda:
                torch.cuda.synchronize(flat.device)
        except RuntimeError as error:
            raise self._lost(error) from error
        self.seconds += time.perf_counter() - begun
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around all work: what ends one rank ends all of them, with one sentence.

        Raises:
            SA3DError: On rank 0, its own errors; what has ended another rank is a :class:`RankFault`.
        """
        try:
            yield
        except RankEnded as ended:
            self._leave_as_last()
            raise self.watch.ending(ended.fault) from None
        except SystemExit:
            self._leave_as_last()
            raise
        except BaseException as error:
            if isinstance(error, SA3DError) and self.rank > 0:
                # Mistakes in what was asked for are the same on all ranks, and rank 0 tells them.
                self.watch.await_fault(3.0)
            known = isinstance(error, (SA3DError, KeyboardInterrupt)) or _is_out_of_memory(error)
            fault = self.watch.report(as_reason(error, _described))
            self._leave_as_last()
            if fault.rank != self.rank:
                raise self.watch.ending(fault) from error
            if known and not (self.rank == 0 and isinstance(error, SA3DError)):
                raise RankFault(self.watch.sentence(fault)) from error
            raise

    def _leave_as_last(self) -> None:
        """Rank 0 may hold the store, by which the others learn why all end."""
        if self.rank == 0 and self.watch.fault is not None:
            self.watch.await_others()

    def close(self) -> None:
        """Wait until all ranks have come here, and part."""
        if self.rank > 0 and threading.current_thread() is threading.main_thread():
            # Whoever leaves rank 0's viewer by Ctrl-C ends this by that.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.gather(None)
        self.watch.close()
        if self.rank == 0:
            # The store may be in this process.
            until = time.monotonic() + LEAVING_SECONDS
            while time.monotonic() < until:
                if all(self._store.check([f"closed/{rank}"]) for rank in range(1, self.size)):
                    break
                time.sleep(LONGEST_SLEEP)
        else:
            self._store.set(f"closed/{self.rank}", "1")
        if self._destroys_group:
            dist.destroy_process_group()

    def _post(self, key: str, value: Any) -> None:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        content = buffer.getbuffer()
        starts = range(0, len(content), PART_BYTES)
        keys = [f"{key}/{number}" for number in range(len(starts))]
        for part, start in zip(keys, starts, strict=True):
            self._store.set(part, bytes(content[start : start + PART_BYTES]))  # type: ignore[arg-type]
        self._store.set(key, str(len(keys)))
        self._posted.append((self._count, [key, *keys]))

    def _take(self, key: str) -> Any:
        begun, sleep = time.perf_counter(), 1e-4
        try:
            while self.watch.fault is not None or not self._store.check([key]):
                self.watch.check()
                time.sleep(sleep)
                sleep = min(1.2 * sleep, LONGEST_SLEEP)
            parts = [self._store.get(f"{key}/{number}") for number in range(int(self._store.get(key)))]
        except RuntimeError as error:
            if isinstance(error, dist.DistError) and self.watch.await_fault(60.0) is not None:
                self.watch.check()
            raise
        self.seconds += time.perf_counter() - begun
        # The store listens on the network: what comes from there is read as data.
        return torch.load(io.BytesIO(b"".join(parts)), map_location=self._located, weights_only=True)

    def _located(self, storage: Any, location: str) -> Any:
        """Tensors of another rank's GPU come to this one's; others stay where they are."""
        return storage.cuda(self.device.index) if location.startswith("cuda") else storage


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


def _described(error: BaseException) -> str:
    """An error as a part of a sentence."""
    if isinstance(error, SA3DError):
        return str(error).rstrip(".")
    return OUT_OF_MEMORY if _is_out_of_memory(error) else f"{type(error).__name__}: {one_line(error)}"
