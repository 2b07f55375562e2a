"""MobileSAM: Segment Anything with a small encoder, distilled from the large one.

C. Zhang et al., "Faster Segment Anything: Towards Lightweight SAM for Mobile Applications", arXiv 2306.14289. The
network is that of the package ``mobile_sam``: its authors' repository, or the mirror of it on PyPI.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from segment_anything.modeling import Sam

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.segmenters.base import SegmenterOptions
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.segmenters.weights import find_checkpoint, read_weights, weights_error

SIZE = "vit-t"


def build(options: SegmenterOptions) -> SamSegmenter:
    """Build the segmenter from the checkpoint that the options or the environment name, or the published one.

    Raises:
        SA3DError: The package or the checkpoint is missing, or the checkpoint cannot be read or holds another size.
    """
    # The package first: if it is missing, nothing is downloaded.
    architecture = _architecture()
    model = _filled(architecture, find_checkpoint(options.sam_checkpoint, SIZE, options.sam_download))
    # The encoder overflows below single precision (MobileSAM's issue 10), and is small enough to run in it.
    return SamSegmenter(model.to(options.device), options.sam_dense_prompts, torch.float32)


def _architecture() -> Callable[[], Sam]:
    """Constructor of the network, without weights.

    Raises:
        SA3DError: The package cannot be imported.
    """
    try:
        from mobile_sam import sam_model_registry
    except ImportError as error:
        raise SA3DError(
            f"mobile-sam needs the package mobile_sam ({one_line(error)}): pip install 'sa3d-nerfstudio[mobile-sam]', "
            "or choose --pipeline.segmenter grabcut, which works without."
        ) from error
    # All but the encoder is a copy of segment_anything, so code for that network works with this one.
    return cast(Callable[[], Sam], sam_model_registry["vit_t"])


def _filled(architecture: Callable[[], Sam], path: Path) -> Sam:
    """The network with the weights of a file, read here as data only: the package would unpickle any object."""
    state = read_weights(path, SIZE)
    model = architecture()
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise weights_error(path, SIZE, error) from error
    # After loading: the encoder computes its attention biases from the weights when it enters this mode.
    return model.eval()
