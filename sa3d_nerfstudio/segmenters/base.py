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
from sa3d_nerfstudio.gpu_memory import map_batches
from sa3d_nerfstudio.prompts.prompt import CandidateName, Prompt


@dataclass
class SegmenterImage:
    """One image as a segmenter sees it."""

    rgb: Float[Tensor, "height width 3"]
    """Colours in [0, 1]."""
    name: str
    """File name of the training image, or a name of the view."""
    depth: Float[Tensor, "rows columns"] | None = None
    """Distance along each ray as the radiance field renders it, for segmenters that can use it; of the same view, and
    of the same size unless the segmenter asks for larger images by its ``input_side``."""
    window: tuple[float, float, float, float] | None = None
    """y0, x0, y1, x1 as shares of the whole image, where this is a part of it."""

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
    """What a segmenter answers to one prompt: one or more masks, with how sure it is of each.

    They are where the segmenter computes, so that nobody has to wait for them who asks for nothing else.
    """

    masks: Bool[Tensor, "num_candidates height width"]
    """Masks at the size of the image; SAM's three are part, object, whole."""
    scores: Float[Tensor, " num_candidates"]
    """Confidence of each; for networks, the IoU that they predict for it."""
    logits: Float[Tensor, "num_candidates height width"] | None = None
    """What the masks were cut from at 0, where there is such a thing: brought to another size, it is more exact."""
    single: int | None = None
    """Which of them is the network's single-mask answer, where there is one: SAM's authors take it for several points
    or a box, which leave nothing open, and the three others for one click."""

    @property
    def favourite(self) -> int:
        """The segmenter's own choice: the single-mask answer where there is one, else the highest score."""
        return int(self.scores.argmax()) if self.single is None else self.single

    def by_area(self) -> list[int]:
        """The candidates from small to large, the single-mask answer aside.

        SAM's three go from part to whole, those of its successors come in any order.
        """
        others = [index for index in range(len(self.masks)) if index != self.single] or [0]
        return sorted(others, key=lambda index: int(self.masks[index].sum()))

    def of_size(self, size: CandidateName) -> int:
        """The small, medium or large one of the candidates by area, or the segmenter's own choice."""
        order = self.by_area()
        choices = {"small": order[0], "medium": order[len(order) // 2], "large": order[-1], "auto": self.favourite}
        return choices[size]

    def most_like(self, mask: Bool[Tensor, "rows columns"]) -> int:
        """The candidate with the highest IoU with a mask, which may be of another size."""
        size = (self.masks.shape[1], self.masks.shape[2])
        other = torch.nn.functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0] > 0
        other = other.to(self.masks.device)
        union = (self.masks | other).flatten(1).sum(1)
        return int(((self.masks & other).flatten(1).sum(1) / union.clamp(min=1)).argmax())

    def at(self, height: int, width: int) -> Candidates:
        """The same candidates on the pixels of another image, averaged over areas where these are larger."""
        if self.masks.shape[1:] == (height, width):
            return Candidates(self.masks, self.scores, single=self.single)
        values = self.masks.float() - 0.5 if self.logits is None else self.logits
        if height <= values.shape[1] and width <= values.shape[2]:
            values = torch.nn.functional.adaptive_avg_pool2d(values[None], (height, width))[0]
        else:
            values = torch.nn.functional.interpolate(values[None], (height, width), mode="bilinear", antialias=True)[0]
        return Candidates(values > 0, self.scores, single=self.single)

    def to(self, device: torch.device | str) -> Candidates:
        """The same candidates on a device."""
        logits = None if self.logits is None else self.logits.to(device)
        return Candidates(self.masks.to(device), self.scores.to(device), logits, self.single)

    def best(self) -> Bool[Tensor, "height width"]:
        """The mask that the segmenter would choose."""
        return self.masks[self.favourite]


class Segmenter(Protocol):
    """A 2D segmenter. Stateless between calls: what it learnt of an image travels in the embedding.

    One with an attribute ``input_side`` is shown photos at up to that longer side, however small the renders are in
    which objects are segmented; see :func:`input_side`. One with ``fits_prior`` scores masks by a prompt's prior; see
    :func:`fits_prior`.
    """

    def embed(self, image: SegmenterImage) -> Any:
        """Do what needs to be done once per image. The result is opaque to callers, who may keep it."""
        ...

    def predict(self, embedding: Any, prompt: Prompt) -> Candidates:
        """Masks for one prompt, whose ``height`` and ``width`` are those of the embedded image."""
        ...


def input_side(segmenter: Segmenter) -> int | None:
    """Longer side of the largest image that a segmenter makes use of; None if it wants images as large as renders."""
    return getattr(segmenter, "input_side", None)


def fits_prior(segmenter: Segmenter) -> bool:
    """Whether the scores of a segmenter tell how well its masks fit the prior of a prompt: what has been lifted of an
    object need not count once more when one of its masks is chosen."""
    return getattr(segmenter, "fits_prior", False)


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


@runtime_checkable
class ParallelSegmenter(Protocol):
    """A segmenter that answers several prompts at once, in views of its own choosing or of one."""

    at_once: int
    """How many."""

    def predict_all(self, questions: Sequence[tuple[Any, Prompt]]) -> list[Candidates]:
        """What :meth:`Segmenter.predict` answers to each pair of an embedding and a prompt."""
        ...


def predictions_at_once(segmenter: Segmenter) -> int:
    """How many prompts a segmenter answers at once."""
    return segmenter.at_once if isinstance(segmenter, ParallelSegmenter) else 1


def predict_all(segmenter: Segmenter, questions: Sequence[tuple[Any, Prompt]]) -> list[Candidates]:
    """Answer prompts, each about an embedded image; at once where the segmenter can."""
    if isinstance(segmenter, ParallelSegmenter):
        return segmenter.predict_all(questions)
    return [segmenter.predict(embedding, prompt) for embedding, prompt in questions]


def embed_all(segmenter: Segmenter, images: Sequence[SegmenterImage]) -> list[Any]:
    """Embed images at once where the segmenter can, as many as the GPU's memory has been found to hold."""
    if not isinstance(segmenter, BatchSegmenter):
        return [segmenter.embed(image) for image in images]
    return map_batches(segmenter, images, segmenter.embed_all)
