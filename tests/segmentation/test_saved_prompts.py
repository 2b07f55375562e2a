"""Prompts in checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.saved_prompts import read_prompts, write_session_prompts
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from tests.analytic import BallViews


class Everything:
    """Segmenter to which all of an image is the object."""

    def embed(self, image: SegmenterImage) -> tuple[int, int]:
        return image.height, image.width

    def predict(self, embedding: tuple[int, int], prompt: Prompt) -> Candidates:
        return Candidates(torch.ones(1, *embedding, dtype=torch.bool), torch.ones(1))


def test_a_box_that_reaches_beyond_the_image_is_read_again():
    views = BallViews()
    session = SegmentationSession(views, Everything(), MaskGrid(8), SessionSettings())
    height, width = views.height, views.width
    session.prompt(0, Prompt.from_points(height, width, box=(-3, -1, width / 2, height + 2)))
    names: Any = SimpleNamespace(cameras={}, find_training_view=lambda name: name)
    (prompt,), segmented = read_prompts("ball", write_session_prompts(session), names)
    assert prompt.box == (0, 0, 0.5, 1)
    assert not segmented
