"""Successors of Segment Anything, as the transformers package keeps them: SAM 2 and SAM-HQ.

N. Ravi et al., "SAM 2: Segment Anything in Images and Videos", ICLR 2025; L. Ke et al., "Segment Anything in High
Quality", NeurIPS 2023. Networks and processing of images and masks are the package's own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, check_prompt
from sa3d_nerfstudio.segmenters.checkpoints import CHECKPOINT_VARIABLE
from sa3d_nerfstudio.segmenters.pretrained import PretrainedKind, load_pretrained
from sa3d_nerfstudio.segmenters.sam import MAX_LOGIT, box_of_prior, fingerprint_of, low_res_logits, to_bytes

_COMMON = {
    "option": "--pipeline.sam-checkpoint",
    "otherwise": "choose --pipeline.segmenter grabcut, which works without weights",
}
SAM_2 = PretrainedKind(
    name="SAM 2",
    model_class="Sam2Model",
    processor_class="Sam2Processor",
    # Published models are those for videos, of which images need a part.
    model_types=("sam2", "sam2_video"),
    published="facebook/sam2.1-hiera-large",
    extra="sam2",
    **_COMMON,
)
SAM_HQ = PretrainedKind(
    name="SAM-HQ",
    model_class="SamHQModel",
    processor_class="SamHQProcessor",
    model_types=("sam_hq",),
    published="syscv-community/sam-hq-vit-huge",
    extra="sam-hq",
    **_COMMON,
)


@dataclass
class TransformersSamEmbedding:
    """What an encoder makes of an image."""

    features: dict[str, Any]
    """What the decoder is given of it."""
    original_size: tuple[int, int]
    """Height and width of the image."""
    input_size: tuple[int, int]
    """Height and width of the image as the encoder saw it, without padding."""


class Sam2Segmenter:
    """Segments with SAM 2. Not a module: its weights belong in no checkpoint but their own.

    Args:
        model: The network, on the device where it shall run.
        processor: What prepares images for it.
        dense_prompts: Whether a prompt's prior goes in as mask prompt, with a box around it.
    """

    def __init__(self, model: Any, processor: Any, dense_prompts: bool = False) -> None:
        self.model, self.processor, self.dense_prompts = model, processor, dense_prompts

    def embed(self, image: SegmenterImage) -> TransformersSamEmbedding:
        """Run the encoder, in reduced precision where that is CUDA's."""
        return self.embed_all([image])[0]

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[TransformersSamEmbedding]:
        """Run the encoder once for several images, of any sizes: it brings all to the same square."""
        inputs = [self.processor.image_processor(to_bytes(image.rgb), return_tensors="pt") for image in images]
        pixels = torch.cat([each["pixel_values"] for each in inputs]).to(self.model.device)
        with torch.no_grad(), torch.autocast("cuda", enabled=pixels.is_cuda):
            features = self._features(pixels)
        found = []
        for number, (image, each) in enumerate(zip(images, inputs, strict=True)):
            own = {name: _of_one(levels, number) for name, levels in features.items()}
            found.append(TransformersSamEmbedding(own, (image.height, image.width), self._input_size(each)))
        return found

    def predict(self, embedding: TransformersSamEmbedding, prompt: Prompt) -> Candidates:
        """Three masks with the network's own estimates of their IoU.

        Raises:
            SA3DError: The prompt selects nothing or lies outside of the image.
        """
        check_prompt(prompt, *embedding.original_size)
        (height, width), (input_height, input_width) = embedding.original_size, embedding.input_size
        scale = torch.tensor([input_width / width, input_height / height])
        prior = prompt.prior if self.dense_prompts else None
        box = box_of_prior(prior) if prompt.box is None and prior is not None else prompt.box
        given: dict[str, Tensor] = {}
        # Pixels of the encoder's image count from the centre of the first: the network adds half of one.
        if len(prompt.points):
            given["input_points"] = ((prompt.points + 0.5) * scale - 0.5)[None, None]
            given["input_labels"] = prompt.labels.long()[None, None]
        if box is not None:
            given["input_boxes"] = (box * scale.repeat(2) - 0.5)[None, None]
        if prior is not None:
            given["input_masks"] = self._mask_input(prior)[None]
        given = {name: value.to(self.model.device) for name, value in given.items()}
        with torch.no_grad():
            outputs = self.model(**embedding.features, **given, multimask_output=True)
        masks = self._masks(outputs.pred_masks.float().cpu(), embedding)
        return Candidates(masks, outputs.iou_scores[0, 0].float().cpu())

    @functools.cached_property
    def fingerprint(self) -> str:
        """Stands for the weights."""
        return fingerprint_of(self.model)

    def to_tensors(self, embedding: TransformersSamEmbedding) -> dict[str, Tensor]:
        """What of an embedding goes to disk."""
        tensors = {"sizes": torch.tensor([*embedding.original_size, *embedding.input_size])}
        for name, value in embedding.features.items():
            levels = {name: value} if isinstance(value, Tensor) else {f"{name}.{i}": v for i, v in enumerate(value)}
            tensors |= levels
        return tensors

    def from_tensors(self, tensors: dict[str, Tensor]) -> TransformersSamEmbedding:
        """An embedding from what is on disk."""
        height, width, input_height, input_width = tensors["sizes"].tolist()
        features: dict[str, Any] = {}
        for key in sorted(tensors.keys() - {"sizes"}):
            name, _, level = key.partition(".")
            value = tensors[key].to(self.model.device)
            if level:
                features.setdefault(name, []).append(value)
            else:
                features[name] = value
        return TransformersSamEmbedding(features, (height, width), (input_height, input_width))

    def _features(self, pixels: Float[Tensor, "1 3 rows columns"]) -> dict[str, Any]:
        return {"image_embeddings": [level.float() for level in self.model.get_image_embeddings(pixels)]}

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        # Images are stretched to a square.
        height, width = inputs["pixel_values"].shape[-2:]
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        """The prior as logits on the encoder's square."""
        logits = torch.logit(prior.float(), eps=1e-6).clamp(-MAX_LOGIT, MAX_LOGIT).nan_to_num(0.0)
        size = self.model.prompt_encoder.mask_input_size
        return torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", antialias=True)[0]

    def _masks(
        self, logits: Float[Tensor, "1 1 3 rows columns"], embedding: TransformersSamEmbedding
    ) -> Bool[Tensor, "3 height width"]:
        return self.processor.post_process_masks(logits, [embedding.original_size])[0][0]


