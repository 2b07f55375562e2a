"""The segmenter protocol: embed an image once, predict often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.prompt import Prompt


@dataclass
class SegmenterImage:
    """One image as a segmenter sees it."""

    rgb: Float[Tensor, "height width 3"]
    """Colours in [0, 1]."""
    name: str
    """File name of the training image, or a name of the view."""
    depth: Float[Tensor, "height width"] | None = None
    """Distance along each ray as the radiance field renders it, for segmenters that can use it."""

    @property
    def height(self) -> int:
        """Rows."""
        return self.rgb.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.rgb.shape[1]


@dataclass
class Candidates:
    """What a segmenter answers to one prompt: one or more masks, with how sure it is of each."""

    masks: Bool[Tensor, "num_candidates height width"]
    """Masks at the size of the image; SAM's three are part, object, whole."""
    scores: Float[Tensor, " num_candidates"]
    """Confidence of each, comparable within this answer only."""

    def best(self) -> Bool[Tensor, "height width"]:
        """The mask with the highest score."""
        return self.masks[int(torch.argmax(self.scores))]


class Segmenter(Protocol):
    """A 2D segmenter. Stateless between calls: what it learnt of an image travels in the embedding."""

    def embed(self, image: SegmenterImage) -> Any:
        """Do what needs to be done once per image. The result is opaque to callers, who may keep it."""
        ...

    def predict(self, embedding: Any, prompt: Prompt) -> Candidates:
        """Masks for one prompt, whose ``height`` and ``width`` are those of the embedded image."""
        ...


@runtime_checkable
class StorableSegmenter(Protocol):
    """A segmenter whose embeddings may be kept on disk."""

    fingerprint: str
    """Stands for its weights, and for whatever else its embeddings depend on; part of a file name."""

    def to_tensors(self, embedding: Any) -> dict[str, Tensor]:
        """What of an embedding goes to disk."""
        ...

    def from_tensors(self, tensors: dict[str, Tensor]) -> Any:
        """An embedding from what is on disk.

        Raises:
            KeyError: There is something else.
        """
        ...


@dataclass
class SegmenterOptions:
    """What the segmenters need to be built; each takes what concerns it."""

    device: torch.device | str = "cpu"
    """Where the network runs."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model: a file, or for those of the transformers package a folder."""
    oracle_instances: Path | None = None
    """Folder of id maps (8 or 16 bit PNG, 0 = background), named like the images: benchmarks only."""
    sam_dense_prompts: bool = False
    """Whether SAM is shown a prompt's prior as its dense mask prompt, with a box around it."""
    sam_download: bool = True
    """Whether SAM's published weights may be downloaded if no checkpoint is named."""


def check_prompt(prompt: Prompt, height: int, width: int) -> None:
    """What every segmenter asks of a prompt before it looks at it.

    Args:
        prompt: The prompt.
        height: Rows of the embedded image.
        width: Columns of the embedded image.

    Raises:
        SA3DError: The prompt selects nothing, or a point or the whole box lies outside of the image.
        ValueError: The prompt is meant for an image of another size.
    """
    if (prompt.height, prompt.width) != (height, width):
        raise ValueError(
            f"the prompt is for an image of {prompt.width} x {prompt.height} pixels, this one has {width} x {height}"
        )
    if prompt.box is None and not bool(prompt.labels.any()):
        raise SA3DError("the prompt selects nothing: add a positive point or a box.")
    size = torch.tensor([width, height])
    # Points are rounded to pixels, so half a pixel over the border is still inside.
    outside = ((prompt.points < -0.5) | (prompt.points >= size - 0.5)).any(dim=-1) | ~prompt.points.isfinite().all(-1)
    if outside.any():
        x, y = prompt.points[outside][0].tolist()
        raise SA3DError(
            f"the point ({x:g}, {y:g}) lies outside of the image of {width} x {height} pixels: move it inside."
        )
    if prompt.box is not None:
        low, high = prompt.box[:2], prompt.box[2:]
        # Written so that NaN fails, too.
        if not bool(((high > low) & (low < size) & (high > 0)).all()):
            x0, y0, x1, y1 = prompt.box.tolist()
            raise SA3DError(
                f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) holds no pixel of the image of {width} x {height} pixels: "
                "give x0, y0, x1, y1 with x0 < x1 and y0 < y1."
            )


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
