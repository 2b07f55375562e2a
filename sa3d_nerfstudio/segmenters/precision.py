"""Precision of image encoders, and of their stored output."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError

Encoded = TypeVar("Encoded")


def encoder_dtype(device: torch.device | str) -> torch.dtype:
    """The precision in which an image encoder runs on a device.

    bfloat16 where the GPU computes in it: ViT-H overflows in half precision (segment-anything's issue 540), and the
    authors of SAM 2 use it. Half precision on older GPUs, and single precision on a CPU.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    # Emulated bfloat16 is slower than single precision.
    fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float16


def run_encoder(encode: Callable[[], Encoded], device: torch.device, dtype: torch.dtype, what: str) -> Encoded:
    """Run an encoder, and repeat it in single precision if its output is not finite.

    Args:
        encode: Runs the encoder and returns a tensor, or dictionaries or lists of tensors.
        device: Device that it runs on.
        dtype: Precision of the first try.
        what: Name of the network, for messages.

    Raises:
        SA3DError: The output is not finite in single precision either.
    """
    for precision in dict.fromkeys((dtype, torch.float32)):
        with torch.no_grad(), torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32):
            features = encode()
        if is_finite(features):
            return features
    raise SA3DError(
        f"{what} embeds this image as NaN or infinity, so its weights are damaged: fetch them again, or choose another "
        "--pipeline.segmenter."
    )


def is_finite(features: object) -> bool:
    """Whether all numbers in a tensor, or in dictionaries and lists of tensors, are finite."""
    if isinstance(features, Tensor):
        return bool(features.isfinite().all())
    values = features.values() if isinstance(features, dict) else features
    return all(is_finite(value) for value in values)  # type: ignore[union-attr]


def to_half(value: Tensor) -> Tensor:
    """A tensor in half precision; in single precision if it holds numbers too large for that."""
    half = value.half()
    return half if bool(half.isfinite().all()) else value.float()
