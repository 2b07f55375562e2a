"""Proposals: all masks of an image, by whatever a segmenter has for that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.segmenters.base import SegmenterImage
from sa3d_nerfstudio.segmenters.oracle import OracleSegmenter
from sa3d_nerfstudio.segmenters.proposals import ProposalSegmenter, propose, without_duplicates
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from tests.tiny_sam import tiny_sam

HEIGHT, WIDTH = 48, 64


def picture() -> SegmenterImage:
    return SegmenterImage(torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0)), "a.png")


def sure_sam() -> Sam:
    """A random model that takes its masks for good, and draws sharp outlines."""
    model = tiny_sam()
    state = model.mask_decoder.state_dict()
    for name, value in state.items():
        if name.startswith("output_hypernetworks_mlps") and ".layers.2." in name:
            state[name] = 1000 * value
    state["iou_prediction_head.layers.2.bias"] = state["iou_prediction_head.layers.2.bias"] + 2
    model.mask_decoder.load_state_dict(state)
    return model


def test_sam_proposes_what_its_own_generator_does_without_encoding_again(monkeypatch: pytest.MonkeyPatch):
    segmenter = SamSegmenter(sure_sam())
    assert isinstance(segmenter, ProposalSegmenter)
    embedding = segmenter.embed(picture())
    with monkeypatch.context() as patch:
        patch.setattr(segmenter.model.image_encoder, "forward", lambda *_: pytest.fail("the encoder ran again"))
        found = propose(segmenter, embedding, HEIGHT, WIDTH)
    expected = SamAutomaticMaskGenerator(segmenter.model).generate(to_bytes(picture().rgb))
    assert expected
    assert found.masks.shape == (len(expected), HEIGHT, WIDTH)
    assert sorted(found.masks.flatten(1).sum(1).tolist()) == pytest.approx(sorted(i["area"] for i in expected), abs=40)


def test_sam_may_propose_nothing():
    segmenter = SamSegmenter(tiny_sam())
    found = segmenter.propose(segmenter.embed(picture()))
    assert found.masks.shape == (0, HEIGHT, WIDTH)
    assert found.scores.shape == (0,)


def test_the_oracle_proposes_every_instance(tmp_path: Path):
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[:10, :10], ids[20:, 30:] = 3, 7
    Image.fromarray(ids).save(tmp_path / "a.png")
    segmenter = OracleSegmenter(tmp_path)
    found = propose(segmenter, segmenter.embed(picture()), HEIGHT, WIDTH)
    assert [int(mask.sum()) for mask in found.masks] == [100, 28 * 34]
    Image.fromarray(np.zeros_like(ids)).save(tmp_path / "a.png")
    assert len(segmenter.propose(segmenter.embed(picture())).masks) == 0


def test_of_masks_that_are_alike_the_surest_stays():
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[0, :5], masks[1, :6], masks[2, 7:] = True, True, True
    assert without_duplicates(masks, torch.tensor([0.7, 0.9, 0.8, 1.0])) == [1, 2]
