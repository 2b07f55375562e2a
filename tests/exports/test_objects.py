"""Which objects are exported, and what their files are called."""

from __future__ import annotations

import pytest
import torch

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.objects import left_out, only, select
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