class SamHQSegmenter(Sam2Segmenter):
    """Segments with SAM-HQ, whose image is padded to a square as in SAM."""

    def _features(self, pixels: Float[Tensor, "1 3 rows columns"]) -> dict[str, Any]:
        final, early = self.model.get_image_embeddings(pixels)
        # The decoder looks at the first of the early layers only; all would be four times as much to keep.
        return {"image_embeddings": final.float(), "intermediate_embeddings": [early[0].float()]}

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        height, width = (int(side) for side in inputs["reshaped_input_sizes"][0])
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        # The prompt encoder halves its mask twice to get to the grid of the image's embedding.
        return low_res_logits(prior, 4 * self.model.prompt_encoder.image_embedding_size[0])

    def _masks(
        self, logits: Float[Tensor, "1 1 3 rows columns"], embedding: TransformersSamEmbedding
    ) -> Bool[Tensor, "3 height width"]:
        return self.processor.post_process_masks(logits, [embedding.original_size], [embedding.input_size])[0][0]


def build_sam2(options: SegmenterOptions) -> Sam2Segmenter:
    """Build SAM 2 from the folder that the options or the environment name, or the published model.

    Raises:
        SA3DError: The package or the weights are not there, or are no SAM 2.
    """
    model, processor = load_pretrained(SAM_2, _named(options), options.sam_download)
    return Sam2Segmenter(model.to(options.device), processor, options.sam_dense_prompts)


def build_sam_hq(options: SegmenterOptions) -> SamHQSegmenter:
    """Build SAM-HQ from the folder that the options or the environment name, or the published model.

    Raises:
        SA3DError: The package or the weights are not there, or are no SAM-HQ.
    """
    model, processor = load_pretrained(SAM_HQ, _named(options), options.sam_download)
    return SamHQSegmenter(model.to(options.device), processor, options.sam_dense_prompts)


def _of_one(levels: Tensor | list[Tensor], number: int) -> Tensor | list[Tensor]:
    """One image's part of a batch; copies, so that no embedding holds the others' memory."""
    if isinstance(levels, Tensor):
        return levels[number : number + 1].clone()
    return [level[number : number + 1].clone() for level in levels]


def _named(options: SegmenterOptions) -> Path | None:
    """The model that the user names. A file in the environment is one for the first SAM."""
    if options.sam_checkpoint is not None:
        return options.sam_checkpoint
    folder = os.environ.get(CHECKPOINT_VARIABLE)
    return Path(folder) if folder and Path(folder).expanduser().is_dir() else None
