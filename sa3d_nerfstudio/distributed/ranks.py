"""Ranks: the processes that share a job, each with its own views, and their exchanges of sums and values.

A session needs few operations: the views of its rank, sums of tensors over all ranks, a value of rank 0, and the values
of all ranks. For a single process they are trivial. Tensors go through ``torch.distributed`` (NCCL on GPUs, gloo on
CPUs). All other values go through its key-value store, at which ranks may wait without limit: rank 0 may be writing, or
its user thinking, and no collective's timeout ends the others, since collectives begin when all have reached them.
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
"""Bytes of the parts in which a value is stored; a store takes 8 MB at a time."""
LONGEST_SLEEP = 0.02
"""Longest time between two polls of the store, in seconds."""
LEAVING_SECONDS = 60.0
"""Longest time that rank 0 waits at the end for the others to leave, in seconds."""
OUT_OF_MEMORY = "its memory is full: start fewer processes there, or give --pipeline.cache-gb"


def tell_as_data(*classes: type) -> None:
    """Allow instances of these data classes in exchanges of ranks, beside tensors and plain values.

    Other classes are refused when they are read, as in any weights-only file.
    """
    torch.serialization.add_safe_globals(list(classes))


class Ranks:
    """The processes that share a job: a single one in this class, and several in :class:`ProcessRanks`."""

    rank = 0
    """Rank of this process; rank 0 writes, prints, and has the viewer."""
    size = 1
    """Number of processes."""
    local_rank = 0
    """Rank among the processes of this machine."""
    local_size = 1
    """Number of processes on this machine."""
    bytes_sent = 0
    """Bytes of the tensors that this process has contributed to sums."""
    seconds = 0.0
    """Seconds spent on sums and on waiting for other ranks."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @property
    def is_stopping(self) -> bool:
        """Whether all ranks are to stop at the next view."""
        return False

    def owner(self, view: int | str) -> int:
        """Rank that visits a view: always the same, so that its renders are cached by one rank.

        Args:
            view: Index of a training view, or name of another view, which rank 0 visits.
        """
        return view % self.size if isinstance(view, int) else 0

    def own(self, views: Sequence[int]) -> list[int]:
        """The views that this rank visits, in their order."""
        return [view for view in views if self.owner(view) == self.rank]

    def rounds(self, views: Sequence[int]) -> int:
        """Largest number of views that any rank visits."""
        counts = [0] * self.size
        for view in views:
            counts[self.owner(view)] += 1
        return max(counts)

    def share(self, compute: Callable[[], Value]) -> Value:
        """Compute a value on rank 0 only, and return it on all ranks."""
        return compute()

    def gather(self, value: Value) -> list[Value]:
        """Gather the values of all ranks on all of them, in order of rank."""
        return [value]

    def collect(self, value: Value) -> list[Value]:
        """Collect the values of all ranks on rank 0, in order of rank; the others get an empty list and do not wait."""
        return [value]

    def every(self, items: Sequence[Item]) -> list[Item]:
        """This rank's share of items that any rank may process: every ``size``-th."""
        return list(items[self.rank :: self.size])

    def merged(self, own: Sequence[Item]) -> list[Item]:
        """Merge the results for all shares of :meth:`every`, on all ranks, in the order of the items."""
        shares = self.gather(list(own))
        return [share[index] for index in range(len(shares[0])) for share in shares if index < len(share)]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return any(self.gather(flag))

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sum tensors over all ranks, by one collective; the same bits on all of them.

        Args:
            tensors: Tensors of one type, with the same sizes on all ranks.
        """
        return tensors

    def begin(self, value: Value, *tensors: Tensor) -> Callable[[], tuple[list[Value], tuple[Tensor, ...]]]:
        """Begin to gather values and to sum tensors, without waiting.

        At most one such exchange may be unfinished when the next begins.

        Returns:
            Function that ends the exchange: it waits until all ranks have begun theirs, and returns the results of
            :meth:`gather` and :meth:`sum`.
        """
        return lambda: ([value], tensors)

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context of all work: a fault that ends one rank ends all of them, with one sentence."""
        yield

    def close(self) -> None:
        """Wait until all ranks have reached this call, and leave."""


