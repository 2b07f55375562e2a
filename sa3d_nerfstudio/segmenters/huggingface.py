"""SAM 2, SAM 3 and SAM-HQ by the transformers package."""

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
from sa3d_nerfstudio.segmenters.precision import encoded, encoder_dtype, halved
from sa3d_nerfstudio.segmenters.pretrained import PretrainedKind, load_pretrained
from sa3d_nerfstudio.segmenters.sam import MAX_LOGIT, box_of_prior, fingerprint_of, low_res_logits
from sa3d_nerfstudio.segmenters.weights import CHECKPOINT_VARIABLE

SAM_2 = PretrainedKind(
    name="SAM 2",
    model_class="Sam2Model",
    processor_class="Sam2Processor",
    # Published models are those for videos, of which images need a part.
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
    # Points, boxes and masks go to its tracker; words to its detector, of which segmenters/text.py knows.
    model_class="Sam3TrackerModel",
    processor_class="Sam3TrackerProcessor",
    # The published model is the one for videos, which holds both.
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

    NAME = "SAM 2"
    """For messages."""

    def __init__(self, model: Any, processor: Any, dense_prompts: bool = False) -> None:
        self.model, self.processor, self.dense_prompts = model, processor, dense_prompts
        self.dtype = encoder_dtype(model.device)
        """Precision of the encoder."""
        self.input_side: int = model.prompt_encoder.input_image_size
        """Longer side of the image that the encoder sees."""

    def embed(self, image: SegmenterImage) -> HuggingFaceEmbedding:
        """Run the encoder, in reduced precision on CUDA.

        Raises:
            SA3DError: The weights make NaN or infinity of the image.
        """
        return self.embed_all([image])[0]

    def embed_all(self, images: Sequence[SegmenterImage]) -> list[HuggingFaceEmbedding]:
        """Run the encoder once for several images, of any sizes: it brings all to the same square."""
        inputs = [self.processor.image_processor(to_bytes(image.rgb), return_tensors="pt") for image in images]
        pixels = torch.cat([each["pixel_values"] for each in inputs]).to(self.model.device)
        features = encoded(lambda: self._features(pixels), pixels.device, self.dtype, self.NAME)
        embeddings = []
        for number, (image, each) in enumerate(zip(images, inputs, strict=True)):
            own = {name: _of_one(levels, number) for name, levels in features.items()}
            embeddings.append(HuggingFaceEmbedding(own, (image.height, image.width), self._input_size(each)))
        return embeddings

    def predict(self, embedding: HuggingFaceEmbedding, prompt: Prompt) -> Candidates:
        """Three masks with the network's own estimates of their IoU.

        For several points or a box, which leave little open, the network's single mask beside them.

        Raises:
            SA3DError: The prompt selects nothing or lies outside of the image.
        """
        check_prompt(prompt, *embedding.original_size)
        (height, width), (input_height, input_width) = embedding.original_size, embedding.input_size
        scale = torch.tensor([input_width / width, input_height / height])
        prior = prompt.prior if self.dense_prompts else None
        box = box_of_prior(prior) if prompt.box is None and prior is not None else prompt.box
        inputs: dict[str, Tensor] = {}
        # Pixels of the encoder's image count from the centre of the first: the network adds half of one.
        if len(prompt.points):
            inputs["input_points"] = ((prompt.points + 0.5) * scale - 0.5)[None, None]
            inputs["input_labels"] = prompt.labels.long()[None, None]
        if box is not None:
            inputs["input_boxes"] = (box * scale.repeat(2) - 0.5)[None, None]
        if prior is not None:
            inputs["input_masks"] = self._mask_input(prior)[None]
        inputs = {name: value.to(self.model.device) for name, value in inputs.items()}
        kept = {name: _each(levels, Tensor.float) for name, levels in embedding.features.items()}
        several = len(prompt.points) > 1 or box is not None
        logits, scores = [], []
        for multimask in self._answers(several):
            with torch.no_grad():
                outputs = self.model(**kept, **inputs, multimask_output=multimask)
            logits.append(self._logits(outputs.pred_masks.float(), embedding))
            scores.append(outputs.iou_scores[0, 0].float())
        values = torch.cat(logits)
        return Candidates(values > 0, torch.cat(scores), values, single=len(values) - 1 if len(logits) > 1 else None)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Stands for the weights, and the precision of the encoder."""
        return fingerprint_of(self.model, self.dtype)

    def to_tensors(self, embedding: HuggingFaceEmbedding) -> dict[str, Tensor]:
        """What of an embedding goes to disk."""
        tensors = {"sizes": torch.tensor([*embedding.original_size, *embedding.input_size])}
        for name, value in embedding.features.items():
            levels = {name: value} if isinstance(value, Tensor) else {f"{name}.{i}": v for i, v in enumerate(value)}
            tensors |= levels
        return tensors

    def from_tensors(self, tensors: dict[str, Tensor]) -> HuggingFaceEmbedding:
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
        return HuggingFaceEmbedding(features, (height, width), (input_height, input_width))

    def _answers(self, several: bool) -> tuple[bool, ...]:
        """What to ask for: three masks, and the single one beside them where the prompt leaves little open."""
        return (True, False) if several else (True,)

    def _features(self, pixels: Float[Tensor, "num 3 rows columns"]) -> dict[str, Any]:
        return {"image_embeddings": list(self.model.get_image_embeddings(pixels))}

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        # Images are stretched to a square.
        height, width = inputs["pixel_values"].shape[-2:]
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        """The prior as logits on the encoder's square."""
        logits = torch.logit(prior.float(), eps=1e-6).clamp(-MAX_LOGIT, MAX_LOGIT).nan_to_num(0.0)
        size = self.model.prompt_encoder.mask_input_size
        return torch.nn.functional.interpolate(logits[None, None], size, mode="bilinear", antialias=True)[0]

    def _logits(
        self, logits: Float[Tensor, "1 1 num rows columns"], embedding: HuggingFaceEmbedding
    ) -> Float[Tensor, "num height width"]:
        return self.processor.post_process_masks(logits, [embedding.original_size], binarize=False)[0][0]


class Sam3Segmenter(Sam2Segmenter):
    """Segments with the tracker of SAM 3, whose prompts and images are those of SAM 2."""

    NAME = "SAM 3"


class SamHQSegmenter(Sam2Segmenter):
    """Segments with SAM-HQ, whose image is padded to a square as in SAM.

    It is asked for one mask, as by its authors: what it adds in quality is the same for all three, which then differ
    little more than in their scores.
    """

    NAME = "SAM-HQ"

    def _features(self, pixels: Float[Tensor, "1 3 rows columns"]) -> dict[str, Any]:
        final, early = self.model.get_image_embeddings(pixels)
        # The decoder looks at the first of the early layers only; all would be four times as much to keep.
        return {"image_embeddings": final, "intermediate_embeddings": [early[0]]}

    def _answers(self, several: bool) -> tuple[bool, ...]:
        return (False,)

    def _input_size(self, inputs: Any) -> tuple[int, int]:
        height, width = (int(side) for side in inputs["reshaped_input_sizes"][0])
        return height, width

    def _mask_input(self, prior: Float[Tensor, "height width"]) -> Float[Tensor, "1 side side"]:
        # The prompt encoder halves its mask twice to get to the grid of the image's embedding.
        return low_res_logits(prior, 4 * self.model.prompt_encoder.image_embedding_size[0])

    def _logits(
        self, logits: Float[Tensor, "1 1 num rows columns"], embedding: HuggingFaceEmbedding
    ) -> Float[Tensor, "num height width"]:
        sizes = [embedding.original_size], [embedding.input_size]
        return self.processor.post_process_masks(logits, *sizes, binarize=False)[0][0]


def build_sam2(options: SegmenterOptions) -> Sam2Segmenter:
    """Build SAM 2 from the folder that the options or the environment name, or the published model.

    Raises:
        SA3DError: The package or the weights are not there, or are no SAM 2.
    """
    return _build(Sam2Segmenter, SAM_2, options)


def build_sam3(options: SegmenterOptions) -> Sam3Segmenter:
    """Build SAM 3; as :func:`build_sam2`."""
    return _build(Sam3Segmenter, SAM_3, options)


def build_sam_hq(options: SegmenterOptions) -> SamHQSegmenter:
    """Build SAM-HQ; as :func:`build_sam2`."""
    return _build(SamHQSegmenter, SAM_HQ, options)


def _build(segmenter: type[AnySam], kind: PretrainedKind, options: SegmenterOptions) -> AnySam:
    model, processor = load_pretrained(kind, _named(options), options.sam_download)
    return segmenter(model.to(options.device), processor, options.sam_dense_prompts)


def _of_one(levels: Tensor | list[Tensor], number: int) -> Tensor | list[Tensor]:
    """One image's part of a batch, in half precision; copies, so that no embedding holds the others' memory."""
    return _each(levels, lambda level: halved(level[number : number + 1].clone()))


def _each(levels: Tensor | list[Tensor], change: Callable[[Tensor], Tensor]) -> Tensor | list[Tensor]:
    """A tensor, or each of several, changed."""
    return change(levels) if isinstance(levels, Tensor) else [change(level) for level in levels]


def _named(options: SegmenterOptions) -> Path | None:
    """The model that the user names. A file in the environment is one for the first SAM."""
    if options.sam_checkpoint is not None:
        return options.sam_checkpoint
    folder = os.environ.get(CHECKPOINT_VARIABLE)
    return Path(folder) if folder and Path(folder).expanduser().is_dir() else None
