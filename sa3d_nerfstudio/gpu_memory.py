"""GPU memory: caches and chunks that shrink when it is full, and the size of values."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say

FEWEST_RAYS = 64
"""Rays of the smallest chunk."""
MOST_RAYS = 1 << 18
"""Rays of the largest chunk made by doubling: kernels of that size are worth their launches."""

OUT_OF_MEMORY = ("out of memory", "out_of_memory", "alloc_failed")
"""Lower-case phrases of errors without a class of their own, from libraries beside torch: the allocator of
tiny-cuda-nn, the CUDA driver, cuBLAS and cuDNN."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reclaimable(Protocol):
    """Holder of memory that can be reclaimed, such as a cache."""

    def reclaim(self) -> int:
        """Release some memory, hold no more than the remainder from now on, and return the bytes released."""
        ...


@dataclass
class Chunk:
    """Chunk size of work that has no model configuration; see :func:`with_smaller_chunks`."""

    eval_num_rays_per_chunk: int


LIFTED = Chunk(1 << 17)
"""Rays whose masks are rendered or lifted at a time on CUDA: 0.3 GB at ten atoms a ray, eight corners an atom."""

_RECLAIMABLE: weakref.WeakSet[Any] = weakref.WeakSet()
_LIMITS: dict[int, tuple[Any, _Limits]] = {}
_SAID: set[str] = set()


@dataclass
class _Limits:
    """Limits learnt for chunks or batches."""

    at_first: int = 0
    """Chunk size before the first doubling; 0 if there was none."""
    too_large: int = 1 << 62
    """Smallest size that has not fitted, or must not be tried."""


def reclaim_from(holder: Reclaimable) -> None:
    """Register a holder, whose memory :func:`reclaim` releases as long as the holder lives."""
    _RECLAIMABLE.add(holder)


def reclaim() -> int:
    """Shrink the caches, whose memory is held only to save time.

    Returns:
        Number of bytes released.
    """
    num_bytes = sum(holder.reclaim() for holder in list(_RECLAIMABLE))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if num_bytes:
        say_once("the GPU's memory is full: less is kept of the views from now on")
    return num_bytes


def within_memory(work: Callable[[], Result], remedy: str) -> Result:
    """Do work that cannot be split; where memory runs out, shrink the caches and try again.

    Args:
        work: Called without arguments. It must leave nothing half done where it runs out of memory.
        remedy: Remedy if the work does not fit; a part of the message.

    Returns:
        Result of the work.

    Raises:
        SA3DError: The work does not fit into the GPU's memory.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)
        # Outside of the handler, where the traceback still holds the tensors that did not fit.
        if not reclaim():
            raise SA3DError(f"the GPU's memory is full: {remedy}.") from failed


def map_chunks(config: Any, num_rays: int, function: Callable[[slice], Result], on_cuda: bool = False) -> list[Result]:
    """Apply a function to consecutive chunks of rays.

    When memory runs out, caches shrink, then chunks, and the work continues. On CUDA, where many small chunks leave
    the device idle, chunks are doubled as long as they fit.

    Args:
        config: Model configuration. Its ``eval_num_rays_per_chunk`` is the number of rays per chunk; it keeps the size
            that fitted.
        num_rays: Number of rays.
        function: Called with the range of each chunk.
        on_cuda: Whether the work is done on CUDA.

    Returns:
        Result for each chunk, in order.

    Raises:
        SA3DError: Not even the smallest chunk fits.
    """
    results: list[Result] = []
    start = 0
    while start < num_rays:

        def next_chunk(start: int = start) -> tuple[Result, int]:
            end = min(start + config.eval_num_rays_per_chunk, num_rays)
            return function(slice(start, end)), end

        result, end = with_smaller_chunks(config, next_chunk)
        results.append(result)
        if on_cuda and end - start == config.eval_num_rays_per_chunk:
            _raise_chunk(config)
        start = end
    return results


def _raise_chunk(config: Any) -> None:
    """Double the chunk size after a full chunk has fitted, unless the double has failed or is too large."""
    limits, rays = _limits(config), config.eval_num_rays_per_chunk
    limits.at_first = limits.at_first or rays
    if 2 * rays < min(limits.too_large, MOST_RAYS + 1):
        config.eval_num_rays_per_chunk = 2 * rays


def with_smaller_chunks(config: Any, attempt: Callable[[], Result]) -> Result:
    """Call a function that reads ``config.eval_num_rays_per_chunk``, which is halved each time memory runs out.

    Caches shrink first, unless the chunk had been doubled.

    Raises:
        SA3DError: Not even the smallest chunk fits.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)
        # Outside of the handler, where the traceback still holds the tensors that did not fit.
        limits, rays = _limits(config), config.eval_num_rays_per_chunk
        raised = 0 < limits.at_first < rays
        if not raised and reclaim():
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if rays <= FEWEST_RAYS:
            raise SA3DError(
                f"the GPU's memory does not hold even {rays} rays: close other programs that use it, or go on with "
                "--machine.device-type cpu."
            ) from failed
        limits.too_large = min(limits.too_large, rays)
        config.eval_num_rays_per_chunk = max(FEWEST_RAYS, rays // 2)
        if not raised:
            CONSOLE.print(
                f"the GPU's memory is full: going on with {config.eval_num_rays_per_chunk} rays at a time",
                highlight=False,
            )


def map_batches(owner: Any, items: Sequence[Item], function: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
    """Apply a function to as many items at once as fit into memory; this number is remembered for their owner.

    Args:
        owner: Object whose limit is remembered, such as the network that is applied.
        items: All items.
        function: Called with some items; returns one result for each.

    Raises:
        RuntimeError: Not even one item fits.
    """
    limits = _limits(owner)
    results: list[Result] = []
    while len(results) < len(items):
        count = min(len(items) - len(results), max(1, limits.too_large - 1))
        try:
            results += function(items[len(results) : len(results) + count])
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)
        if reclaim():
            continue
        if count == 1:
            raise failed
        limits.too_large = count // 2 + 1
    return results


def _limits(config: Any) -> _Limits:
    """Limits beside a configuration, not in it: configurations are written to files, and identify cached renders."""
    return _LIMITS.setdefault(id(config), (config, _Limits()))[1]


def say_once(sentence: str) -> None:
    """Print a sentence, unless this process has printed it before."""
    if sentence not in _SAID:
        _SAID.add(sentence)
        say(sentence)


def size_of(value: Any) -> int:
    """Bytes of the tensors and arrays in a value, its attributes included, recursively."""
    num_bytes = getattr(value, "num_bytes", None)
    if isinstance(num_bytes, int):
        return num_bytes
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, (tuple, list)):
        return sum(size_of(item) for item in value)
    if dataclasses.is_dataclass(value):
        return sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 64


def free_bytes(device: torch.device | str) -> int | None:
    """Bytes available on a device: free memory, and memory that torch reserves without using it; None if unknown."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + max(unused, 0)
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the GPU's memory is full."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)
