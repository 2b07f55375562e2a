"""The splat mask: one cell per splat."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nerfstudio.data.scene_box import OrientedBox

from sa3d_nerfstudio.exports.boxes import object_box
from sa3d_nerfstudio.fields.base import FAR_LOGIT
from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.fields.splat_mask import SplatMask


def line(num: int = 10) -> SplatMask:
    """Splats along x, at 0, 1, 2, …"""
    positions = torch.zeros(num, 3)
    positions[:, 0] = torch.arange(num)
    return SplatMask(positions)


def test_evidence_is_per_splat():
    field = line()
    hit, seen = torch.zeros(10), torch.zeros(10)
    hit[2], seen[2], seen[3] = 3.0, 4.0, 2.0
    field.add(hit, seen)
    assert field.probability().tolist() == pytest.approx([0, 0, 0.75, 0, 0, 0, 0, 0, 0, 0])
    assert field.known().nonzero()[:, 0].tolist() == [2, 3]
    points, weights = field.object_points()
    assert points.tolist() == [[2.0, 0.0, 0.0]]
    assert weights.tolist() == [3.0]


def test_an_unseen_splat_goes_with_those_around_it():
    field = line(20)
    seen = torch.ones(20)
    seen[[5, 8, 15]] = 0.0
    on = torch.zeros(20)
    on[:10] = 1.0
    field.add(on * seen, seen)
    # 5 and 8 lie between splats of the object; 15 lies beyond its bounds and does not belong to it.
    assert field.selected().nonzero()[:, 0].tolist() == list(range(10))


def test_a_hardly_seen_splat_does_not_count_by_itself():
    """The tail of a ray that ends on the object reaches a splat far behind it."""
    field = line(10)
    hit = torch.tensor([5.0, 5, 5, 5, 0, 0, 0, 0, 0, 0.01])
    seen = torch.tensor([5.0, 5, 5, 5, 5, 5, 5, 5, 5, 0.01])
    field.add(hit, seen)
    assert field.probability()[9] == 1
    assert field.selected().nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert len(field.object_points()[0]) == 4


def test_splats_far_from_the_object_are_not_of_it():
    """Floating splats before a camera are seen well, but through the object's pixels alone."""
    generator = torch.Generator().manual_seed(0)
    ball = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator), dim=-1)
    far = torch.tensor([[3.0, 0, 0], [0, -5.0, 0], [0, 0, 40.0]])
    field = SplatMask(torch.cat([ball, 3 + ball, far]))
    on = torch.cat([torch.ones(200), torch.zeros(200), torch.ones(3)])
    seen = torch.full((403,), 5.0)
    seen[400:] = 0.5
    field.add(on * seen, seen)
    assert field.object_cells().nonzero()[:, 0].tolist() == list(range(200))
    assert field.selected().nonzero()[:, 0].tolist() == list(range(200))
    box = object_box(field, 0.5)
    assert box.scale.max() < 2.2
    # nerfstudio's exporters leave out what lies on the border.
    options = (tuple(box.center.tolist()), box.roll_pitch_yaw, tuple(box.scale.tolist()))
    assert bool(OrientedBox.from_params(*options).within(ball).all())
    assert field.rendered_average()[400:].tolist() == [0, 0, 0]
    logits = field.bounded(torch.full((403,), 7.0))
    assert logits[:200].tolist() == [7.0] * 200
    assert (logits[400:] < 0).all()
    # An object that has grown reaches farther.
    field.add(torch.cat([torch.zeros(200), torch.full((200,), 9.0), torch.zeros(3)]), torch.full((403,), 1e-3))
    assert field.object_cells()[:400].all()


def test_rays_that_pass_the_box_around_the_object():
    field = line(10)
    on = torch.tensor([0.0, 0, 1, 1, 1, 0, 0, 0, 0, 0])
    field.set(5 * on, torch.full((10,), 5.0))
    origins = torch.tensor([[3.0, 0, -1], [3.0, 0, -1], [3.0, 0, -1], [5.5, 0, -1], [0.0, 0, 0], [0.0, 0, 0]])
    directions = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 1, 0], [0, 0, 1], [1.0, 0, 0], [-1.0, 0, 0]])
    assert field.hits(origins, directions).tolist() == [True, False, False, False, True, False]
    assert not line(3).hits(origins, directions).any()


