"""Build generfacto without the diffusion model that taught it: gigabytes of weights, which no render asks for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nerfstudio.models import generfacto
from torch import nn

GUIDANCE = "_diffusion_model."
"""What the names of its tensors begin with in a checkpoint."""

_GUIDES = ("StableDiffusion", "DeepFloyd", "PositionalTextEmbeddings")
_lock = threading.RLock()


class _Absent(nn.Module):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()


@contextmanager
def without_guidance() -> Iterator[None]:
    """Within this context models have nothing in the place of their diffusion model, and cannot be trained."""
    with _lock:
        originals = {name: getattr(generfacto, name) for name in _GUIDES}
        for name in _GUIDES:
            setattr(generfacto, name, _Absent)
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(generfacto, name, original)
