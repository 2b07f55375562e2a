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
from .proposals import ProposalSegmenter, propose
from .registry import make_segmenter, segmenter_names
from .sam import SamSegmenter
from .text import TextOptions, find_boxes

__all__ = [
    "BatchSegmenter",
    "Candidates",
    "OracleSegmenter",
    "ProposalSegmenter",
    "SamSegmenter",
    "Segmenter",
    "SegmenterImage",
    "SegmenterOptions",
    "StorableSegmenter",
    "TextOptions",
    "check_prompt",
    "find_boxes",
    "make_segmenter",
    "propose",
    "segmenter_names",
]
