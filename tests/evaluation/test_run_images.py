"""The images of runs, and annotations' names for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.run_images import RunImages, place_of
from tests.test_datamanager import make, write_scene

STEMS = ["00001", "00002", "IMG_3", "image010"]


def test_names_as_they_are() -> None:
    assert place_of("IMG_3", STEMS) == 2
    assert place_of("image010", STEMS, num_images=4) == 3


@pytest.mark.parametrize("name", ["0_00002", "1_00002"])
def test_the_mark_of_a_split_is_taken_off(name: str) -> None:
    assert place_of(name, STEMS) == 1


def test_images_are_counted_where_the_scene_says_so() -> None:
    assert place_of("image002", STEMS, num_images=4) == 2


@pytest.mark.parametrize(("name", "count"), [("image002", None), ("image004", 4), ("2_00002", 4), ("img_3", 4)])
def test_nothing_is_guessed(name: str, count: int | None) -> None:
    with pytest.raises(SA3DError, match=f"no image named {name} "):
        place_of(name, STEMS, count)


def test_counting_takes_all_images() -> None:
    with pytest.raises(SA3DError, match="counts among 20 images, but the run's data set has 4"):
        place_of("image002", STEMS, num_images=20)


def test_two_of_a_name_are_refused() -> None:
    with pytest.raises(SA3DError, match="more than one image named a"):
        place_of("a", ["a", "a"])


@pytest.mark.parametrize("config_type", [VanillaDataManagerConfig, FullImageDatamanagerConfig])
def test_images_of_training_and_of_evaluation_are_found(config_type: type, tmp_path: Path) -> None:
    images = RunImages(make(config_type, write_scene(tmp_path / "scene", [(64, 48)] * 4)))
    assert [images.find(str(name)).training_view for name in range(4)] == [0, 1, 2, None]
    last = images.find("image003", num_images=4)
    assert last.path.name == "3.png"
    assert last.camera.shape == (1,)
    # As LLFF's sizes are rounded when they shrink; but not turned, and not cut.
    last.check_shape(96, 129)
    for height, width in ((64, 48), (48, 70)):
        with pytest.raises(SA3DError, match=f"3.png is {width} x {height} pixels and the run's image 64 x 48"):
            last.check_shape(height, width)


def test_images_without_their_distortion_are_not_those_that_were_annotated(tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "scene", [(64, 48)] * 4, k1=0.2)
    with pytest.raises(SA3DError, match="image_undistorter"):
        RunImages(make(FullImageDatamanagerConfig, scene))
    assert RunImages(make(VanillaDataManagerConfig, scene)).find("0").training_view == 0
