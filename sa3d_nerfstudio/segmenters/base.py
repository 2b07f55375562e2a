"""The segmenter protocol: embed an image once, predict masks for many prompts."""

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
    """Input of a segmenter: an image, its name and, where rendered, its depth."""

    rgb: Float[Tensor, "height width 3"]
    """Colours in [0, 1]."""
    name: str
    """File name of the training image, or a name of the view."""
    depth: Float[Tensor, "rows columns"] | None = None
    """Rendered distance along each ray of the same view, for segmenters that use it; of the image's size, unless the
    segmenter requests larger images by its ``input_side``."""
    window: tuple[float, float, float, float] | None = None
    """y0, x0, y1, x1 of this image, as shares of the whole image's sides; None for a whole image."""

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
    """A segmenter's masks for one prompt, and its confidence in each.

    The tensors stay on the segmenter's device, so that no caller waits for values that it does not need.
    """

    masks: Bool[Tensor, "num_candidates height width"]
    """Candidate masks at the size of the image; SAM's three are part, object and whole."""
    scores: Float[Tensor, " num_candidates"]
    """Confidence in each mask; for networks, their prediction of its IoU."""
    logits: Float[Tensor, "num_candidates height width"] | None = None
    """Logits, positive within the masks, if available; resizing them is more exact than resizing masks."""
    single: int | None = None
    """Index of the network's single-mask output, if any: SAM's authors use it for several points or a box, which are
    unambiguous, and the three others for one click."""

    @property
    def favourite(self) -> int:
        """Index of the segmenter's choice: the single-mask output if there is one, else the highest score."""
        return int(self.scores.argmax()) if self.single is None else self.single

    def by_area(self) -> list[int]:
        """Indices of the candidates from small to large, without the single-mask output.

        SAM's three are ordered from part to whole; those of its successors are in any order.
        """
        indices = [index for index in range(len(self.masks)) if index != self.single] or [0]
        return sorted(indices, key=lambda index: int(self.masks[index].sum()))

    def of_size(self, size: CandidateName) -> int:
        """Index of the small, medium or large candidate by area, or of the segmenter's choice."""
        order = self.by_area()
        choices = {"small": order[0], "medium": order[len(order) // 2], "large": order[-1], "auto": self.favourite}
        return choices[size]

    def most_like(self, mask: Bool[Tensor, "rows columns"]) -> int:
        """Index of the candidate with the highest IoU with a mask, which may be of another size."""
        size = (self.masks.shape[1], self.masks.shape[2])
        resized = torch.nn.functional.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0] > 0
        resized = resized.to(self.masks.device)
        union = (self.masks | resized).flatten(1).sum(1)
        return int(((self.masks & resized).flatten(1).sum(1) / union.clamp(min=1)).argmax())

    def at(self, height: int, width: int) -> Candidates:
        """The same candidates resized, averaged over areas where the new pixels are larger."""
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
        """Mask of the segmenter's choice."""
        return self.masks[self.favourite]


class Segmenter(Protocol):
    """A 2D segmenter, stateless between calls: an image's embedding holds all that is computed from it.

    The optional attribute ``input_side`` requests photos of up to that longer side, however small the renders in which
    objects are segmented; see :func:`input_side`. The optional ``fits_prior`` declares scores that include the fit to a
    prompt's prior; see :func:`fits_prior`.
    """

    def embed(self, image: SegmenterImage) -> Any:
        """Embed an image, once. The embedding is opaque to callers, which may keep it."""
        ...

    def predict(self, embedding: Any, prompt: Prompt) -> Candidates:
        """Predict masks for one prompt, whose ``height`` and ``width`` are those of the embedded image."""
        ...


def input_side(segmenter: Segmenter) -> int | None:
    """Longer side, in pixels, of the largest image that a segmenter uses; None for images of the renders' size."""
    return getattr(segmenter, "input_side", None)


def fits_prior(segmenter: Segmenter) -> bool:
    """Whether a segmenter's scores include the fit of its masks to a prompt's prior. Agreement with the rendered mask
    then need not count once more in the choice of a candidate."""
    return getattr(segmenter, "fits_prior", False)


@runtime_checkable
class StorableSegmenter(Protocol):
    """A segmenter whose embeddings may be kept on disk."""

    fingerprint: str
    """Identifies its weights and all else that its embeddings depend on; part of a file name."""

    def to_tensors(self, embedding: Any) -> dict[str, Tensor]:
        """Tensors of an embedding, by name, to save on disk."""
        ...

    def from_tensors(self, tensors: dict[str, Tensor]) -> Any:
        """Rebuild an embedding from its saved tensors.

        Raises:
            KeyError: These are not the tensors of an embedding.
        """
        ...


@dataclass
class SegmenterOptions:
    """Options to build segmenters; each uses those that concern it."""

    device: torch.device | str = "cpu"
    """Device of the network."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model: a file, or a folder for models of the transformers package."""
    oracle_instances: Path | None = None
    """Folder of id maps (8 or 16 bit PNG, 0 = background), named like the images: benchmarks only."""
    sam_dense_prompts: bool = False
    """Whether SAM gets a prompt's prior as its dense mask prompt, with a box around it."""
    sam_download: bool = True
    """Whether SAM's published weights may be downloaded if no checkpoint is named."""


def check_prompt(prompt: Prompt, height: int, width: int) -> None:
    """Check a prompt against the embedded image, as every segmenter does first.

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
        # Comparisons with NaN are false, so a box with NaN fails, too.
        if not bool(((high > low) & (low < size) & (high > 0)).all()):
            x0, y0, x1, y1 = prompt.box.tolist()
            raise SA3DError(
                f"the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) holds no pixel of the image of {width} x {height} pixels: "
                "give x0, y0, x1, y1 with x0 < x1 and y0 < y1."
            )


CUDA_BATCH = 4
"""Images per batch of an encoder on CUDA by default; on a CPU, batches gain nothing."""


@runtime_checkable
class BatchSegmenter(Protocol):
    """A segmenter that embeds several images at once."""

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[Any]:
        """Embed images; each embedding is that of its image alone."""
        ...


@runtime_checkable
class ParallelSegmenter(Protocol):
    """A segmenter that predicts masks for several prompts at once, in one view or several."""

    at_once: int
    """Number of prompts at once."""

    def predict_all(self, questions: Sequence[tuple[Any, Prompt]]) -> list[Candidates]:
        """Candidates of each pair of an embedding and a prompt, as from :meth:`Segmenter.predict`."""
        ...


def predictions_at_once(segmenter: Segmenter) -> int:
    """Number of prompts that a segmenter processes at once."""
    return segmenter.at_once if isinstance(segmenter, ParallelSegmenter) else 1


def predict_all(segmenter: Segmenter, questions: Sequence[tuple[Any, Prompt]]) -> list[Candidates]:
    """Predict masks for pairs of an embedding and a prompt; at once where the segmenter can."""
    if isinstance(segmenter, ParallelSegmenter):
        return segmenter.predict_all(questions)
    return [segmenter.predict(embedding, prompt) for embedding, prompt in questions]


def embed_all(segmenter: Segmenter, images: Sequence[SegmenterImage]) -> list[Any]:
    """Embed images; at once where the segmenter can, in batches that have been found to fit the GPU's memory."""
    if not isinstance(segmenter, BatchSegmenter):
        return [segmenter.embed(image) for image in images]
    return map_batches(segmenter, images, segmenter.embed_all)
