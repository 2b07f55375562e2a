"""A view that the user has prompted."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates


@dataclass
class Given:
    """A view that the user has prompted, with the mask that came of it."""

    prompt: Prompt
    candidates: Candidates
    choice: int
    correcting: bool = False
    """Whether the user has corrected what the other views say, and not just pointed at the object."""

    @property
    def mask(self) -> Bool[Tensor, "height width"]:
        return self.candidates.masks[self.choice]

    @property
    def picked(self) -> bool:
        """Whether the user has taken another candidate than the segmenter's favourite."""
        return self.choice != int(self.candidates.scores.argmax())
