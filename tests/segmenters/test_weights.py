"""SAM's weights: found, read as data only, and refused in one sentence when they are not what they should be."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmenters.base import SegmenterOptions
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.weights import (
    CHECKPOINT_VARIABLE,
    NO_DOWNLOAD_VARIABLE,
    build_sam_from_state,
    encoder_size,
    find_checkpoint,
    load_sam,
)
from tests.tiny_sam import save_tiny_sam, tiny_sam


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    monkeypatch.setenv(NO_DOWNLOAD_VARIABLE, "1")


def sentence(name: str, path: Path | None) -> str:
    """What the user reads; one sentence on one line."""
    with pytest.raises(SA3DError) as caught:
        make_segmenter(name, SegmenterOptions(sam_checkpoint=path))
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sam-vit-h", "sam_vit_h_4b8939.pth"),
        ("sam-vit-l", "sam_vit_l_0b3195.pth"),
        ("sam-vit-b", "sam_vit_b_01ec64.pth"),
        ("sam", "sam_vit_h_4b8939.pth"),
    ],
)
def test_no_checkpoint_named(name: str, file: str) -> None:
    text = sentence(name, None)
    assert "--pipeline.sam-checkpoint" in text
    assert f"https://dl.fbaipublicfiles.com/segment_anything/{file}" in text
    assert "--pipeline.segmenter grabcut" in text


def test_environment_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_tiny_sam(tmp_path / "tiny.pth")
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(path))
    assert find_checkpoint(None) == path
    make_segmenter("sam")
    other = save_tiny_sam(tmp_path / "other.pth")
    assert find_checkpoint(other) == other, "the option goes first"
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(tmp_path / "gone.pth"))
    assert CHECKPOINT_VARIABLE in sentence("sam", None)


def test_file_is_absent(tmp_path: Path) -> None:
    text = sentence("sam-vit-b", tmp_path / "gone.pth")
    assert f"there is no file {tmp_path / 'gone.pth'} (--pipeline.sam-checkpoint)" in text
    assert "sam_vit_b_01ec64.pth" in text


def test_file_is_a_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} (--pipeline.sam-checkpoint) is a folder" in sentence("sam", tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.3, 0.9, 0.99, 0.9999])
def test_truncated(tmp_path: Path, kept: float) -> None:
    whole = save_tiny_sam(tmp_path / "whole.pth").read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(whole[: int(len(whole) * kept)])
    assert f"{path} ({path.stat().st_size} bytes) is damaged, cut short, or no checkpoint" in sentence("sam", path)


@pytest.mark.parametrize("content", [b"<html>404 not found</html>", b"\x80\x02garbage", b"PK\x03\x04", bytes(4096)])
def test_no_checkpoint_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    assert "is damaged, cut short, or no checkpoint" in sentence("sam", path)


class Harmful:
    """Unpickled without care, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_file_is_not_run(tmp_path: Path, save) -> None:
    path = tmp_path / "harmful.pth"
    save({"image_encoder.pos_embed": Harmful(tmp_path / "ran")}, path)
    assert "no checkpoint of weights" in sentence("sam", path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1, 2], {"step": 3, "pipeline": {}}, torch.zeros(3)])
def test_something_else(tmp_path: Path, value: object) -> None:
    path = tmp_path / "else.pth"
    torch.save(value, path)
    assert "holds no Segment Anything weights but something else" in sentence("sam", path)


def test_weights_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "linear.pth"
    torch.save(torch.nn.Linear(3, 4).state_dict(), path)
    assert "holds no Segment Anything weights: fetch" in sentence("sam", path)


@pytest.mark.parametrize(("held", "wanted"), [("vit-b", "vit-h"), ("vit-h", "vit-l"), ("vit-l", "vit-b")])
def test_another_published_size(tmp_path: Path, held: str, wanted: str) -> None:
    """Only width and depth are looked at before the size is refused, so a file with those is enough."""
    with torch.device("meta"):
        state = sam_model_registry[held.replace("-", "_")]().state_dict()
    grid = state["image_encoder.pos_embed"]
    path = tmp_path / "other.pth"
    torch.save({name: torch.zeros(1) for name in state} | {"image_encoder.pos_embed": torch.zeros(grid.shape)}, path)
    text = sentence(f"sam-{wanted}", path)
    assert f"holds sam-{held}, not sam-{wanted}" in text
    assert f"--pipeline.segmenter sam-{held}" in text


def test_a_size_that_was_never_published(tmp_path: Path) -> None:
    text = sentence("sam-vit-b", save_tiny_sam(tmp_path / "tiny.pth"))
    assert "32 wide and 2 deep, not sam-vit-b" in text
    assert "--pipeline.segmenter sam," in text


@pytest.mark.parametrize("lost", ["mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"])
def test_a_weight_is_missing(tmp_path: Path, lost: str) -> None:
    state = tiny_sam().state_dict()
    del state[lost]
    path = tmp_path / "partial.pth"
    torch.save(state, path)
    text = sentence("sam", path)
    assert "do not fit together" in text
    assert lost in text


def test_a_weight_of_the_wrong_shape(tmp_path: Path) -> None:
    state = tiny_sam().state_dict()
    state["mask_decoder.iou_token.weight"] = torch.zeros(1, 33)
    path = tmp_path / "odd.pth"
    torch.save(state, path)
    assert "do not fit together" in sentence("sam", path)


def test_loaded_as_saved(tmp_path: Path) -> None:
    loaded, original = load_sam(save_tiny_sam(tmp_path / "tiny.pth", seed=3)), tiny_sam(seed=3)
    assert str(loaded) == str(original)
    for name, weight in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    image = torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(loaded.image_encoder(image), original.image_encoder(image))
    buffers = dict(original.named_buffers())
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_half_precision_is_widened(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    torch.save({name: weight.half() for name, weight in tiny_sam().state_dict().items()}, path)
    assert {weight.dtype for weight in load_sam(path).parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["vit_h", "vit_l", "vit_b"])
def test_published_architectures_are_recognised(name: str) -> None:
    """The network built from shapes alone is the one that segment_anything builds by name."""
    with torch.device("meta"):
        original = sam_model_registry[name]()
    state = original.state_dict()
    built = build_sam_from_state(state)
    assert str(built) == str(original)
    for mine, theirs in zip(built.modules(), original.modules(), strict=True):
        for attribute in ("window_size", "num_heads", "scale", "img_size", "mask_input_size", "num_mask_tokens"):
            assert getattr(mine, attribute, None) == getattr(theirs, attribute, None), attribute
    assert not built.pixel_mean.is_meta
    assert encoder_size(state) == (state["image_encoder.pos_embed"].shape[-1], len(original.image_encoder.blocks))
