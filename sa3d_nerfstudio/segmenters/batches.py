"""Several images through an encoder at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterImage

CUDA_BATCH = 4
"""Images that an encoder is given at once on CUDA unless told otherwise; on a CPU there is nothing to be gained."""


@runtime_checkable
class BatchSegmenter(Protocol):
    """A segmenter that embeds several images at once."""

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[Any]:
        """The embedding of each, as if it had been embedded by itself."""
        ...


def embed_all(segmenter: Segmenter, images: Sequence[SegmenterImage]) -> list[Any]:
    """Embed images at once where the segmenter can; in halves where the GPU's memory does not hold them all."""
    if len(images) < 2 or not isinstance(segmenter, BatchSegmenter):
        return [segmenter.embed(image) for image in images]
    try:
        return segmenter.embed_all(images)
    except torch.cuda.OutOfMemoryError:
        half = len(images) // 2
    # Not in the handler, where the exception still holds the tensors that did not fit.
    torch.cuda.empty_cache()
    return embed_all(segmenter, images[:half]) + embed_all(segmenter, images[half:])
