"""SPIn-NeRF's folders as tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.spin_nerf import SCENES, spin_nerf_tasks
from tests.evaluation.miniature import write_mask


def write(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        mask = np.zeros((12, 16), bool)
        mask[2 : 4 + number] = True
        write_mask(folder / f"{name}.png", mask)
        write_mask(folder / f"{name}_cutout.png", ~mask)
        write_mask(folder / f"{name}_pseudo.png", ~mask)
    (folder / "annotations.json").write_text("{}")
    return folder


def test_there_are_ten() -> None:
    assert len(SCENES) == 10


@pytest.mark.parametrize("folder", ["room (llff)", "room"])
def test_the_first_annotation_is_the_prompt_and_all_are_scored(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder, ["b", "a", "c"])
    (task,) = spin_nerf_tasks(tmp_path, ["room"])
    assert task.reference == "a"
    assert [target.name for target in task.targets] == ["a", "b", "c"]
    assert task.prompt.mask is not None
    assert int(task.prompt.mask.sum()) == 3 * 16
    assert task.num_images is None


def test_lego_is_resized_and_leaves_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "lego_real_night_radial", ["0_00001"])
    write(tmp_path / "leaves (llff)", ["image000"])
    leaves, lego = spin_nerf_tasks(tmp_path, ["lego", "leaves"])
    assert lego.targets[0].mask().shape == (768, 1020)
    assert (lego.prompt.height, lego.prompt.width) == (768, 1020)
    assert lego.prompt.mask is not None
    assert int(lego.prompt.mask.sum()) == 1020 * 2 * 768 // 12
    assert leaves.num_images == 26
    assert "Truck" in spin_nerf_tasks(write(tmp_path / "truck", ["1_0001"]).parent, ["truck"])[0].run_names


def test_each_fault_has_its_sentence(tmp_path: Path) -> None:
    with pytest.raises(SA3DError, match="no scene 'flower'"):
        spin_nerf_tasks(tmp_path, ["flower"])
    with pytest.raises(SA3DError, match=r"neither 'fern \(llff\)' nor 'fern'"):
        spin_nerf_tasks(tmp_path, ["fern"])
    (tmp_path / "fern").mkdir()
    with pytest.raises(SA3DError, match="no annotation"):
        spin_nerf_tasks(tmp_path, ["fern"])
    write_mask(tmp_path / "fern" / "image000.png", np.zeros((4, 4), bool))
    with pytest.raises(SA3DError, match=r"reference mask .*image000.png is empty"):
        spin_nerf_tasks(tmp_path, ["fern"])
