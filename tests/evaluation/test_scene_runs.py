"""Which run belongs to which scene."""

from __future__ import annotations

from pathlib import Path

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.scene_runs import find_scene_run


def write(folder: Path, *runs: str) -> str:
    for run in runs:
        (folder / run).mkdir(parents=True)
        (folder / run / "config.yml").touch()
    return str(folder)


def test_the_last_of_a_scenes_runs_is_taken(tmp_path: Path) -> None:
    runs = write(tmp_path, "fern/nerfacto/2024-01-02", "fern/nerfacto/2024-01-10", "fern/sa3d/2025-01-01", "room/x/y")
    assert find_scene_run(runs, ["fern"]) == tmp_path / "fern/nerfacto/2024-01-10/config.yml"
    assert find_scene_run(runs, ["leaves"]) is None
    assert find_scene_run(runs, ["room"]) == tmp_path / "room/x/y/config.yml"


def test_a_scene_has_several_names(tmp_path: Path) -> None:
    runs = write(tmp_path, "Truck/nerfacto/T", "horns/nerfacto/T")
    assert find_scene_run(runs, ["truck"]) == tmp_path / "Truck/nerfacto/T/config.yml"
    assert find_scene_run(runs, ["horns_left", "horns"]) == tmp_path / "horns/nerfacto/T/config.yml"


def test_templates(tmp_path: Path) -> None:
    write(tmp_path, "runs-fern/nerfacto/T", "splat/room")
    assert find_scene_run(f"{tmp_path}/runs-{{scene}}", ["fern"]) == tmp_path / "runs-fern/nerfacto/T/config.yml"
    assert find_scene_run(f"{tmp_path}/splat/{{scene}}", ["room"]) == tmp_path / "splat/room/config.yml"
    path = f"{tmp_path}/splat/{{scene}}/config.yml"
    assert find_scene_run(path, ["room"]) == tmp_path / "splat/room/config.yml"
    assert find_scene_run(path, ["fern"]) is None


def test_of_several_methods_one_is_chosen(tmp_path: Path) -> None:
    runs = write(tmp_path, "fern/nerfacto/T", "fern/splatfacto/T")
    with pytest.raises(SA3DError, match="--method nerfacto or splatfacto"):
        find_scene_run(runs, ["fern"])
    assert find_scene_run(runs, ["fern"], "splatfacto") == tmp_path / "fern/splatfacto/T/config.yml"
    assert find_scene_run(runs, ["fern"], "tensorf") is None


def test_no_folder_has_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match="give --runs the folder"):
        find_scene_run(str(tmp_path / "nowhere"), ["fern"])