def test_an_object_of_one_splat_is_kept():
    field = line(4)
    field.add(torch.tensor([0.0, 2, 0, 0]), torch.ones(4) * 2)
    assert field.object_cells().tolist() == [False, True, False, False]


def test_selection_follows_the_evidence():
    field = line(4)
    assert not field.selected().any()
    field.add(torch.tensor([1.0, 0, 0, 0]), torch.ones(4))
    assert field.selected().tolist() == [True, False, False, False]
    field.add(torch.tensor([0.0, 9, 0, 0]), torch.tensor([0.0, 9, 0, 0]))
    assert field.selected().tolist() == [True, True, False, False]
    assert field.selected(0.95).tolist() == [True, False, False, False]


def test_preparing_drops_evidence_and_knows_where_the_object_is():
    field = line(4)
    field.add(torch.ones(4), torch.ones(4))
    stray = torch.tensor([[100.0, 0.0, 0.0]])
    field.prepare(torch.cat([torch.tensor([[2.0, 0.1, 0.0]]).expand(5, 3), stray]), 0.1)
    assert field.is_empty
    assert field.center.tolist() == pytest.approx([2.0, 0.1, 0.0])
    field.add(torch.tensor([0.0, 0, 1, 3]), torch.tensor([0.0, 0, 1, 3]))
    assert field.placed_again(0.1).center.tolist() == pytest.approx([2.75, 0.0, 0.0])
    assert field.placed_again(0.1).is_empty


def test_a_copy_is_independent():
    field, copy = line(3), line(3)
    field.add(torch.ones(3), torch.ones(3))
    copy.copy_from(field)
    field.add(torch.zeros(3), torch.ones(3))
    assert copy.probability().tolist() == [1.0, 1.0, 1.0]
    assert field.resampled(copy) is field


def test_positions_are_not_saved_again():
    assert set(line().state_dict()) == {"hit", "seen", "center"}


def touched_few(num: int = 4000, fitted: bool = True) -> SplatMask:
    """Field of many splats in a cube, some of them touched by the object's rays; one side has hardly been seen."""
    chance = torch.Generator().manual_seed(0)
    field = SplatMask(torch.rand(num, 3, generator=chance))
    near = (field.positions - 0.5).norm(dim=-1)
    seen = torch.rand(num, generator=chance) * 40 * (field.positions[:, 0] > 0.1) + 2e-3 * (near > 0.3)
    hit = seen * (1.2 - 4 * near).clamp(0, 1)
    field.add(hit, seen)
    if fitted:
        field.set_logits(field.start_logits() + (hit > 0) * torch.randn(num, generator=chance))
    return field


@pytest.mark.parametrize("fitted", [True, False])
def test_a_field_at_rest_takes_little_and_is_the_same_again(fitted: bool):
    field, before = touched_few(fitted=fitted), touched_few(fitted=fitted)
    field.selected()
    field.rest()
    assert field.is_packed
    assert field.num_bytes < 0.3 * before.num_bytes
    assert field.holds_object(0.5) and field.num_cells == before.num_cells
    assert torch.equal(field.selected(), before.selected())
    assert field.is_packed, "neither of these needs the evidence"
    assert torch.equal(field.hit, before.hit)
    assert not field.is_packed
    assert (field.logits is None) == (before.logits is None)
    assert torch.equal(field.cells(), before.cells())
    assert torch.equal(field.probability(), before.probability())
    assert torch.equal(field.known(), before.known())
    touched = before.hit > 0
    assert torch.equal(field.seen[touched], before.seen[touched])
    assert torch.allclose(field.seen, before.seen, rtol=0.05)
    # Selected anew, without the cached selection.
    field.forget_derived()
    assert torch.equal(field.selected(), before.selected())


def test_a_packed_field_takes_evidence_and_new_values():
    for change in (
        lambda field: field.add(torch.ones(4000), torch.ones(4000)),
        lambda field: field.set(torch.zeros(4000), torch.ones(4000)),
        lambda field: field.set_logits(None),
        lambda field: field.copy_from(touched_few(fitted=False)),
    ):
        field, before = touched_few(), touched_few()
        field.rest()
        change(field)
        change(before)
        assert torch.equal(field.hit, before.hit)
        assert torch.allclose(field.seen, before.seen, rtol=0.05)
        assert field.logits is None and not field.is_packed
    field = touched_few()
    field.rest()
    moved = copy.deepcopy(field).to(torch.device("cpu"))
    assert moved.is_packed and field.is_packed
    assert torch.equal(moved.cells(), field.cells())


