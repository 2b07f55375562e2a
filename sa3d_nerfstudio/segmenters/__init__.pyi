from .base import (
    BatchSegmenter,
    Candidates,
    Segmenter,
    SegmenterImage,
    SegmenterOptions,
    StorableSegmenter,
    check_prompt,
)
from .oracle import OracleSegmenter
from .registry import make_segmenter, segmenter_names
from .sam import SamSegmenter
from .text import TextOptions, find_boxes

__all__ = [
    "BatchSegmenter",
    "Candidates",
    "OracleSegmenter",
    "SamSegmenter",
    "Segmenter",
    "SegmenterImage",
    "SegmenterOptions",
    "StorableSegmenter",
    "TextOptions",
    "check_prompt",
    "find_boxes",
    "make_segmenter",
    "segmenter_names",
]
