"""Memory: chunks that are halved when the GPU's is full, and what values take of it."""

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
"""Size of the smallest chunk."""
MOST_RAYS = 1 << 18
"""Chunks are raised no further than this: kernels are large enough by then to be worth their launches."""

OUT_OF_MEMORY = ("out of memory", "out_of_memory", "alloc_failed")
"""In lower case, what libraries beside torch say in errors that have no class of their own: the allocator of
tiny-cuda-nn, the CUDA driver, cuBLAS and cuDNN."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class Reclaimable(Protocol):
    """What holds memory that can be had back, such as a cache."""

    def reclaim(self) -> int:
        """Let go of some of it, and take up no more than what is left from now on; how many bytes it was."""
        ...


@dataclass
class Chunk:
    """How much is worked on at a time where no model's configuration says so; see :func:`with_smaller_chunks`."""

    eval_num_rays_per_chunk: int


LIFTED = Chunk(1 << 17)
"""Rays whose masks are rendered or lifted at a time on CUDA: at ten atoms a ray and eight corners each, 0.3 GB."""

_RECLAIMABLE: weakref.WeakSet[Any] = weakref.WeakSet()
_LIMITS: dict[int, tuple[Any, _Limits]] = {}
_SAID: set[str] = set()


@dataclass
class _Limits:
    """What has been found out about chunks or batches."""

    at_first: int = 0
    """The chunk before any was raised."""
    too_large: int = 1 << 62
    """The smallest that has not, or must not be tried."""


def reclaim_from(holder: Reclaimable) -> None:
    """Ask this holder, too, as long as it lives, where memory runs out."""
    _RECLAIMABLE.add(holder)


def reclaim() -> int:
    """Let go of memory that is held to save time: the caches shrink.

    Returns:
        How many bytes they let go of.
    """
    num_bytes = sum(holder.reclaim() for holder in list(_RECLAIMABLE))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if num_bytes:
        say_once("the GPU's memory is full: less is kept of the views from now on")
    return num_bytes


def within_memory(work: Callable[[], Result], remedy: str) -> Result:
    """Do what cannot be done in smaller pieces; where memory runs out, caches shrink, and it is tried again.

    Args:
        work: Called without arguments. It must leave nothing half done where it runs out of memory.
        remedy: What to do where it does not fit; goes into the message.

    Returns:
        What the work returned.

    Raises:
        SA3DError: It does not fit into the GPU's memory.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = error.with_traceback(None)
        # Not in the handler, where the traceback still holds the tensors that did not fit.
        if not reclaim():
            raise SA3DError(f"the GPU's memory is full: {remedy}.") from failed


def map_chunks(config: Any, num_rays: int, function: Callable[[slice], Result], on_cuda: bool = False) -> list[Result]:
    """Apply a function to consecutive chunks of rays.

    When memory runs out, caches shrink, then chunks, and it goes on. On CUDA, where many small chunks leave the device
    idle, chunks are doubled as long as they fit.

    Args:
        config: A model's configuration. Its ``eval_num_rays_per_chunk`` is the chunk's number of rays; it keeps the
            size that fitted.
        num_rays: How many rays there are.
        function: Is given the range of a chunk.
        on_cuda: Whether the work is done there.

    Returns:
        What the function returned for each chunk, in order.

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
    """A whole chunk has fitted: try twice as many rays, unless so many have failed."""
    limits, rays = _limits(config), config.eval_num_rays_per_chunk
    limits.at_first = limits.at_first or rays
    if 2 * rays < min(limits.too_large, MOST_RAYS + 1):
        config.eval_num_rays_per_chunk = 2 * rays


def with_smaller_chunks(config: Any, attempt: Callable[[], Result]) -> Result:
    """Call a function that reads ``config.eval_num_rays_per_chunk``, halved each time memory runs out.

    Caches shrink first, but for a chunk that has been raised.

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
        # Not in the handler, where the traceback still holds the tensors that did not fit.
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
    """Apply a function to as many items at once as fit into memory, which is remembered for their owner.

    Args:
        owner: For example the network that is applied.
        items: All of them.
        function: Is given some, and returns a result for each.

    Raises:
        RuntimeError: Not even one fits.
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
    """Kept beside a configuration, not in it: that is written to files, and stands for what a model renders."""
    return _LIMITS.setdefault(id(config), (config, _Limits()))[1]


def say_once(sentence: str) -> None:
    """Print a sentence, unless this process has printed it before."""
    if sentence not in _SAID:
        _SAID.add(sentence)
        say(sentence)


def size_of(value: Any) -> int:
    """Bytes of the tensors and arrays in a value, in its attributes, and in what these hold."""
    own = getattr(value, "num_bytes", None)
    if isinstance(own, int):
        return own
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(size_of(each) for each in value.values())
    if isinstance(value, (tuple, list)):
        return sum(size_of(each) for each in value)
    if dataclasses.is_dataclass(value):
        return sum(size_of(getattr(value, each.name)) for each in dataclasses.fields(value))
    return 64


def free_bytes(device: torch.device | str) -> int | None:
    """Memory that is to be had on a device: what no program uses, and what torch keeps without using it."""
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
