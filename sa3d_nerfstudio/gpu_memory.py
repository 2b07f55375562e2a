"""Chunks that are halved when the GPU's memory is full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from sa3d_nerfstudio.errors import SA3DError

FEWEST_RAYS = 64
"""Size of the smallest chunk."""

OUT_OF_MEMORY = ("out of memory", "out_of_memory", "alloc_failed")
"""In lower case, what libraries beside torch say in errors that have no class of their own: the allocator of
tiny-cuda-nn, the CUDA driver, cuBLAS and cuDNN."""

Result = TypeVar("Result")


def map_chunks(config: Any, num_rays: int, function: Callable[[slice], Result]) -> list[Result]:
    """Apply a function to consecutive chunks of rays; when memory runs out, halve the chunks and go on.

    Args:
        config: A model's configuration. Its ``eval_num_rays_per_chunk`` is the chunk's number of rays; it keeps the
            size that fitted.
        num_rays: How many rays there are.
        function: Is given the range of a chunk.

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

        result, start = with_smaller_chunks(config, next_chunk)
        results.append(result)
    return results


def with_smaller_chunks(config: Any, attempt: Callable[[], Result]) -> Result:
    """Call a function that reads ``config.eval_num_rays_per_chunk``, halved each time memory runs out.

    Raises:
        SA3DError: Not even the smallest chunk fits.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if config.eval_num_rays_per_chunk <= FEWEST_RAYS:
                raise SA3DError(
                    f"the GPU's memory does not hold even {config.eval_num_rays_per_chunk} rays: close other programs "
                    "that use it, or go on with --machine.device-type cpu."
                ) from error
        # Not in the handler, where the exception still holds the tensors that did not fit.
        torch.cuda.empty_cache()
        config.eval_num_rays_per_chunk = max(FEWEST_RAYS, config.eval_num_rays_per_chunk // 2)
        CONSOLE.print(
            f"the GPU's memory is full: going on with {config.eval_num_rays_per_chunk} rays at a time", highlight=False
        )


@contextmanager
def within_memory(remedy: str) -> Iterator[None]:
    """Turn a full memory into a sentence, for work that has no chunks.

    Args:
        remedy: What to do then; goes into the message.

    Raises:
        SA3DError: It does not fit into the GPU's memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise SA3DError(f"the GPU's memory is full: {remedy}.") from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error means that the GPU's memory is full."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return any(words in str(error).lower() for words in OUT_OF_MEMORY)
