"""A thread that gets ready what the loop over views comes to next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

from typing_extensions import Self


class Ahead:
    """Prepares the next views on a thread of its own, in their order, while this one works on another.

    To be used as a context: whatever ends it, Ctrl-C included, what has not begun is left, and what runs is waited for.

    Args:
        prepare: Makes a view ready. Only for what may be done beside all else: no renders, which share the model.
        count: How many views at a time may be ready and unused.
    """

    def __init__(self, prepare: Callable[[int], None], count: int = 2) -> None:
        self._prepare = prepare
        self._count = count
        self._jobs: dict[int, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sa3d-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._jobs.clear()

    def begin(self, view: int, coming: Sequence[int]) -> None:
        """Wait until a view is ready, if it is being prepared, and prepare the first of those that come after it."""
        soon = coming[: self._count]
        self._jobs = {one: job for one, job in self._jobs.items() if one == view or one in soon}
        for one in soon:
            if one not in self._jobs:
                self._jobs[one] = self._thread.submit(self._prepare, one)
        if view in self._jobs:
            wait([self._jobs[view]])

    def check(self, view: int) -> None:
        """Wait until a view is ready, if it is being prepared, and tell if it is not.

        Raises:
            Exception: Whatever went wrong with it.
        """
        job = self._jobs.pop(view, None)
        if job is not None:
            job.result()
