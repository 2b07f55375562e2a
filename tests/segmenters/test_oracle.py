"""The oracle answers the instance that a prompt points at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.oracle import OracleSegmenter
from sa3d_nerfstudio.segmenters.registry import make_segmenter

IDS = np.zeros((12, 16), np.uint8)
IDS[2:6, 2:6] = 3
IDS[2:6, 6:14] = 7
IDS[8:11, 4:9] = 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.fromarray(IDS).save(tmp_path / "view_1.png")
    return tmp_path


def ask(folder: Path, height: int = 12, width: int = 16, **prompt: object) -> torch.Tensor:
    segmenter = make_segmenter("oracle", SegmenterOptions(oracle_instances=folder))
    embedding = segmenter.embed(SegmenterImage(torch.zeros(height, width, 3), "images/view_1.jpg"))
    answer = segmenter.predict(embedding, Prompt.from_points(height, width, **prompt))  # type: ignore[arg-type]
    assert answer.masks.shape == (1, height, width)
    assert answer.masks.dtype == torch.bool
    assert answer.scores.tolist() == [1.0]
    return answer.best()


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ({"positive": [(3, 3)]}, 3),
        ({"positive": [(3, 3), (8, 3), (9, 3)]}, 7),  # most votes
        ({"positive": [(8, 3), (3, 3)]}, 7),  # a tie: the earlier point
        ({"positive": [(0, 0), (8, 3)]}, 7),  # a tie with the background
        ({"positive": [(8, 3), (9, 3), (3, 3)], "negative": [(13, 5)]}, 3),  # a veto outweighs votes
        ({"positive": [(5, 9)], "box": [2, 2, 6, 6]}, 200),  # points before the box
        ({"box": [2, 2, 6, 6]}, 3),
        ({"box": [1, 1, 13, 7]}, 7),
        ({"box": [2, 2, 10, 6], "negative": [(2, 2)]}, 7),
    ],
)
def test_instance(folder: Path, prompt: dict, expected: int) -> None:
    assert np.array_equal(ask(folder, **prompt).numpy(), expected == IDS)


@pytest.mark.parametrize(
    "prompt",
    [
        {"positive": [(0, 0)]},
        {"positive": [(0, 0), (1, 0), (3, 3)]},
        {"positive": [(3, 3)], "negative": [(4, 4)]},
        {"box": [14, 9, 16, 12]},
    ],
)
def test_background_is_no_answer(folder: Path, prompt: dict) -> None:
    assert not ask(folder, **prompt).any()


def test_other_sizes(folder: Path) -> None:
    doubled = ask(folder, 24, 32, positive=[(7, 7)])
    assert np.array_equal(doubled.numpy(), np.kron(IDS == 3, np.ones((2, 2), bool)))
    halved = ask(folder, 6, 8, positive=[(1, 1)])
    assert np.array_equal(halved.numpy(), (IDS == 3)[1::2, 1::2])


def test_sixteen_bit_and_palette_maps(tmp_path: Path) -> None:
    Image.fromarray(IDS.astype(np.uint16) * 300).save(tmp_path / "view_1.png")
    assert np.array_equal(ask(tmp_path, positive=[(5, 9)]).numpy(), IDS == 200)
    palette = Image.fromarray(IDS).convert("P")
    palette.putdata(IDS.flatten().tolist())
    palette.save(tmp_path / "view_1.png")
    assert np.array_equal(ask(tmp_path, positive=[(5, 9)]).numpy(), IDS == 200)


def test_no_folder_given() -> None:
    with pytest.raises(SA3DError, match=r"--pipeline\.oracle-instances"):
        make_segmenter("oracle")


def test_folder_is_absent(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match="nowhere is not a folder of instance maps"):
        make_segmenter("oracle", SegmenterOptions(oracle_instances=tmp_path / "nowhere"))


def test_no_map_for_the_image(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match=r"no instance map .*view_1\.png"):
        ask(tmp_path, positive=[(1, 1)])


def test_map_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "view_1.png").write_bytes(b"no image")
    with pytest.raises(SA3DError, match=r"view_1\.png cannot be read"):
        ask(tmp_path, positive=[(1, 1)])


def test_map_of_colours(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "view_1.png")
    with pytest.raises(SA3DError, match="several channels"):
        ask(tmp_path, positive=[(1, 1)])


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ({}, "selects nothing"),
        ({"negative": [(3, 3)]}, "selects nothing"),
        ({"positive": [(16, 3)]}, r"\(16, 3\) lies outside of the image of 16 x 12"),
        ({"positive": [(3, -1)]}, "outside of the image"),
        ({"positive": [(float("nan"), 1)]}, "outside of the image"),
        ({"box": [6, 2, 2, 6]}, "x0 < x1"),
        ({"box": [20, 2, 22, 6]}, "holds no pixel"),
        ({"box": [2, 2, float("nan"), 6]}, "holds no pixel"),
    ],
)
def test_prompts_that_cannot_be_answered(folder: Path, prompt: dict, sentence: str) -> None:
    with pytest.raises(SA3DError, match=sentence):
        ask(folder, **prompt)


def test_prompt_for_another_size(folder: Path) -> None:
    segmenter = make_segmenter("oracle", SegmenterOptions(oracle_instances=folder))
    embedding = segmenter.embed(SegmenterImage(torch.zeros(12, 16, 3), "view_1.jpg"))
    with pytest.raises(ValueError, match="for an image of 32 x 24"):
        segmenter.predict(embedding, Prompt.from_points(24, 32, [(1, 1)]))


def test_a_window_shows_its_part_of_the_instances(tmp_path: Path):
    ids = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
    Image.fromarray(ids).save(tmp_path / "a.png")
    oracle = OracleSegmenter(tmp_path)
    window = SegmenterImage(torch.zeros(24, 16, 3), "a.png", window=(0.25, 0.5, 0.75, 0.75))
    assert np.array_equal(oracle.embed(window), ids[12:36, 32:48])
