"""Segmenters by name, with those that another installed package brings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.grabcut.segmenter import GrabCutSegmenter
from sa3d_nerfstudio.segmenters.registry import ENTRY_POINT_GROUP, make_segmenter, segmenter_names

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "segmenters.md"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented example, as pip leaves it: a module, and a dist-info folder with entry points."""
    blocks = dict(re.findall(r"```(toml|python)\n(.*?)```", DOCUMENT.read_text("utf8"), re.DOTALL))
    assert sum(map(bool, blocks["python"].splitlines())) <= 10, "it is to have ten lines"
    group, line = blocks["toml"].splitlines()
    assert group == f'[project.entry-points."{ENTRY_POINT_GROUP}"]'
    name, value = line.replace('"', "").split(" = ")
    module, _, factory = value.partition(":")
    (tmp_path / f"{module}.py").write_text(blocks["python"])
    info = tmp_path / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[{ENTRY_POINT_GROUP}]\n{name} = {value}\n"
        f"broken = module_that_is_not_there:build\ngrabcut = {module}:{factory}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_built_in_names() -> None:
    names = ["sam-vit-h", "sam-vit-l", "sam-vit-b", "sam", "mobile-sam", "sam2", "sam3", "sam-hq", "grabcut", "oracle"]
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
def test_the_documented_example() -> None:
    assert "bright" in segmenter_names()
    segmenter = make_segmenter("bright", SegmenterOptions(device="cpu"))
    rgb = torch.zeros(4, 6, 3)
    rgb[:, :2] = 0.8
    rgb[2:, 4:] = 0.85
    answer = segmenter.predict(segmenter.embed(SegmenterImage(rgb, "a.png")), Prompt.from_points(4, 6, [(1, 1)]))
    assert torch.equal(answer.best(), rgb[..., 0] > 0)


@pytest.mark.usefixtures("plugin")
def test_another_package_cannot_take_a_built_in_name() -> None:
    assert isinstance(make_segmenter("grabcut"), GrabCutSegmenter)
    assert segmenter_names().count("grabcut") == 1


@pytest.mark.usefixtures("plugin")
def test_plugin_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(SA3DError, match=r"'broken' cannot be imported from module_that_is_not_there:build"):
        make_segmenter("broken")
