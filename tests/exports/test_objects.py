"""Which objects are exported, and what their files are called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.frames import Frame
from sa3d_nerfstudio.exports.objects import left_out, listed, only, select
from sa3d_nerfstudio.exports.scene_table import write_object_table
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.objects import MaskObjects
from tests.models.test_rays import ball


def objects(*names: str) -> MaskObjects:
    masks = MaskObjects(lambda cells: MaskGrid(round(cells ** (1 / 3))))
    for name in names:
        masks[name] = ball()
    return masks


def test_ids_and_file_names_stay_whatever_is_chosen():
    masks = objects("Red Mug", "red_mug", "../../etc/passwd", "Tasse №1", "…")
    chosen = select(masks)
    assert [item.id for item in chosen] == [1, 2, 3, 4, 5]
    stems = [item.stem for item in chosen]
    assert stems == ["Red_Mug-1", "red_mug-2", "etc_passwd", "Tasse_1", "object"]
    assert len({stem.casefold() for stem in stems}) == 5
    (item,) = select(masks, ["Tasse №1"])
    assert (item.id, item.stem) == (4, "Tasse_1")


def test_hidden_objects_are_exported_when_they_are_named():
    masks = objects("cup", "pot")
    masks.hidden = {"cup"}
    assert [item.name for item in select(masks)] == ["pot"]
    assert left_out(masks, select(masks)) == ["cup"]
    assert [item.name for item in select(masks, ["cup"])] == ["cup"]
    with only(masks, select(masks, ["cup"])):
        assert masks.hidden == {"pot"}
        assert masks.shown == [masks["cup"]]
    assert masks.hidden == {"cup"}


def test_what_is_not_there_is_told():
    with pytest.raises(SA3DError, match="no object to export"):
        select(objects())
    with pytest.raises(SA3DError, match="there is no object 'vase' in this run: it has cup, pot"):
        select(objects("cup", "pot"), ["vase"])
    masks = objects("cup", "pot")
    masks["pot"] = MaskGrid(8)
    assert [item.name for item in select(masks)] == ["cup"]
    with pytest.raises(SA3DError, match="'pot' is empty"):
        select(masks, ["pot"])
    masks.hidden = {"cup"}
    with pytest.raises(SA3DError, match="all objects of this run are hidden"):
        select(masks)


def test_a_checkpoint_remembers_what_is_finished():
    masks = objects("cup", "pot")
    masks.finished = {"cup": "abc"}
    again = MaskObjects(lambda cells: MaskGrid(round(cells ** (1 / 3))))
    again.load_state_dict(masks.state_dict())
    assert again.finished == {"cup": "abc"}
    again["cup"] = ball(0.3)
    assert again.finished == {}
    assert torch.equal(masks["pot"].hit, again["pot"].hit)


def test_a_table_holds_the_tree_boxes_and_sizes(tmp_path: Path):
    masks = objects("table", "cup", "handle", "nothing")
    masks["nothing"] = MaskGrid(8)
    masks.parents = {"table": None, "cup": "table", "handle": "cup"}
    masks.hidden = {"table", "handle"}
    frame = Frame(torch.eye(3, 4), 0.5, world=True)
    write_object_table(tmp_path / "objects.json", masks, frame)
    content = json.loads((tmp_path / "objects.json").read_text())
    assert content["frame"] == "dataset"
    table = {entry["name"]: entry for entry in content["objects"]}
    assert list(table) == ["table", "cup", "handle"]
    assert [entry["level"] for entry in table.values()] == ["whole", "object", "part"]
    assert [(entry["parent"], entry["children"]) for entry in table.values()] == [(None, [2]), (1, [3]), (2, [])]
    cup = table["cup"]
    assert cup["cells"] == int(masks["cup"].object_cells().sum())
    points = masks["cup"].object_points()[0] * frame.length
    assert torch.allclose(torch.tensor(cup["box"]["center"]), (points.amax(0) + points.amin(0)) / 2, atol=0.1)
    assert min(cup["box"]["size"]) > 0.8 * float((points.amax(0) - points.amin(0)).min())


def test_hundreds_of_names_are_told_in_one_line():
    assert listed(["cup", "pot"]) == "cup, pot"
    many = listed([f"object {number}" for number in range(200)])
    assert many.endswith("object 11, ... (188 more)")
