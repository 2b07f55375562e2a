"""Prompts as users write them: options, JSON files, painted images; and every way to get them wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.config import PromptConfig, read_prompts
from sa3d_nerfstudio.prompts.images import draw_polyline, points_of_stroke, read_mask, read_scribble
from sa3d_nerfstudio.prompts.prompt import Prompt


class TwoViews:
    """Two images of 40 x 30 pixels."""

    def find(self, view: str | int) -> int:
        if str(view) not in ("a.png", "b.png"):
            raise SA3DError(f"there is no training view named {view}.")
        return 0 if view == "a.png" else 1

    def image_size(self, view: int) -> tuple[int, int]:
        return 30, 40

    def name(self, view: int) -> str:
        return "ab"[view] + ".png"


def read(**options: Any) -> Prompt:
    (entry,) = read_prompts(PromptConfig(view="a.png", **options), TwoViews(), "thing")
    assert entry.name == "thing"
    assert list(entry.views) == [0]
    return entry.views[0]


def test_options_are_combined(tmp_path: Path):
    canvas = np.zeros((30, 40, 4), np.uint8)
    canvas[10, 5:35], canvas[20, 5:35] = (0, 255, 0, 255), (255, 0, 0, 255)
    Image.fromarray(canvas).save(tmp_path / "s.png")
    prompt = read(points=(1, 2, 3, 4), negative_points=(5, 6), box=(0, 0, 10, 20), scribble=tmp_path / "s.png")
    assert prompt.positive[:2].tolist() == [[1, 2], [3, 4]]
    assert prompt.negative[0].tolist() == [5, 6]
    assert prompt.box is not None and prompt.box.tolist() == [0, 0, 10, 20]
    assert (prompt.positive[2:, 1] == 10).all() and len(prompt.positive) > 2
    assert (prompt.negative[1:, 1] == 20).all() and len(prompt.negative) > 1


def test_a_candidate_is_an_option_and_a_key(tmp_path: Path):
    assert read(points=(1, 2)).candidate == "auto"
    prompt = read(points=(1, 2), candidate="large")
    assert prompt.candidate == "large"
    assert prompt.resized(60, 80).candidate == prompt.moved(60, 80).candidate == "large"
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps([{"name": "x", "view": "a.png", "points": [[1, 2]], "candidate": "small"}]))
    (entry,) = read_prompts(PromptConfig(file=file), TwoViews(), "thing")
    assert entry.views[0].candidate == "small"
    file.write_text(json.dumps([{"name": "x", "view": "a.png", "points": [[1, 2]], "candidate": "whole"}]))
    with pytest.raises(SA3DError, match="one of auto, small, medium, large, and not 'whole'"):
        read_prompts(PromptConfig(file=file), TwoViews(), "thing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "selects nothing"),
        ({"points": (1, 2, 3)}, "pairs x y"),
        ({"points": (40, 2)}, "lies outside a.png, which is 40 x 30"),
        ({"points": (-1, 2)}, "lies outside"),
        ({"points": (float("nan"), 2)}, "finite"),
        ({"negative_points": (1, 2)}, "selects nothing"),
        ({"box": (5, 5, 4, 9)}, "x0 < x1"),
        ({"box": (0, 0, 41, 9)}, "inside of a.png"),
        ({"box": (0, 0, 4)}, "x0 y0 x1 y1"),
        ({"scribble": Path("nowhere.png")}, "no image nowhere.png"),
        ({"mask": Path("nowhere.png")}, "no image nowhere.png"),
        ({"points": (1, 2), "file": Path("x.json")}, "not both"),
    ],
)
def test_each_fault_has_its_sentence(options: dict[str, Any], words: str):
    with pytest.raises(SA3DError) as caught:
        read(**options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mask_of_any_size_is_taken_as_it_is(tmp_path: Path):
    mask = np.zeros((60, 80), np.uint8)
    mask[20:40, 10:30] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    prompt = read(mask=tmp_path / "m.png")
    assert prompt.mask is not None
    assert prompt.mask.shape == (30, 40)
    assert int(prompt.mask.sum()) == 100
    assert prompt.mask[10:20, 5:15].all()
    small = prompt.resized(15, 20).mask
    assert small is not None and small.shape == (15, 20)


@pytest.mark.parametrize("option", ["points", "negative_points", "box", "scribble", "mask"])
def test_what_needs_a_view_is_not_passed_over_without_one(option: str):
    """It counts as a prompt, so that no run ends, and no viewer opens, as if nothing had been asked for."""
    given: dict[str, Any] = {option: Path("m.png") if option in ("scribble", "mask") else (1, 2, 3, 4)}
    config = PromptConfig(**given)
    assert config.is_given
    with pytest.raises(SA3DError, match=r"need a view: name one with --pipeline\.prompt\.view"):
        read_prompts(config, TwoViews(), "thing")
    assert not PromptConfig().is_given


@pytest.mark.parametrize(("width", "height", "fits"), [
    (40, 30, True), (400, 300, True), (13, 10, True), (4, 3, True), (41, 30, True), (1, 1, True),
    (30, 40, False), (40, 40, False), (400, 30, False), (100, 60, False),
])  # fmt: skip
def test_an_image_painted_over_another_has_its_shape(tmp_path: Path, width: int, height: int, fits: bool):
    path = tmp_path / "m.png"
    Image.fromarray(np.full((height, width, 3), 255, np.uint8)).save(path)
    for reader in (read_mask, read_scribble):
        if fits:
            reader(path, 30, 40)
            continue
        with pytest.raises(SA3DError) as caught:
            reader(path, 30, 40)
        assert f"m.png is {width} x {height} pixels, and so no copy of the image of 40 x 30" in str(caught.value)


def test_folders_in_the_place_of_files(tmp_path: Path):
    for options in ({"mask": tmp_path}, {"scribble": tmp_path}):
        with pytest.raises(SA3DError, match="is a folder: name an image in it"):
            read(**options)
    with pytest.raises(SA3DError, match="is a folder: name the prompt file in it"):
        read_prompts(PromptConfig(file=tmp_path), TwoViews(), "x")


def test_a_mask_of_zeros_and_ones_counts(tmp_path: Path):
    Image.fromarray(np.eye(30, 40, dtype=np.uint8)).save(tmp_path / "m.png")
    assert int(read_mask(tmp_path / "m.png", 30, 40).sum()) == 30
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(SA3DError, match="empty"):
        read_mask(tmp_path / "m.png", 30, 40)


def write_file(folder: Path, content: Any) -> Path:
    path = folder / "prompts.json"
    path.write_text(json.dumps(content))
    return path


def test_a_file_names_objects_in_several_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    Image.fromarray(np.full((30, 40), 255, np.uint8)).save(tmp_path / "m.png")
    content = {
        "objects": [
            {"name": "mug", "view": "a.png", "points": [[1, 2]], "negative_points": [[3, 4]]},
            {"name": "mug", "frame": "b.png", "box": [0, 0, 9, 9]},
            {"name": "book", "view": "b.png", "scribble": [[2, 2], [30, 20]], "mask": "m.png"},
        ]
    }
    file = write_file(tmp_path, content)
    mug, book = read_prompts(PromptConfig(file=file), TwoViews(), "unused")
    assert (mug.name, sorted(mug.views), book.name, sorted(book.views)) == ("mug", [0, 1], "book", [1])
    assert mug.views[1].box is not None
    assert len(book.views[1].positive) >= 1
    assert book.views[1].mask is None
    assert "are left out; with them: --pipeline.prompt.kinds points box scribble mask text" in capsys.readouterr().out
    _, masked = read_prompts(PromptConfig(file=file, kinds=("points", "box", "mask")), TwoViews(), "unused")
    assert masked.views[1].mask is not None and len(masked.views[1].points) == 0
    assert "left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"name": "mug", "view": "a.png", "points": [[1, 2]]}, {"name": "mug", "view": "a.png", "box": [0, 0, 9, 9]}],
         "prompt mug in a.png: make one entry of the two"),
        ([{"name": "mug", "view": "b.png", "points": [[1, 2]]}, {"name": "mug", "text": "mug"}],
         "prompt mug in b.png: make one entry of the two"),
        ([{"name": "cup 2", "view": "a.png", "points": [[1, 2]]}, {"name": "cup", "text": "mug", "instances": "all"}],
         "name an object cup 2, one by words for several: rename one"),
        ([{"name": "cup", "text": "mug", "instances": "all"}, {"name": "cup 2", "view": "a.png", "points": [[1, 2]]}],
         "name an object cup 2, one by words for several: rename one"),
    ],
)  # fmt: skip
def test_no_entry_of_a_file_replaces_another(tmp_path: Path, entries: list[dict[str, Any]], words: str):
    with pytest.raises(SA3DError, match=words):
        read_prompts(PromptConfig(file=write_file(tmp_path, entries)), TwoViews(), "unused", Masks())


def test_words_and_points_in_different_views_prompt_one_object(tmp_path: Path):
    entries = [{"name": "mug", "view": "a.png", "points": [[1, 2]]}, {"name": "mug", "view": "b.png", "text": "mug"}]
    (mug,) = read_prompts(PromptConfig(file=write_file(tmp_path, entries)), TwoViews(), "unused", Masks())
    assert len(mug.views[0].points) == 1 and mug.views[1].mask is not None


def test_the_benchmark_scenes_files_are_read(shared_dir: Path):
    class Views(TwoViews):
        def find(self, view: str | int) -> int:
            return int(Path(str(view)).stem.split("_")[1])

        def image_size(self, view: int) -> tuple[int, int]:
            return 240, 320

        def name(self, view: int) -> str:
            return f"frame_{view:04d}.jpg"

    for scene in ("desk", "toys", "shelf"):
        objects = read_prompts(PromptConfig(file=shared_dir / "scenes" / scene / "prompts.json"), Views(), "unused")
        assert len(objects) >= 5
        for entry in objects:
            (view, prompt), *_ = entry.views.items()
            ids = np.asarray(Image.open(shared_dir / "scenes" / scene / "instances" / f"frame_{view:04d}.png"))
            on = prompt.positive.long().numpy()
            seen = ids[on[:, 1], on[:, 0]]
            assert (seen == np.bincount(seen).argmax()).mean() > 0.95, entry.name


@pytest.mark.parametrize(
    "content",
    [
        {}, [], [1], {"objects": {}}, [{"view": "a.png"}], [{"name": "x"}],
        [{"name": "x", "view": "c.png", "points": [[1, 1]]}], [{"name": "x", "view": "a.png"}],
        [{"name": "x", "view": "a.png", "points": 3}], [{"name": "x", "view": "a.png", "points": [[1, 1, 1]]}],
        [{"name": "x", "view": "a.png", "points": [["a", 1]]}], [{"name": "x", "view": "a.png", "points": [[1e30, 1]]}],
        [{"name": "x", "view": True, "points": [[1, 1]]}], [{"name": "x", "view": "a.png", "points": [[True, 1]]}],
        [{"name": "x", "view": "a.png", "box": {"a": 1}}], [{"name": "x", "view": [], "points": [[1, 1]]}],
    ],
)  # fmt: skip
def test_wrong_files_end_in_a_sentence(tmp_path: Path, content: Any):
    with pytest.raises(SA3DError):
        read_prompts(PromptConfig(file=write_file(tmp_path, content)), TwoViews(), "x")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_files_end_in_a_sentence_or_a_prompt(tmp_path: Path, position: int, value: int, cut: bool):
    good = write_file(tmp_path, [{"name": "x", "view": "a.png", "points": [[1, 2], [3, 4]], "box": [0, 0, 9, 9]}])
    image = tmp_path / "s.png"
    Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(image)
    for path in (good, image):
        data = bytearray(path.read_bytes())
        data[position % len(data)] = value
        path.write_bytes(data[: position % len(data)] if cut else data)
    for attempt in (
        lambda: read_prompts(PromptConfig(file=good), TwoViews(), "x"),
        lambda: read_scribble(image, 30, 40),
        lambda: read_mask(image, 30, 40),
    ):
        try:
            attempt()
        except SA3DError as error:
            assert "\n" not in str(error)


def test_strokes_become_the_published_share_of_points_every_time():
    line = draw_polyline([[0, 50], [999, 50]], 100, 1000)
    assert line.sum() == 1000
    thick = np.zeros((100, 1000), bool)
    thick[45:56] = True
    on, beside = points_of_stroke(thick, positive=True), points_of_stroke(thick, positive=False)
    assert 10 <= len(on) <= 30
    assert 1 <= len(beside) <= 10
    assert (np.abs(on[:, 1] - 50) <= 1).all()
    assert np.array_equal(on, points_of_stroke(thick, positive=True))


@pytest.mark.parametrize("size", [1, 2])
def test_a_dot_is_a_point(size: int):
    dot = np.zeros((20, 20), bool)
    dot[7 : 7 + size, 3 : 3 + size] = True
    (point,) = points_of_stroke(dot, positive=True)
    assert dot[int(point[1]), int(point[0])]
    assert len(points_of_stroke(np.zeros((5, 5), bool), positive=True)) == 0


def test_resizing_keeps_points_on_their_pixels():
    prompt = Prompt.from_points(30, 40, [(39, 29), (0, 0)], box=(4, 6, 20, 30)).resized(15, 10)
    assert prompt.points.tolist() == [[9, 14], [0, 0]]
    assert prompt.box is not None and torch.allclose(prompt.box, torch.tensor([1.0, 3.0, 5.0, 15.0]))


class Boxes:
    """In the place of a detector that knows of boxes only: a box that tells what was asked; b.png fits best."""

    def box(self, view: int | None, text: str, index: int | None = None) -> tuple[int, tuple[float, ...]]:
        view = 1 if view is None else view
        return view, (view, len(text), 20, 10 + (index or 0))

    def objects(self, view: int | None, text: str, every: bool) -> list[dict[int, Prompt]] | None:
        return None


class Masks(Boxes):
    """In the place of one that knows masks: two objects, each in both views, or in the one that is named."""

    def objects(self, view: int | None, text: str, every: bool) -> list[dict[int, Prompt]] | None:
        views = (0, 1) if view is None else (view,)
        found = [{each: Prompt(30, 40, mask=torch.ones(30, 40, dtype=torch.bool)) for each in views} for _ in range(2)]
        return found if every else found[:1]


def box_of_words(**options: Any) -> tuple[int, list[float]]:
    """The view and the box that come of words."""
    (entry,) = read_prompts(PromptConfig(**options), TwoViews(), "thing", Boxes())
    ((view, prompt),) = entry.views.items()
    assert prompt.box is not None
    return view, prompt.box.tolist()


def test_words_become_a_box():
    assert box_of_words(text="a mug") == (1, [1, 5, 20, 10]), "without a view, the best of several is taken"
    assert box_of_words(text="a mug", view="b.png", box_index=2) == (1, [1, 5, 20, 12])
    assert PromptConfig(text="a mug").is_given
    (entry,) = read_prompts(PromptConfig("a.png", (1, 2), text="a mug"), TwoViews(), "thing", Boxes())
    assert entry.views[0].positive.tolist() == [[1, 2]], "points go with words"


def test_words_in_a_file(tmp_path: Path):
    objects = [{"name": "mug", "text": "a mug"}, {"name": "book", "view": "b.png", "text": "red", "box_index": 1}]
    file = write_file(tmp_path, {"objects": objects})
    mug, book = read_prompts(PromptConfig(file=file), TwoViews(), "unused", Boxes())
    assert mug.views[1].box is not None and mug.views[1].box.tolist() == [1, 5, 20, 10]
    assert book.views[1].box is not None and book.views[1].box.tolist() == [1, 3, 20, 11]


def test_words_become_objects_where_masks_are_known(tmp_path: Path):
    (best,) = read_prompts(PromptConfig(text="mug"), TwoViews(), "thing", Masks())
    assert (best.name, list(best.views)) == ("thing", [0, 1])
    both = read_prompts(PromptConfig("b.png", text="mug", instances="all"), TwoViews(), "mug", Masks())
    assert [(entry.name, list(entry.views)) for entry in both] == [("mug", [1]), ("mug 2", [1])]
    file = write_file(tmp_path, {"objects": [{"name": "cup", "text": "mug", "instances": "all"}]})
    assert [entry.name for entry in read_prompts(PromptConfig(file=file), TwoViews(), "-", Masks())] == ["cup", "cup 2"]
    # Points say which one is meant, and a place that is chosen by its number is a box.
    (pointed,) = read_prompts(PromptConfig("a.png", (1, 2), text="mug"), TwoViews(), "thing", Masks())
    assert pointed.views[0].mask is None and pointed.views[0].box is not None
    assert box_of_words(text="a mug", box_index=2)[1] == [1, 5, 20, 12]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text": "a mug", "instances": "all", "box_index": 1}, "give one of the two"),
        ({"text": "a mug", "view": "a.png", "box": (0, 0, 4, 5)}, "give the box or the words"),
        ({"text": "a mug", "instances": "all", "view": "a.png", "points": (1, 2)}, "give words alone"),
        ({"text": "a mug", "points": (1, 2)}, "need a view"),
        ({"text": "a mug", "negative_points": (1, 2)}, "need a view"),
        ({"text": "a mug", "file": Path("prompts.json")}, "prompt.text, not both"),
        ({"points": (1, 2), "file": Path("prompts.json")}, "prompt.points, not both"),
        ({"mask": Path("m.png"), "file": Path("prompts.json")}, "prompt.mask, not both"),
        ({"candidate": "large", "file": Path("prompts.json")}, "not both: in the file, candidate is a key"),
        ({"instances": "all", "file": Path("prompts.json")}, "prompt.instances, not both"),
        ({"box_index": 0, "file": Path("prompts.json")}, "prompt.box-index, not both"),
    ],
)
def test_words_out_of_place(options: dict[str, Any], words: str):
    with pytest.raises(SA3DError, match=words):
        read_prompts(PromptConfig(**options), TwoViews(), "thing", Boxes())


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"text": 3}, "made of words"),
        ({"text": "a mug", "instances": 3}, "one of best, all, and not '3'"),
        ({"text": "a mug", "box_index": "second"}, "whole number"),
        ({"text": "a mug", "box_index": True}, "whole number"),
        ({"text": "a mug", "points": [[1, 2]]}, 'needs a "name" and a "view"'),
    ],
)
def test_words_out_of_place_in_a_file(tmp_path: Path, entry: dict[str, Any], words: str):
    file = write_file(tmp_path, {"objects": [{"name": "mug", **entry}]})
    with pytest.raises(SA3DError, match=words):
        read_prompts(PromptConfig(file=file), TwoViews(), "thing", Boxes())
