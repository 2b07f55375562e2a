"""SAM 2, SAM 3 and SAM-HQ of the transformers package."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions, check_prompt
from sa3d_nerfstudio.segmenters.precision import encoder_dtype, run_encoder, to_half
from sa3d_nerfstudio.segmenters.pretrained import PretrainedKind, load_pretrained
from sa3d_nerfstudio.segmenters.sam import MAX_LOGIT, box_of_prior, fingerprint_of, low_res_logits
from sa3d_nerfstudio.segmenters.weights import CHECKPOINT_VARIABLE

SAM_2 = PretrainedKind(
    name="SAM 2",
    model_class="Sam2Model",
    processor_class="Sam2Processor",
    # Published models are for videos; images need a part of them.
    model_types=("sam2", "sam2_video"),
    published="facebook/sam2.1-hiera-large",
    extra="sam2",
    tied=(("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding"),),
)
SAM_HQ = PretrainedKind(
    name="SAM-HQ",
    model_class="SamHQModel",
    processor_class="SamHQProcessor",
    model_types=("sam_hq",),
    published="syscv-community/sam-hq-vit-huge",
    extra="sam-hq",
)
SAM_3 = PretrainedKind(
    name="SAM 3",
    # Its tracker takes points, boxes and masks; words go to its detector, in segmenters/text.py.
    model_class="Sam3TrackerModel",
    processor_class="Sam3TrackerProcessor",
    # The published model is for videos and contains both.
    model_types=("sam3_tracker", "sam3_video"),
    published="facebook/sam3",
    extra="sam3",
    otherwise="choose --pipeline.segmenter sam2, whose weights anybody may fetch",
    since=(5, 0),
    licence="SAM License",
)


AnySam = TypeVar("AnySam", bound="Sam2Segmenter")


@dataclass
class HuggingFaceEmbedding:
    """Embedding of an image, and the sizes that map prompts to it."""

    features: dict[str, Any]
    """Inputs of the decoder by name: tensors, or lists of tensors."""
    original_size: tuple[int, int]
    """Height and width of the image."""
    input_size: tuple[int, int]
    """Height and width of the encoder's image, without padding."""


