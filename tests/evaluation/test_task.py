"""Annotations as files: what counts as painted, sizes, and one sentence for each fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.task import Target, chosen_scenes, images_in, only, read_stroke, resized
from sa3d_nerfstudio.prompts.images import open_image, white_pixels


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def test_masks_of_255_and_of_1_are_the_same(tmp_path: Path) -> None:
    mask = np.zeros((4, 6), bool)
    mask[1, 2:5] = True
    for factor in (1, 255):
        assert (white_pixels(open_image(save(tmp_path / "mask.png", mask * factor))) == mask).all()
    gray = save(tmp_path / "gray.png", np.array([[0, 127, 128, 255]]))
    assert white_pixels(open_image(gray)).tolist() == [[False, False, True, True]]


def test_strokes_are_what_is_not_black(tmp_path: Path) -> None:
    colors = np.zeros((2, 3, 3))
    colors[0, 1] = (0, 0, 9)
    assert read_stroke(save(tmp_path / "pos.png", colors)).tolist() == [[False, True, False], [False] * 3]
    with pytest.raises(SA3DError, match="all black"):
        read_stroke(save(tmp_path / "neg.png", colors * 0))


def test_resizing_takes_what_lies_under_the_centre() -> None:
    mask = np.array([[True, False], [False, False]])
    assert resized(mask, 4, 4).sum() == 4
    assert resized(mask, 4, 4)[:2, :2].all()
    assert (resized(resized(mask, 6, 6), 2, 2) == mask).all()


def test_a_target_is_brought_to_its_size(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    path = save(tmp_path / "0001.png", mask * 255)
    assert Target("0001", path).mask().shape == (4, 4)
    larger = Target("0001", path, (8, 6)).mask()
    assert larger.shape == (8, 6)
    assert larger[:4].all() and not larger[4:].any()


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "._a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["a.JPG", "b.png"]


def test_each_fault_has_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match=r"no folder .*complete the data set"):
        images_in(tmp_path / "nowhere")
    with pytest.raises(SA3DError, match="no reference image in"):
        only([], "reference image", tmp_path)
    with pytest.raises(SA3DError, match=r"more than one mask \(a, b\)"):
        only([Path("a"), Path("b")], "mask", tmp_path)
    with pytest.raises(SA3DError, match=r"no scene 'dog' .* fern, room"):
        chosen_scenes(["dog"], ("fern", "room"))
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(SA3DError, match="cannot be read as an image"):
        Target("text", tmp_path / "text.png").mask()


def test_scenes_come_in_the_published_order() -> None:
    assert chosen_scenes([], ("fern", "room")) == ["fern", "room"]
    assert chosen_scenes(["room", "fern"], ("fern", "leaves", "room")) == ["fern", "room"]