def test_emptiness_is_read_from_packed_values():
    for hit in (torch.zeros(10), torch.arange(10.0) / 20):
        field = line()
        field.set(hit, torch.full((10,), 0.5))
        field.set_logits(torch.full((10,), 4.0))
        before = line()
        before.copy_from(field)
        field.rest()
        assert field.is_empty == before.is_empty == (not hit.any())
        assert field.is_packed


class Interleaved(SplatMask):
    """A field that another thread packs, unpacks and reads between any two of its steps."""

    other: Callable[[], None] | None = None

    def __getattribute__(self, name: str) -> Any:
        other = object.__getattribute__(self, "__dict__").get("other")
        if name in ("_buffers", "is_packed") and other is not None:
            self.__dict__["other"] = None
            other()
            self.__dict__["other"] = other
        return super().__getattribute__(name)


@pytest.mark.parametrize("others", [("rest",), ("unpack",), ("rest", "unpack")])
def test_several_threads_may_pack_and_read_a_field(others: tuple[str, ...]):
    before = touched_few()
    field = Interleaved(before.positions)
    field.copy_from(before)
    turns = itertools.cycle(others)

    def act() -> None:
        getattr(field, next(turns))()

    field.__dict__["other"] = act
    for _ in range(3):
        for change in (field.rest, field.unpack):
            change()
            assert torch.equal(field.probability(), before.probability())
            assert torch.equal(field.object_weights(), before.object_weights())
            assert field.holds_object(0.5) and not field.is_empty and field.num_bytes > 0


@pytest.mark.parametrize("packed", [True, False])
def test_packed_fields_are_saved_and_restored_as_they_are(packed: bool):
    masks, field = MaskObjects(lambda cells: SplatMask(touched_few().positions)), touched_few()
    masks["mug"], masks["plate"] = field, touched_few(fitted=False)
    if packed:
        field.rest()
    stored = io.BytesIO()
    torch.save(masks.state_dict(), stored)
    loaded = MaskObjects(lambda cells: SplatMask(touched_few().positions[:cells]))
    # Loading replaces an earlier field.
    loaded["mug"] = SplatMask(touched_few().positions)
    stored.seek(0)
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    restored = loaded["mug"]
    assert isinstance(restored, SplatMask)
    assert restored.is_packed == packed
    assert loaded.names == ["mug", "plate"]
    assert torch.equal(restored.cells(), touched_few().cells())
    assert torch.equal(loaded["plate"].cells(), touched_few(fitted=False).cells())


def test_what_floats_beside_an_object_in_little_light_is_not_of_it():
    chance = torch.Generator().manual_seed(0)
    ball = 0.1 * torch.nn.functional.normalize(torch.randn(3000, 3, generator=chance), dim=-1)
    floating = torch.tensor([0.0, 0.15, 0.0]) + 0.01 * torch.randn(4, 3, generator=chance)
    small_part = torch.tensor([0.15, 0.0, 0.0]) + 0.002 * torch.randn(4, 3, generator=chance)
    background = torch.tensor([0.0, 0.0, 3.0]) + torch.randn(50, 3, generator=chance)
    groups = (ball, floating, small_part, background)
    field = SplatMask(torch.cat(groups))
    ball_at, floating_at, part_at, background_at = torch.arange(field.num_cells).split([len(group) for group in groups])
    hit, seen = torch.zeros(field.num_cells), torch.full((field.num_cells,), 20.0)
    hit[ball_at], hit[floating_at], hit[part_at] = 20.0, 0.4, 20.0
    seen[floating_at] = 0.4
    field.set(hit, seen)
    assert field.logits_without_strays() is None
    logits = torch.where(hit > 0, 3.0, -3.0)
    field.set_logits(logits)
    cut = field.logits_without_strays()
    assert cut is not None
    assert torch.equal(cut[floating_at], torch.full((4,), FAR_LOGIT))
    for rows in (ball_at, part_at, background_at):
        assert torch.equal(cut[rows], logits[rows])
    stored = field.logits
    assert stored is not None and torch.equal(stored, logits), "left as it is"
    field.set_logits(cut)
    assert torch.equal(field.object_cells().nonzero()[:, 0], torch.cat([ball_at, part_at]))
