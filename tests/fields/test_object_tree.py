"""The tree of a scene's objects, and the level at which the scene is divided into them."""

from __future__ import annotations

import torch

from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.fields.object_tree import ObjectTree, TreeBuilder, share_inside
from sa3d_nerfstudio.fields.splat_mask import SplatMask


def ball(x: float, radius: float, resolution: int = 40) -> MaskGrid:
    """Grid with a ball at (x, 0, 0)."""
    grid = MaskGrid(resolution)
    grid.place(torch.tensor([x, 0.0, 0.0]), torch.full((3,), 1.3 * radius))
    on = (grid.cell_positions() - grid.center).norm(dim=-1) < radius
    grid.set(on.float(), torch.ones(grid.num_cells))
    return grid


def test_what_lies_within_is_a_part():
    whole, left, right, other = ball(0, 1.0), ball(-0.5, 0.4), ball(0.5, 0.4, 30), ball(3, 0.5)
    assert share_inside(left, whole) > 0.98
    assert share_inside(whole, left) < 0.2
    assert share_inside(left, right) == share_inside(other, whole) == 0.0
    tree = ObjectTree.of({"left": left, "whole": whole, "speck": ball(-0.5, 0.1), "right": right, "other": other})
    assert tree.parents == {"left": "whole", "whole": None, "speck": "left", "right": "whole", "other": None}
    assert tree.ancestors("speck") == ["left", "whole"]
    assert tree.descendants("whole") == ["left", "speck", "right"]
    assert tree.roots == ["whole", "other"]


def test_the_same_cells_are_the_same_object():
    builder = TreeBuilder()
    builder.add("first", ball(0, 1.0))
    assert builder.same(ball(0.02, 1.0, 30)) == "first"
    assert builder.same(ball(0.4, 0.5)) is None
    assert builder.same(ball(0, 0.05).fresh()) is None


def test_splats_are_parts_by_their_cells():
    positions = torch.rand(50, 3)
    whole, part = SplatMask(positions), SplatMask(positions)
    whole.set((torch.arange(50) < 30).float(), torch.ones(50))
    part.set((torch.arange(50) < 10).float(), torch.ones(50))
    assert share_inside(part, whole) == 1.0
    assert ObjectTree.of({"part": part, "whole": whole}).parents == {"part": "whole", "whole": None}


def test_the_cut_takes_the_level_that_is_worth_most():
    tree = ObjectTree({"scene": None, "cup": "scene", "handle": "cup", "plate": "scene"})
    values = {"scene": 60.0, "cup": 40.0, "handle": 10.0, "plate": 45.0}
    assert tree.cut(values) == ["cup", "plate"]
    assert tree.cut(values | {"scene": 90.0}) == ["scene"]
    assert tree.cut(values | {"handle": 41.0}) == ["handle", "plate"]
    assert [tree.level(name, ["cup", "plate"]) for name in tree] == ["whole", "object", "part", "object"]


def test_objects_leave_the_tree_and_change_their_names():
    tree = ObjectTree({"scene": None, "cup": "scene", "handle": "cup"})
    assert tree.without("cup").parents == {"scene": None, "handle": "scene"}
    assert tree.renamed("cup", "mug").parents == {"scene": None, "mug": "scene", "handle": "mug"}


def test_splats_at_rest_are_compared_without_unpacking_them():
    positions = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    seen = torch.full((4000,), 5.0)
    builder, fields = TreeBuilder(), {}
    for name, reach in (("whole", 0.5), ("part", 0.2)):
        fields[name] = SplatMask(positions)
        fields[name].add(seen * (positions[:, 0] < reach), seen)
        builder.add(name, fields[name])
        fields[name].rest()
    same_part, other = SplatMask(positions), SplatMask(positions)
    same_part.add(seen * (positions[:, 0] < 0.21), seen)
    other.add(seen * (positions[:, 0] > 0.6), seen)
    assert builder.same(same_part) == "part"
    assert builder.same(other) is None
    builder.add("other", other)
    assert builder.tree().parents == {"whole": None, "part": "whole", "other": None}
    assert all(field.is_packed for field in fields.values())
