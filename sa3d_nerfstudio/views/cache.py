"""Cache of traces and embeddings of views: in memory up to a budget, then on disk."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.gpu_memory import free_bytes, reclaim_from, size_of, within_memory
from sa3d_nerfstudio.segmenters.base import Segmenter, StorableSegmenter
from sa3d_nerfstudio.terminal import say
from sa3d_nerfstudio.traces.window import Window
from sa3d_nerfstudio.views.disk import DiskStore

SHARE_OF_MEMORY = 0.5
"""Default budget for traces and embeddings, as a share of the memory that is free when the cache is made."""
FALLBACK_BYTES = 2 << 30
"""Budget if the free memory is unknown."""

IN_USE = 12
"""Most recently used values that passes do not evict: those of the present view, and of views prepared meanwhile."""

_NUMBERS = itertools.count()
"""Numbers for segmenters without a fingerprint of their weights."""

Value = TypeVar("Value")
CachedView = int | str | tuple[int, Window]
"""Index of a training view, name of a free view, or window of a training view."""
Stored = tuple[Mapping[str, Tensor], Mapping[str, Any]]


def default_budget(device: torch.device | str) -> int:
    """Budget of the cache on a device, in bytes: a share of the memory that loaded models leave free."""
    free = free_bytes(device)
    return FALLBACK_BYTES if free is None else int(free * SHARE_OF_MEMORY)


def restored(make: Callable[[], Value]) -> Value:
    """Bring a value read from disk to its device; caches shrink if memory runs out."""
    return within_memory(make, "keep less in it (--pipeline.cache-gb), or close other programs that use it")


@dataclasses.dataclass
class _Entry:
    value: Any
    num_bytes: int
    stored: Callable[[], Stored] | None
    on_disk: bool
    number_of_pass: int = 0
    """Pass in which the value was used last."""


class ViewCache:
    """Values by key. Values are evicted when the budget is exceeded: to disk if they can be stored, else for good.

    In a pass, views are visited in turn, so the least recently used value is needed next; if it were evicted, room for
    all views but one would be worth nothing. Passes therefore evict the most recently used values first, except those
    in use, and as many views as fit stay from pass to pass. Values that the last two passes have not used leave before
    these. Until the first pass, the least recently used value leaves.

    Args:
        budget: Bytes that values may take together. The newest is kept however large it is.
        disk: Store for evicted values, from which they are read again; None for memory only.
    """

    def __init__(self, budget: int, disk: DiskStore | None = None) -> None:
        self.budget = budget
        self.disk = disk
        self.num_bytes = 0
        """Present size of all values in bytes."""
        self.computed = 0
        """Number of values computed rather than found in the cache."""
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._pass = 0
        self._lock = threading.RLock()
        reclaim_from(self)

    def begin_pass(self) -> None:
        """Begin a pass: views are visited in turn, each once."""
        with self._lock:
            self._pass += 1

    def get(self, key: str, restore: Callable[[dict[str, Tensor], dict[str, Any]], Any] | None = None) -> Any | None:
        """The value in memory or on disk; None if there is none.

        Args:
            key: Key of the value.
            restore: Makes the value from the tensors and numbers on disk; it may raise KeyError, TypeError or
                ValueError if these are invalid, and the value counts as absent. None for values in memory only.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                entry.number_of_pass = self._pass
                return entry.value
        content = self.disk.read(key) if self.disk is not None and restore is not None else None
        if content is None or restore is None:
            return None
        try:
            value = restore(*content)
        except (KeyError, TypeError, ValueError):
            # Undamaged, but written by another version.
            return None
        # The content is not kept: on CUDA it would be a second copy, in the host's memory.
        self._put(key, _Entry(value, size_of(value), None, on_disk=True))
        return value

    def put(self, key: str, value: Any, stored: Callable[[], Stored] | None = None) -> None:
        """Keep a value that has been computed.

        Args:
            key: Key of the value.
            value: The value.
            stored: Returns the tensors and numbers to write to disk; None for values that stay in memory.
        """
        self.computed += 1
        self._put(key, _Entry(value, size_of(value), stored, on_disk=False))

    def _put(self, key: str, entry: _Entry) -> None:
        with self._lock:
            self._forget(key)
            entry.number_of_pass = self._pass
            self._entries[key] = entry
            self.num_bytes += entry.num_bytes
            self._shrink(self.budget)

    def _shrink(self, budget: int) -> None:
        while self.num_bytes > budget and len(self._entries) > 1:
            key = self._least_needed()
            self._write(key, self._entries[key])
            self._forget(key)

    def _least_needed(self) -> str:
        """Key of the value to evict; never the newest."""
        keys = list(self._entries)
        oldest = keys[0]
        if not self._pass or self._entries[oldest].number_of_pass < self._pass - 1:
            return oldest
        in_use = min(IN_USE, len(keys) // 2)
        return keys[-1 - max(in_use, 1)]

    def reclaim(self) -> int:
        """Evict half of the bytes held in memory, and lower the budget to the rest; return the bytes evicted."""
        with self._lock:
            before = self.num_bytes
            if len(self._entries) < 2:
                return 0
            self._shrink(before // 2)
            self.budget = min(self.budget, max(self.num_bytes, before // 2))
            return before - self.num_bytes

    def flush(self) -> None:
        """Write all values to disk that are not there yet."""
        with self._lock:
            for key, entry in self._entries.items():
                self._write(key, entry)

    def _write(self, key: str, entry: _Entry) -> None:
        if self.disk is not None and entry.stored is not None and not entry.on_disk:
            try:
                self.disk.write(key, *entry.stored())
            except SA3DError as error:
                # Segmentation goes on without the disk, and evicted values are computed again.
                say(f"views are kept in memory only: {error}")
                self.disk = None
            entry.on_disk = True

    def drop(self, key: str) -> None:
        """Drop a value from memory; its entry on disk stays."""
        with self._lock:
            self._forget(key)

    def _forget(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        self.num_bytes -= 0 if entry is None else entry.num_bytes


class Embeddings(MutableMapping):
    """A segmenter's embeddings by view, held in a cache.

    Args:
        cache: The cache that holds them.
        segmenter: The segmenter; embeddings of a :class:`StorableSegmenter` go to disk.
        key: Returns a training view's key, made of all that its image depends on.
    """

    def __init__(self, cache: ViewCache, segmenter: Segmenter, key: Callable[[int], str]) -> None:
        self._cache = cache
        self._segmenter = segmenter if isinstance(segmenter, StorableSegmenter) else None
        self._name = str(next(_NUMBERS)) if self._segmenter is None else self._segmenter.fingerprint
        self._key_of_view = key
        self._known: dict[CachedView, None] = {}

    def __getitem__(self, view: CachedView) -> Any:
        storable = self._storable(view)
        restore = None if storable is None else (lambda tensors, _: restored(lambda: storable.from_tensors(tensors)))
        value = self._cache.get(self._key(view), restore)
        if value is None:
            raise KeyError(view)
        self._known[view] = None
        return value

    def __setitem__(self, view: CachedView, embedding: Any) -> None:
        storable = self._storable(view)
        stored = None if storable is None else (lambda: (storable.to_tensors(embedding), {}))
        self._cache.put(self._key(view), embedding, stored)
        self._known[view] = None

    def __delitem__(self, view: CachedView) -> None:
        del self._known[view]
        self._cache.drop(self._key(view))

    def __iter__(self) -> Iterator[CachedView]:
        return iter([view for view in list(self._known) if view in self])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _storable(self, view: CachedView) -> StorableSegmenter | None:
        """Segmenter that converts a view's embedding for disk; None if it stays in memory, as for free views."""
        return None if isinstance(view, str) else self._segmenter

    def _key(self, view: CachedView) -> str:
        if isinstance(view, tuple):
            return f"embedding-{self._name}-{self._key_of_view(view[0])}-{digest([view[1]])}"
        return f"embedding-{self._name}-{self._key_of_view(view) if isinstance(view, int) else f'free {view}'}"