class Sam2Segmenter:
    """Segmenter with SAM 2. It is no module, so that no checkpoint of a run holds its weights.

    Args:
        model: The network, on its device.
        processor: Its processor, which prepares images and resizes logits.
        dense_prompts: Whether a prompt's prior serves as mask prompt, with a box around it.
    """

    NAME = "SAM 2"
    """Name in messages."""

    def __init__(self, model: Any, processor: Any, dense_prompts: bool = False) -> None:
        self.model, self.processor, self.dense_prompts = model, processor, dense_prompts
        self.dtype = encoder_dtype(model.device)
        """Precision of the encoder."""
        self.input_side: int = model.prompt_encoder.input_image_size
        """Longer side of the encoder's image, in pixels."""

    def embed(self, image: SegmenterImage) -> HuggingFaceEmbedding:
        """Run the encoder, in reduced precision on CUDA.

        Raises:
            SA3DError: The embedding holds NaN or infinity.
        """
        return self.embed_all([image])[0]

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[HuggingFaceEmbedding]:
        """Run the encoder once for several images of any sizes, all brought to the same square."""
        inputs = [self.processor.image_processor(to_bytes(image.rgb), return_tensors="pt") for image in images]
        pixels = torch.cat([prepared["pixel_values"] for prepared in inputs]).to(self.model.device)
        features = run_encoder(lambda: self._features(pixels), pixels.device, self.dtype, self.NAME)
        embeddings = []
        for index, (image, prepared) in enumerate(zip(images, inputs, strict=True)):
            image_features = {name: _of_one(levels, index) for name, levels in features.items()}
            embeddings.append(
                HuggingFaceEmbedding(image_features, (image.height, image.width), self._input_size(prepared))
            )
        return embeddings

    def predict(self, embedding: HuggingFaceEmbedding, prompt: Prompt) -> Candidates:
        """Predict three masks, with the network's estimates of their IoU.

        For several points or a box, which leave little ambiguity, the network's single mask is added.

        Raises:
            SA3DError: The prompt selects nothing or lies outside of the image.
        """
        check_prompt(prompt, *embedding.original_size)
        (height, width), (input_height, input_width) = embedding.original_size, embedding.input_size
        scale = torch.tensor([input_width / width, input_height / height])
        prior = prompt.prior if self.dense_prompts else None
        box = box_of_prior(prior) if prompt.box is None and prior is not None else prompt.box
        inputs: dict[str, Tensor] = {}
        # Coordinates in the encoder's image are from the first pixel's centre: the network adds half a pixel.
        if len(prompt.points):
            inputs["input_points"] = ((prompt.points + 0.5) * scale - 0.5)[None, None]
            inputs["input_labels"] = prompt.labels.long()[None, None]
        if box is not None:
            inputs["input_boxes"] = (box * scale.repeat(2) - 0.5)[None, None]
        if prior is not None:
            inputs["input_masks"] = self._mask_input(prior)[None]
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        features = {name: _each(levels, Tensor.float) for name, levels in embedding.features.items()}
        several = len(prompt.points) > 1 or box is not None
        logits, scores = [], []
        for multimask in self._answers(several):
            with torch.no_grad():
                outputs = self.model(**features, **inputs, multimask_output=multimask)
            logits.append(self._logits(outputs.pred_masks.float(), embedding))
            scores.append(outputs.iou_scores[0, 0].float())
        values = torch.cat(logits)
        return Candidates(values > 0, torch.cat(scores), values, single=len(values) - 1 if len(logits) > 1 else None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and the encoder's precision."""
        return fingerprint_of(self.model, self.dtype)

    def to_tensors(self, embedding: HuggingFaceEmbedding) -> dict[str, Tensor]:
        """Tensors of an embedding, by name, to save on disk."""
        tensors = {"sizes": torch.tensor([*embedding.original_size, *embedding.input_size])}
        for name, value in embedding.features.items():
            levels = {name: value} if isinstance(value, Tensor) else {f"{name}.{i}": v for i, v in enumerate(value)}
            tensors |= levels
        return tensors

    def from_tensors(self, tensors: dict[str, Tensor]) -> HuggingFaceEmbedding:
        """Rebuild an embedding from its saved tensors."""
        height, width, input_height, input_width = tensors["sizes"].tolist()
        features: dict[str, Any] = {}
        for key in sorted(tensors.keys() - {"sizes"}):
            name, _, level = key.partition(".")
            value = tensors[key].to(self.model.device)
            if level:
                features.setdefault(name, []).append(value)
            else:
                features[name] = value
        return HuggingFaceEmbedding(features, (height, width), (input_height, input_width))

    def _answers(self, several: bool) -> tuple[bool, ...]:
        """Values of ``multimask_output``: for three masks, and for the single one beside them."""
        return (True, False) if several else (True,)

    def _features(self, pixels: Float[Tensor, "num 3 rows columns"]) -> dict[str, Any]:
        return {"image_embeddings": list(self.model.get_image_embeddings(pixels))}

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        # Images are stretched to a square.
        height, width = inputs["pixel_values"].shape[-2:]
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        """Logits of the prior on the square of a mask prompt."""
        logits = torch.logit(prior.float(), eps=1e-6).clamp(-MAX_LOGIT, MAX_LOGIT).nan_to_num(0.0)
        size = self.model.prompt_encoder.mask_input_size
        return torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", antialias=True)[0]

    def _logits(
        self, logits: Float[Tensor, "1 1 num rows columns"], embedding: HuggingFaceEmbedding
    ) -> Float[Tensor, "num height width"]:
        return self.processor.post_process_masks(logits, [embedding.original_size], binarize=False)[0][0]


class Sam3Segmenter(Sam2Segmenter):
    """Segmenter with the tracker of SAM 3, which takes prompts and images in the form of SAM 2."""

    NAME = "SAM 3"


class SamHQSegmenter(Sam2Segmenter):
    """Segmenter with SAM-HQ, which pads images to a square as SAM does.

    It predicts one mask, as its authors do: the refinement is the same for all three, which then differ in little more
    than their scores.
    """

    NAME = "SAM-HQ"

    def _features(self, pixels: Float[Tensor, "1 3 rows columns"]) -> dict[str, Any]:
        final, early = self.model.get_image_embeddings(pixels)
        # The decoder uses only the first of the early layers; all would take four times the memory.
        return {"image_embeddings": final, "intermediate_embeddings": [early[0]]}

    def _answers(self, several: bool) -> tuple[bool, ...]:
        return (False,)

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        height, width = (int(side) for side in inputs["reshaped_input_sizes"][0])
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        # The prompt encoder halves its mask twice, down to the grid of the image's embedding.
        return low_res_logits(prior, 4 * self.model.prompt_encoder.image_embedding_size[0])

    def _logits(
        self, logits: Float[Tensor, "1 1 num rows columns"], embedding: HuggingFaceEmbedding
    ) -> Float[Tensor, "num height width"]:
        sizes = [embedding.original_size], [embedding.input_size]
        return self.processor.post_process_masks(logits, *sizes, binarize=False)[0][0]


def build_sam2(options: SegmenterOptions) -> Sam2Segmenter:
    """Build SAM 2 from the folder that the options or the environment name, or from the published model.

    Raises:
        SA3DError: The package or the weights are missing, or the weights are not those of SAM 2.
    """
    return _build(Sam2Segmenter, SAM_2, options)


def build_sam3(options: SegmenterOptions) -> Sam3Segmenter:
    """Build SAM 3, like :func:`build_sam2`."""
    return _build(Sam3Segmenter, SAM_3, options)


def build_sam_hq(options: SegmenterOptions) -> SamHQSegmenter:
    """Build SAM-HQ, like :func:`build_sam2`."""
    return _build(SamHQSegmenter, SAM_HQ, options)


def _build(segmenter: type[AnySam], kind: PretrainedKind, options: SegmenterOptions) -> AnySam:
    model, processor = load_pretrained(kind, _named(options), options.sam_download)
    return segmenter(model.to(options.device), processor, options.sam_dense_prompts)


def _of_one(levels: Tensor | list[Tensor], number: int) -> Tensor | list[Tensor]:
    """Features of one image of a batch, in half precision; copies, so that no embedding keeps the batch in memory."""
    return _each(levels, lambda level: to_half(level[number : number + 1].clone()))


def _each(levels: Tensor | list[Tensor], change: Callable[[Tensor], Tensor]) -> Tensor | list[Tensor]:
    """Apply a function to a tensor, or to each of several."""
    return change(levels) if isinstance(levels, Tensor) else [change(level) for level in levels]


def _named(options: SegmenterOptions) -> Path | None:
    """Model that the user names, if any. A file in the environment is a checkpoint of the first SAM."""
    if options.sam_checkpoint is not None:
        return options.sam_checkpoint
    folder = os.environ.get(CHECKPOINT_VARIABLE)
    return Path(folder) if folder and Path(folder).expanduser().is_dir() else None
