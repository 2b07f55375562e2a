"""Segmenters by name, with those that another installed package brings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.grabcut import GrabCutSegmenter
from sa3d_nerfstudio.segmenters.registry import ENTRY_POINT_GROUP, make_segmenter, segmenter_names

PLUGIN = """
import torch
from sa3d_nerfstudio.segmenters.base import Candidates

class Everything:
    def __init__(self, options): self.options = options
    def embed(self, image): return image.rgb
    def predict(self, embedding, prompt): return Candidates(torch.ones(1, *embedding.shape[:2]).bool(), torch.ones(1))
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package as pip leaves it: a module, and a dist-info folder with entry points."""
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    info = tmp_path / "plugin_of_a_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\neverything = plugin_of_a_test:Everything\n"
        "broken = module_that_is_not_there:build\ngrabcut = plugin_of_a_test:Everything\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)


def test_built_in_names() -> None:
    names = ["sam-vit-h", "sam-vit-l", "sam-vit-b", "sam", "sam2", "sam-hq", "grabcut", "oracle"]
    assert segmenter_names()[: len(names)] == names


def test_unknown_name_names_the_nearest_and_the_list() -> None:
    with pytest.raises(SA3DError) as caught:
        make_segmenter("sam-vit-x")
    sentence = str(caught.value)
    assert "'sam-vit-x'" in sentence
    assert "did you mean sam-vit-" in sentence
    for name in segmenter_names():
        assert name in sentence


def test_nothing_near_still_lists_all() -> None:
    with pytest.raises(SA3DError) as caught:
        make_segmenter("zzzz")
    assert "did you mean" not in str(caught.value)
    assert "grabcut" in str(caught.value)


def test_options_have_defaults() -> None:
    assert isinstance(make_segmenter("grabcut"), GrabCutSegmenter)


@pytest.mark.usefixtures("plugin")
def test_segmenter_of_another_package() -> None:
    assert "everything" in segmenter_names()
    options = SegmenterOptions(device="cpu")
    segmenter = make_segmenter("everything", options)
    embedding = segmenter.embed(SegmenterImage(torch.zeros(4, 6, 3), "a.png"))
    answer = segmenter.predict(embedding, Prompt.from_points(4, 6, [(1, 1)]))
    assert answer.best().all()
    assert answer.best().shape == (4, 6)
    assert segmenter.options is options  # type: ignore[attr-defined]


@pytest.mark.usefixtures("plugin")
def test_another_package_cannot_take_a_built_in_name() -> None:
    assert isinstance(make_segmenter("grabcut"), GrabCutSegmenter)
    assert segmenter_names().count("grabcut") == 1


@pytest.mark.usefixtures("plugin")
def test_plugin_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(SA3DError, match=r"'broken' cannot be imported from module_that_is_not_there:build"):
        make_segmenter("broken")
