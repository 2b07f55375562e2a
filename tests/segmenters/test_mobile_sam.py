"""MobileSAM through its real package and at its real size, with random weights: it has no smaller one."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import to_bytes
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.sam import MAX_LOGIT, SamEmbedding, SamSegmenter, low_res_logits
from sa3d_nerfstudio.segmenters.weights import CHECKPOINT_VARIABLE, NO_DOWNLOAD_VARIABLE
from tests.segmenters.prompts import PROMPTS
from tests.segmenters.test_weights import Harmful
from tests.tiny_sam import save_mobile_sam, save_tiny_sam

mobile_sam = pytest.importorskip("mobile_sam", reason="mobile-sam needs the extra [mobile-sam]")
SCALE = 12.8
"""The shared prompts are for images of 60 x 80 pixels; at 768 x 1024, SAM moves no coordinate."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without weights of the machine, and without downloads."""
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    monkeypatch.setenv(NO_DOWNLOAD_VARIABLE, "1")
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mobile_sam(tmp_path_factory.mktemp("mobile_sam") / "mobile_sam.pt")


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> SamSegmenter:
    made = make_segmenter("mobile-sam", SegmenterOptions(sam_checkpoint=checkpoint))
    assert isinstance(made, SamSegmenter)
    return made


@pytest.fixture(scope="module")
def image() -> SegmenterImage:
    return SegmenterImage(torch.rand(768, 1024, 3, generator=torch.Generator().manual_seed(0)), "0.jpg")


@pytest.fixture(scope="module")
def embedding(segmenter: SamSegmenter, image: SegmenterImage) -> SamEmbedding:
    return segmenter.embed(image)


@pytest.fixture(scope="module")
def predictor(checkpoint: Path, image: SegmenterImage, embedding: SamEmbedding):
    """The package's own predictor, with the weights as the package reads them."""
    predictor = mobile_sam.SamPredictor(mobile_sam.sam_model_registry["vit_t"](checkpoint=checkpoint).eval())
    predictor.set_image(to_bytes(image.rgb))
    return predictor


def sentence(path: Path | None, name: str = "mobile-sam") -> str:
    with pytest.raises(SA3DError) as caught:
        make_segmenter(name, SegmenterOptions(sam_checkpoint=path))
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_embeds_as_the_package_does(predictor, embedding: SamEmbedding) -> None:
    assert torch.equal(embedding.features, predictor.features.half())
    assert embedding.input_size == predictor.input_size == (768, 1024)


@pytest.mark.parametrize("kind", PROMPTS)
def test_answers_as_the_package_does(segmenter: SamSegmenter, predictor, embedding: SamEmbedding, kind: str) -> None:
    small = PROMPTS[kind]
    points, box = (small.points * SCALE).round(), None if small.box is None else small.box * SCALE
    answer = segmenter.predict(embedding, Prompt(768, 1024, points, small.labels, box))
    predictor.features = embedding.features.float()  # ours are kept in half precision
    # It adds half a pixel to corners as it does to points, which are centres.
    masks, scores, _ = predictor.predict(
        points.numpy() if len(points) else None,
        small.labels.numpy().astype(np.int64) if len(points) else None,
        None if box is None else box.numpy() - 0.5,
    )
    # The fourth is the single mask, where there is little left to choose.
    assert np.array_equal(answer.masks[:3].numpy(), masks)
    assert np.allclose(answer.scores[:3].numpy(), scores, atol=1e-6)
    assert 0 < masks.sum() < masks.size


def test_dense_prompts_at_the_published_size(segmenter: SamSegmenter, predictor, embedding: SamEmbedding) -> None:
    """The published networks take 256 x 256 logits and are asked as their predictor asks them."""
    prior = torch.zeros(768, 1024)
    prior[200:500, 300:700] = 0.9
    dense = SamSegmenter(segmenter.model, dense_prompts=True)
    answer = dense.predict(embedding, Prompt.from_points(768, 1024, [(400, 300)], prior=prior))
    logits = low_res_logits(prior, 256).numpy()
    assert logits[0, 80, 100] == pytest.approx(np.log(9))
    assert logits[0, 192:].max() == -MAX_LOGIT, "below the image is no object"
    predictor.features = embedding.features.float()
    masks, scores, _ = predictor.predict(
        np.array([[400, 300]]), np.array([1]), np.array([300, 200, 700, 500]) - 0.5, mask_input=logits
    )
    assert np.array_equal(answer.masks[:3].numpy(), masks)
    assert np.allclose(answer.scores[:3].numpy(), scores, atol=1e-6)
    plain = segmenter.predict(embedding, Prompt.from_points(768, 1024, [(400, 300)], prior=prior))
    assert not torch.equal(plain.scores, answer.scores)


def test_what_attention_adds_is_of_the_weights(segmenter: SamSegmenter) -> None:
    """The encoder computes it when it is put into evaluation mode, and not when weights are loaded."""
    blocks = [block.attn for layer in segmenter.model.image_encoder.layers[1:] for block in layer.blocks]  # type: ignore[union-attr]
    assert len(blocks) == 10
    for attention in blocks:
        assert attention.ab.abs().sum() > 0
        assert torch.equal(attention.ab, attention.attention_biases[:, attention.attention_bias_idxs])


def test_frozen(segmenter: SamSegmenter) -> None:
    assert not segmenter.model.training
    assert not any(weight.requires_grad for weight in segmenter.model.parameters())


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mobile_sam"]:
        monkeypatch.delitem(sys.modules, name)
    # What it imports, and does not ask for when it is installed.
    monkeypatch.setitem(sys.modules, "timm.models.layers", None)
    text = sentence(None)
    assert "mobile-sam needs the package mobile_sam (" in text
    assert "timm" in text
    assert "pip install 'sa3d-nerfstudio[mobile-sam]'" in text
    assert "--pipeline.segmenter grabcut" in text
    monkeypatch.setitem(sys.modules, "mobile_sam", None)
    assert "pip install 'sa3d-nerfstudio[mobile-sam]'" in sentence(None)


def test_offline() -> None:
    text = sentence(None)
    assert (
        "mobile-sam needs its weights: fetch mobile_sam.pt from https://raw.githubusercontent.com/ChaoningZhang" in text
    )
    assert "--pipeline.sam-checkpoint" in text
    assert "--pipeline.segmenter grabcut" in text


def test_weights_of_another_size(tmp_path: Path, checkpoint: Path) -> None:
    for name, wanted in (("sam-vit-h", "sam-vit-h"), ("sam", "Segment Anything")):
        assert sentence(checkpoint, name) == (
            f"{checkpoint} holds mobile-sam, not {wanted}: choose --pipeline.segmenter mobile-sam."
        )
    tiny = save_tiny_sam(tmp_path / "tiny.pth")
    assert "32 wide and 2 deep, not mobile-sam: choose --pipeline.segmenter sam," in sentence(tiny)


def test_damaged(tmp_path: Path, checkpoint: Path) -> None:
    path = tmp_path / "mobile_sam.pt"
    path.write_bytes(checkpoint.read_bytes()[:-1000])
    assert "is damaged, cut short, or no checkpoint" in sentence(path)
    state = torch.load(checkpoint, weights_only=True)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, path)
    text = sentence(path)
    assert "do not fit together" in text
    assert "iou_token" in text
    assert "fetch mobile_sam.pt from" in text


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "mobile_sam.pt"
    torch.save({"image_encoder.norm_head.weight": Harmful(tmp_path / "ran")}, path)
    assert "no checkpoint of weights" in sentence(path)
    assert not (tmp_path / "ran").exists()
