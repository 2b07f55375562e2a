"""Detection of what words name in an image: boxes by Grounding DINO, or masks by SAM 3.

S. Liu et al., "Grounding DINO: Marrying DINO with Grounded Pre-Training for Open-Set Object Detection", ECCV 2024;
N. Carion et al., "SAM 3: Segment Anything with Concepts", 2025. Networks and processing are those of the transformers
package.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torchvision.ops import nms

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.pretrained import PretrainedKind, load_pretrained, transformers_available

GROUNDING_DINO = PretrainedKind(
    name="Grounding DINO",
    model_class="GroundingDinoForObjectDetection",
    processor_class="GroundingDinoProcessor",
    model_types=("grounding-dino",),
    # The thresholds are published for this model.
    published="IDEA-Research/grounding-dino-tiny",
    extra="text",
    option="--pipeline.text-model",
    otherwise="prompt with --pipeline.prompt.points or a box, which take no words",
)
SAM_3_CONCEPTS = PretrainedKind(
    name="SAM 3",
    model_class="Sam3Model",
    processor_class="Sam3Processor",
    # The published model is for videos and contains this one.
    model_types=("sam3", "sam3_video"),
    published="facebook/sam3",
    extra="sam3",
    option="--pipeline.text-model",
    otherwise=f"choose --pipeline.text-model {GROUNDING_DINO.published}, whose weights anybody may fetch",
    since=(5, 0),
    licence="SAM License",
)
SAME_BOX = 0.8
"""IoU above which two boxes are of one object, as in the code of Grounded SAM."""
SHOWN = 6
"""Largest number of boxes listed in a message."""


@dataclass(frozen=True)
class TextOptions:
    """Options of the text detector; the thresholds are those published with it."""

    model: str = GROUNDING_DINO.published
    """Folder of a Grounding DINO or SAM 3 model as the transformers package saves it, or its name on the Hugging Face
    hub."""
    box_threshold: float = 0.35
    """Score above which a box matches the words."""
    text_threshold: float = 0.25
    """Score above which a word is part of a box's label."""
    mask_threshold: float = 0.5
    """Score above which an instance of SAM 3 matches the words."""
    device: str = "cpu"
    """Device of the network."""
    download: bool = True
    """Whether published weights may be downloaded."""


