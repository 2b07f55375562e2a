"""Annotations' names for images."""

from __future__ import annotations

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.evaluation.run_images import place_of

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
