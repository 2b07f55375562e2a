"""Files: written completely or not at all; digests; conversions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from plyfile import PlyData

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import atomic_path, check_writable, digest, to_bytes, unique_stems, write_ply


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ValueError, match="in the middle"), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise ValueError("in the middle")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {process: f"saving-0.step-000000007.{process}.ckpt" for process in (dead.pid, os.getppid())}
    for name in names.values():
        (tmp_path / name).write_text("half")
    (tmp_path / "saving-0.notes.txt").write_text("of somebody else")
    with atomic_path(tmp_path / "new.json") as temporary:
        # nerfstudio parses this number from every name in a checkpoint folder, and loads the largest.
        name = temporary.name
        assert int(name[name.find("-") + 1 : name.find(".")]) == 0
        temporary.write_text("{}")
    remaining = {path.name for path in tmp_path.iterdir()}
    assert remaining == {"new.json", "saving-0.notes.txt", names[os.getppid()]}


def test_a_file_in_the_place_of_a_folder_is_told_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SA3DError, match=r"cannot be written \(.*\): make room"), atomic_path(tmp_path / "file" / "x"):
        pass
    with pytest.raises(SA3DError, match="cannot be written"):
        check_writable(tmp_path / "file" / "folder")


def test_stems_of_any_names_are_files_of_their_own(tmp_path: Path):
    names = ["猫", "犬", "a b", "a/b", "a_b-3", "Mug", "mug", "…", "猫" * 300, "猫" * 301, "\udcff"]
    stems = unique_stems(names)
    for stem in stems:
        with atomic_path(tmp_path / f"overview-{stem}.png") as temporary:
            temporary.write_text("")
    assert len({file.name.casefold() for file in tmp_path.iterdir()}) == len(names)
    assert stems[:2] == names[:2]


def test_room_is_asked_for_and_nothing_is_made(tmp_path: Path):
    check_writable(tmp_path / "a" / "b", num_bytes=1000)
    with pytest.raises(SA3DError, match=r"needs \d+ MB, but .*--pipeline\.save-base False"):
        check_writable(tmp_path / "a" / "b", num_bytes=10**18)
    assert list(tmp_path.iterdir()) == []


def test_colours_become_bytes() -> None:
    rgb = torch.tensor([[[0.0, 0.5, 1.0], [-0.2, 1.7, 0.999]]])
    assert to_bytes(rgb).tolist() == [[[0, 128, 255], [0, 255, 255]]]
    assert to_bytes(rgb).dtype == np.uint8
    assert to_bytes(rgb.double()).tolist() == to_bytes(rgb).tolist()
    assert to_bytes(torch.full((1, 1, 3), torch.nan)).tolist() == [[[0, 0, 0]]]


def test_digests_tell_everything_apart():
    base = [torch.zeros(4), "a", 1.0]
    variants = [[torch.zeros(2, 2), "a", 1.0], [torch.zeros(4).int(), "a", 1.0], [torch.zeros(4), "a1.0"], base[:2],
                [torch.tensor([0, 0, 0, 1e-45]), "a", 1.0], [None, torch.zeros(4), "a", 1.0]]  # fmt: skip
    assert len({digest(values) for values in [base, *variants]}) == 7
    assert digest(base) == digest([torch.zeros(4), "a", 1.0])


def test_another_program_reads_the_points(tmp_path: Path):
    values = {
        "x": np.array([0.5, -1], np.float32),
        "red": np.array([0, 255], np.uint8),
        "object_id": np.array([1, -2], np.int32),
    }
    write_ply(tmp_path / "p.ply", values)
    vertices = PlyData.read(tmp_path / "p.ply")["vertex"]
    assert {item.name: vertices[item.name].tolist() for item in vertices.properties} == {
        name: array.tolist() for name, array in values.items()
    }
