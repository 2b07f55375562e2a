"""The segmenter protocol: embed an image once, predict often."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.prompts import Prompt


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


@dataclass
class SegmenterOptions:
    """What the segmenters need to be built; each takes what concerns it."""

    device: torch.device | str = "cpu"
    """Where the network runs."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model."""
    oracle_instances: Path | None = None
    """Folder of id maps (8 or 16 bit PNG, 0 = background), named like the images: benchmarks only."""