@dataclass(frozen=True)
class TextMatch:
    """Region of an image that matches the words."""

    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the image from its top left, upper bounds exclusive."""
    score: float
    """Quality of the match, from 0 to 1."""
    label: str
    """Words that it matches."""
    mask: Bool[Tensor, "height width"] | None = field(default=None, compare=False)
    """Mask of the object, if the network predicts masks."""


def text_available() -> bool:
    """Whether the package that text prompts need is installed; the weights may still be missing."""
    return transformers_available()


def gives_masks(options: TextOptions) -> bool:
    """Whether the model detects masks, not boxes."""
    folder = Path(options.model).expanduser()
    if not folder.is_dir():
        return "sam3" in options.model.lower()
    try:
        return json.loads((folder / "config.json").read_text("utf8")).get("model_type") in SAM_3_CONCEPTS.model_types
    except (OSError, ValueError, AttributeError):
        # Loading the model reports the error.
        return False


def find_boxes(image: SegmenterImage, text: str, options: TextOptions | None = None) -> list[TextMatch]:
    """Detect the objects that the words name.

    The first call loads the model, which stays in memory.

    Args:
        image: The image.
        text: The words, such as "a mug"; full stops separate several objects.
        options: Model and thresholds.

    Returns:
        Boxes from the best match to the worst; empty if nothing matches.

    Raises:
        SA3DError: The text is empty, or the model cannot be loaded; the message holds the remedy.
    """
    options = options or TextOptions()
    words = " ".join(text.lower().split()).rstrip(".")
    if not any(character.isalnum() for character in words):
        raise SA3DError('the text prompt holds no words: name the object, as in "a mug".')
    kind = SAM_3_CONCEPTS if gives_masks(options) else GROUNDING_DINO
    model, processor = _load(kind, options.model, options.device, options.download)
    if kind is SAM_3_CONCEPTS:
        return _instances(image, words, model, processor, options)
    # The model was trained on phrases that end in full stops.
    inputs = processor(images=to_bytes(image.rgb), text=f"{words}.", return_tensors="pt").to(options.device)
    with torch.no_grad():
        outputs = model(**inputs)
    detections = processor.post_process_grounded_object_detection(
        outputs,
        inputs["input_ids"],
        threshold=options.box_threshold,
        text_threshold=options.text_threshold,
        target_sizes=[(image.height, image.width)],
    )[0]
    size = torch.tensor([image.width, image.height, image.width, image.height], dtype=torch.float32)
    boxes, scores = detections["boxes"].float().cpu().clamp(min=0).minimum(size), detections["scores"].float().cpu()
    # By descending score, without boxes outside of the image.
    indices = [
        index for index in nms(boxes, scores, SAME_BOX).tolist() if bool((boxes[index, 2:] > boxes[index, :2]).all())
    ]
    labels = [_label(label, processor.tokenizer.all_special_tokens) or words for label in detections["text_labels"]]
    return [TextMatch(tuple(boxes[index].tolist()), float(scores[index]), labels[index]) for index in indices]


def _instances(image: SegmenterImage, words: str, model: Any, processor: Any, options: TextOptions) -> list[TextMatch]:
    """Instances that SAM 3 detects, from the best match to the worst."""
    inputs = processor(images=to_bytes(image.rgb), text=words, return_tensors="pt").to(options.device)
    with torch.no_grad():
        outputs = model(**{name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")})
    instances = processor.post_process_instance_segmentation(
        outputs, threshold=options.mask_threshold, target_sizes=[(image.height, image.width)]
    )[0]
    matches = []
    for index in instances["scores"].argsort(descending=True).tolist():
        mask = instances["masks"][index].bool().cpu()
        y, x = mask.nonzero(as_tuple=True)
        if len(x):
            box = (float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1))
            matches.append(TextMatch(box, float(instances["scores"][index]), words, mask))
    return matches


def choose_box(boxes: Sequence[TextMatch], text: str, view: str, index: int | None = None) -> TextMatch:
    """Choose the box of an index, or the best.

    Args:
        boxes: Result of :func:`find_boxes`.
        text: The words.
        view: Name of the view, for messages.
        index: Index of the box, from 0; None for the best.

    Raises:
        SA3DError: There are no boxes, or none of that index.
    """
    if not boxes:
        raise SA3DError(
            f'nothing in {view} looks like "{text}": try other words or another view, or point at it with '
            "--pipeline.prompt.points."
        )
    if 0 <= (index or 0) < len(boxes):
        return boxes[index or 0]
    raise SA3DError(
        f"{describe_boxes(boxes, text, view)}: there is no box {index}, choose one with --pipeline.prompt.box-index."
    )


def describe_boxes(boxes: Sequence[TextMatch], text: str, view: str) -> str:
    """Describe the boxes in a view that match the words, as the beginning of a sentence."""
    listed = "; ".join(
        f"{number}: {match.label} {match.score:.2f} at {' '.join(f'{value:.0f}' for value in match.box)}"
        for number, match in enumerate(boxes[:SHOWN])
    )
    more = f"; and {len(boxes) - SHOWN} more" if len(boxes) > SHOWN else ""
    count = "one place" if len(boxes) == 1 else f"{len(boxes)} places"
    return f'{count} in {view} look{"s" * (len(boxes) == 1)} like "{text}" ({listed}{more})'


def _label(decoded: str, special: Sequence[str]) -> str:
    """Words of a decoded label, without the tokenizer's special tokens and full stops."""
    for token in special:
        decoded = decoded.replace(token, "")
    return " ".join(decoded.replace(".", " ").split())


@functools.lru_cache(maxsize=1)
def _load(kind: PretrainedKind, name: str, device: str, download: bool) -> tuple[Any, Any]:
    model, processor = load_pretrained(kind, name, download)
    return model.to(device), processor