class ProcessRanks(Ranks):
    """Several processes that share a job, and the rank of this one.

    Args:
        store: Key-value store for their exchanges.
        watch: Watch over the other ranks.
        rank: Rank of this process.
        size: Number of processes.
        local_rank: Rank of this process among those of its machine.
        local_size: Number of processes on this machine.
        device: Device for tensors that come from other ranks' GPUs.
        destroys_group: Whether the process group was made for this job, and is destroyed at the end.
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
        """Keys stored by this rank that others may still have to read, by the number of the exchange."""

    @property
    def is_stopping(self) -> bool:
        """Whether all ranks are to stop at the next view."""
        return self.watch.is_stopping

    def stop(self) -> None:
        """Ask all ranks to stop at the next view."""
        self.watch.stop()

    def share(self, compute: Callable[[], Value]) -> Value:
        """Compute a value on rank 0 only, and return it on all ranks."""
        self._count += 1
        if self.rank == 0:
            value = compute()
            self._post(f"{self._count}/0", value)
            return value
        return self._take(f"{self._count}/0")

    def gather(self, value: Value) -> list[Value]:
        """Gather the values of all ranks on all of them, in order of rank."""
        return self._gathered(self._begin_gathering(value), value)

    def _begin_gathering(self, value: Any) -> int:
        self._count += 1
        self._post(f"{self._count}/{self.rank}", value)
        return self._count

    def _gathered(self, number: int, value: Value) -> list[Value]:
        values = [value if rank == self.rank else self._take(f"{number}/{rank}") for rank in range(self.size)]
        # All ranks have posted here, after they had read all earlier exchanges but one that may be unfinished.
        for _, keys in (done := [item for item in self._posted if item[0] < number - 1]):
            for key in keys:
                self._store.delete_key(key)
        self._posted = self._posted[len(done) :]
        return values

    def collect(self, value: Value) -> list[Value]:
        """Collect the values of all ranks on rank 0, in order of rank; the others get an empty list and do not wait."""
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
        """Sum tensors over all ranks, by one collective; the same bits on all of them."""
        self.gather(None)
        return self._summed(*self._begin_summing(tensors))

    def begin(self, value: Value, *tensors: Tensor) -> Callable[[], tuple[list[Value], tuple[Tensor, ...]]]:
        """Begin to gather values and to sum tensors, without waiting."""
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
        """Error that ends this rank after a failed sum: the connection breaks before the watch finds the reason."""
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
        sums = flat.split([tensor.numel() for tensor in tensors])
        return tuple(total.reshape(tensor.shape) for total, tensor in zip(sums, tensors, strict=True))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Context of all work: a fault that ends one rank ends all of them, with one sentence.

        Raises:
            SA3DError: An error of rank 0 itself; faults of other ranks are raised as :class:`RankFault`.
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
                # User errors are the same on all ranks, and rank 0 prints them.
                self.watch.await_fault(3.0)
            expected = isinstance(error, (SA3DError, KeyboardInterrupt)) or _is_out_of_memory(error)
            fault = self.watch.report(as_reason(error, _described))
            self._leave_as_last()
            if fault.rank != self.rank:
                raise self.watch.ending(fault) from error
            if expected and not (self.rank == 0 and isinstance(error, SA3DError)):
                raise RankFault(self.watch.sentence(fault)) from error
            raise

    def _leave_as_last(self) -> None:
        """On rank 0, wait for the others after a fault: it may hold the store from which they read the reason."""
        if self.rank == 0 and self.watch.fault is not None:
            self.watch.await_others()

    def close(self) -> None:
        """Wait until all ranks have reached this call, and leave."""
        if self.rank > 0 and threading.current_thread() is threading.main_thread():
            # Ctrl-C closes rank 0's viewer, which ends this wait in order; the signal itself must not.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.gather(None)
        self.watch.close()
        if self.rank == 0:
            # This process may hold the store.
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
        for part_key, start in zip(keys, starts, strict=True):
            self._store.set(part_key, bytes(content[start : start + PART_BYTES]))  # type: ignore[arg-type]
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
        # The store listens on the network, so its values are read as data only.
        return torch.load(io.BytesIO(b"".join(parts)), map_location=self._located, weights_only=True)

    def _located(self, storage: Any, location: str) -> Any:
        """Move tensors of another rank's GPU to this rank's; the others stay on the CPU."""
        return storage.cuda(self.device.index) if location.startswith("cuda") else storage


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error))


def _described(error: BaseException) -> str:
    """Describe an error as a part of a sentence."""
    if isinstance(error, SA3DError):
        return str(error).rstrip(".")
    return OUT_OF_MEMORY if _is_out_of_memory(error) else f"{type(error).__name__}: {one_line(error)}"
