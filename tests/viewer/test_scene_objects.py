"""Many objects in the panel, without a screen, on a scene whose answer is known exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.scene_objects import SceneObjects
from tests.viewer.test_editor import ColorSegmenter, ViewsOfBalls, bench_on, iou

BALLS_OF = {"both": [1, 2], "first": [1], "second": [2], "far": [3], "apart": [1, 3]}


@pytest.fixture
def views() -> ViewsOfBalls:
    return ViewsOfBalls()


def bench(views: ViewsOfBalls, *names: str, hidden: tuple[str, ...] = ()) -> tuple[Editor, SceneObjects]:
    """Objects as a job leaves them: some balls each, lifted from the true masks."""
    editor = bench_on(views)
    masks = editor.model.masks
    for name in names:
        grid = MaskGrid(48)
        grid.place(torch.tensor([-0.15, 0.2, 0.25]), torch.full((3,), 1.1))
        for view in range(len(views)):
            on = torch.isin(views.ids(view), torch.tensor(BALLS_OF[name])).reshape(-1)
            EvidenceLifting(grid).add(views.trace(view), on)
        masks[name] = grid
    masks.parents = {name: "both" if name in ("first", "second") and "both" in names else None for name in names}
    masks.hidden = set(hidden)
    editor.adopt()
    return editor, SceneObjects(editor)


def place(views: ViewsOfBalls, ball: int, view: int = 0) -> tuple[float, float]:
    y, x = (views.elsewhere.ids(view) == ball).nonzero().float().mean(0).tolist()
    return (x + 0.5) / views.elsewhere.width, (y + 0.5) / views.elsewhere.height


def segmenter_of(editor: Editor) -> Any:
    segmenter = editor.free_views.segmenter
    assert isinstance(segmenter, ColorSegmenter)
    return segmenter


def test_a_click_selects_what_is_shown_there_and_asks_no_segmenter(views: ViewsOfBalls):
    editor, objects = bench(views, "both", "first", "second", "far", hidden=("both",))
    for ball, name in ((1, "first"), (2, "second"), (3, "far")):
        assert objects.pick("view 0", *place(views, ball)) == name
        assert editor.state.selected == name
    assert segmenter_of(editor).embedded == []
    with pytest.raises(SA3DError, match="no object is shown there"):
        objects.pick("view 0", 0.02, 0.02)
    editor.show({"far"})
    with pytest.raises(SA3DError, match="no object is shown there"):
        objects.pick("view 0", *place(views, 3))


def test_the_selected_one_of_several_is_outlined(views: ViewsOfBalls):
    editor, objects = bench(views, "first", "far")
    objects.pick("view 0", *place(views, 3))
    white = (editor.picture("view 0") == 1).all(-1)
    ids = views.elsewhere.ids(0)
    assert white[ids == 3].any() and not white[ids == 1].any()
    assert white[ids == 3].float().mean() < 0.8


def test_larger_and_smaller_walk_the_tree(views: ViewsOfBalls):
    editor, objects = bench(views, "both", "first", "second", "far", hidden=("both",))
    objects.pick("view 0", *place(views, 1))
    assert objects.larger() == editor.state.selected == "both"
    assert {entry.name for entry in editor.state if entry.hidden} == {"first", "second"}
    assert objects.pick("view 0", *place(views, 2)) == "both"
    assert "2 parts" in objects.describe("both")
    assert objects.smaller() == "first"
    assert editor.model.masks.hidden == {"both"}
    with pytest.raises(SA3DError, match="has no parts"):
        objects.smaller()
    objects.pick("view 0", *place(views, 3))
    with pytest.raises(SA3DError, match="a part of nothing"):
        objects.larger()


def test_merging_makes_one_of_two_and_undo_takes_it_back(views: ViewsOfBalls):
    editor, objects = bench(views, "first", "far")
    assert objects.merge(["first", "far"]) == "first"
    assert editor.state.names == ["first"]
    assert iou(editor, views.elsewhere, 0, [1, 3], "first") > 0.9
    editor.undo()
    assert editor.state.names == ["first", "far"]
    assert iou(editor, views.elsewhere, 0, [1], "first") > 0.9
    for names in (["first"], ["first", "first"], ["first", "nothing"]):
        with pytest.raises(SA3DError, match="no two objects"):
            objects.merge(names)


@pytest.mark.parametrize(
    ("names", "parents"),
    [
        (["part", "middle"], {"whole": None, "part": "whole", "other": "whole", "piece": "part"}),
        (["part", "whole"], {"middle": "part", "part": None, "other": "part", "piece": "part"}),
        (["part", "other"], {"whole": None, "middle": "whole", "part": "whole", "piece": "part"}),
        (["whole", "part"], {"whole": None, "middle": "whole", "other": "whole", "piece": "whole"}),
    ],
)
def test_a_merged_object_has_the_place_of_what_it_contains(
    views: ViewsOfBalls, names: list[str], parents: dict[str, str | None]
):
    editor, objects = bench(views, "first")
    before = {"whole": None, "middle": "whole", "part": "middle", "other": "whole", "piece": "part"}
    field = editor.masks["first"]
    for name, parent in before.items():
        editor.change(editor.state.adding(replace(editor.new_object(name), evidence=field, parent=parent)))
    editor.select("first")
    editor.delete()
    objects.merge(names)
    assert editor.state.tree.parents == parents
    editor.undo()
    assert editor.state.tree.parents == before


def test_there_is_nothing_to_merge_in_empty_objects(views: ViewsOfBalls):
    editor, objects = bench(views)
    names = [editor.add_object() for _ in range(2)]
    with pytest.raises(SA3DError, match="are empty"):
        objects.merge(names)
    assert editor.state.names == names


def test_a_piece_is_split_off_by_a_click(views: ViewsOfBalls):
    editor, objects = bench(views, "apart")
    name = objects.split("view 0", *place(views, 3))
    assert editor.state.names == ["apart", name]
    assert iou(editor, views.elsewhere, 0, [3], name) > 0.9
    assert iou(editor, views.elsewhere, 0, [1], "apart") > 0.9
    with pytest.raises(SA3DError, match="in one piece"):
        objects.split("view 0", *place(views, 3))
    editor.undo()
    assert iou(editor, views.elsewhere, 0, [1, 3], "apart") > 0.9


def test_the_tree_is_saved_with_the_masks_and_follows_a_new_name(views: ViewsOfBalls):
    editor, objects = bench(views, "both", "first", "far")
    objects.pick("view 0", *place(views, 3))
    editor.select("both")
    editor.rename("pair")
    assert editor.model.masks.parents == {"pair": None, "first": "pair", "far": None}
    editor.delete()
    assert editor.model.masks.parents == {"first": None, "far": None}
    state = editor.model.masks.state_dict()
    again = bench_on(views, state)
    assert again.state.names == ["first", "far"]
    assert again.model.masks.parents == {"first": None, "far": None}
