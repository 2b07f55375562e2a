"""NVOS's folders as tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.nvos import SCENES, nvos_tasks
from tests.evaluation.miniature import write_mask


def write(folder: Path, scene: str, length: int = 400) -> Path:
    """A scene with strokes five pixels thick and this long, without images of any scene."""
    on, beside, truth = (np.zeros((60, 500), bool) for _ in range(3))
    on[8:13, 10 : 10 + length] = True
    beside[38:43, 10 : 10 + length] = True
    truth[5:20, 5:450] = True
    write_mask(folder / "masks" / scene / "IMG_2_mask.png", truth)
    write_mask(folder / "masks" / scene / "IMG_2.png", truth)
    write_mask(folder / "reference_image" / scene / "IMG_1.png", truth)
    write_mask(folder / "scribbles" / scene / "pos_0_IMG_1.png", on)
    write_mask(folder / "scribbles" / scene / "neg_0_IMG_1.png", beside)
    write_mask(folder / "scribbles" / scene / "vis_0_IMG_1.png", on)
    return folder


def test_there_are_eight() -> None:
    assert len(SCENES) == 8


def test_a_scene_is_read(tmp_path: Path) -> None:
    (task,) = nvos_tasks(write(tmp_path, "horns_left"), ["horns_left"], seed=777)
    assert task.reference == "IMG_1"
    assert [(target.name, target.path.name) for target in task.targets] == [("IMG_2", "IMG_2_mask.png")]
    assert {"horns", "horns_left"} <= set(task.run_names)
    assert "horns_center" not in task.run_names
    assert (task.prompt.height, task.prompt.width) == (60, 500)


def test_points_are_drawn_from_the_skeleton_by_the_seed(tmp_path: Path) -> None:
    write(tmp_path, "fern")
    prompts = [nvos_tasks(tmp_path, ["fern"], seed)[0].prompt for seed in (777, 777, *range(40))]
    assert (prompts[0].points == prompts[1].points).all()
    assert any(len(prompt.points) != len(prompts[0].points) for prompt in prompts)
    # Nearly all lie in the middle row of their stroke of five; a skeleton bends at its ends.
    assert np.mean([float(row == 10) for prompt in prompts for row in prompt.positive[:, 1]]) > 0.9
    assert np.mean([float(row == 40) for prompt in prompts for row in prompt.negative[:, 1]]) > 0.9
    # 400 pixels of skeleton: 8 positive and 2 negative points each time, on average over 40 seeds.
    assert np.mean([len(prompt.positive) for prompt in prompts[2:]]) == pytest.approx(8, abs=1.5)
    assert np.mean([len(prompt.negative) for prompt in prompts[2:]]) == pytest.approx(2, abs=0.8)


def test_each_fault_has_its_sentence(tmp_path: Path) -> None:
    write(tmp_path, "fern")
    with pytest.raises(SA3DError, match=r"no scene 'room'.*fern, flower"):
        nvos_tasks(tmp_path, ["room"], 777)
    with pytest.raises(SA3DError, match=r"no folder .*flower.*--scenes"):
        nvos_tasks(tmp_path, [], 777)
    write_mask(tmp_path / "scribbles" / "fern" / "neg_0_IMG_1.png", np.ones((30, 250), bool))
    with pytest.raises(SA3DError, match=r"differ in size \(500 x 60 and 250 x 30\)"):
        nvos_tasks(tmp_path, ["fern"], 777)
    (tmp_path / "scribbles" / "fern" / "neg_0_IMG_1.png").unlink()
    with pytest.raises(SA3DError, match=r"no neg\*.png in"):
        nvos_tasks(tmp_path, ["fern"], 777)
    (tmp_path / "masks" / "fern" / "IMG_2_mask.png").unlink()
    with pytest.raises(SA3DError, match=r"no \*_mask.png in"):
        nvos_tasks(tmp_path, ["fern"], 777)
