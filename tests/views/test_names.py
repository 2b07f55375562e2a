"""Search for training views by the names and numbers that users type."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.views.names import find_view


@pytest.mark.parametrize(
    ("names", "view", "found"),
    [
        (["frame_2.png", "frame_0.png"], "frame_0.png", 1),
        (["frame_2.png", "frame_0.png"], "images_4/frame_0.png", 1),
        (["frame_2.png", "frame_0.png"], "frame_0", 1),
        (["frame_2.png", "frame_0.png"], "0", 0),
        (["frame_2.png", "frame_0.png"], 1, 1),
        # A number that is the name of an image is not an index; an integer of Python or JSON is one.
        (["3.png", "1.png", "0.png"], "0", 2),
        (["3.png", "1.png", "0.png"], "1.png", 1),
        (["3.png", "1.png", "0.png"], 0, 0),
        (["0003.jpg", "0001.jpg"], "3", 0),
        (["0003.jpg", "0001.jpg"], "00001", 1),
        (["left/1.png", "right/1.png"], "right/1.png", 1),
        (["left/1.png", "right/1.png"], "/data/left/1.png", 0),
        (["1.v2.png", "1.png"], "1.v2", 0),
    ],
)
def test_a_view_is_found_by_its_name(names: list[str], view: str | int, found: int):
    assert find_view(view, [Path("/data") / name for name in names]) == found


@pytest.mark.parametrize(
    ("names", "view", "why"),
    [
        # An image held out for evaluation, not the training view of that index.
        (["0000.png", "0002.png"], "1", "named 1: did you mean 0000.png, 0002.png"),
        (["0.png", "2.png"], "1", "named 1: did you mean"),
        (["left/1.png", "right/1.png"], "1.png", "2 training images go by 1.png: say which, as in left/1.png, right"),
        (["left/1.png", "right/1.png"], "1", "2 training images go by 1: say which"),
        (["1.png", "01.png"], "001", "2 training images go by 001: say which, as in data/1.png, data/01.png"),
        (["frame_2.png"], "frame_3.png", "did you mean frame_2.png"),
        (["frame_2.png"], "1", "there is no training view 1: there are 1, counted from 0"),
        (["frame_2.png"], -1, "counted from 0"),
        (["frame_2.png"], "", "did you mean frame_2.png"),
    ],
)
def test_a_view_that_is_not_there_is_no_other(names: list[str], view: str | int, why: str):
    with pytest.raises(SA3DError, match=re.escape(why)):
        find_view(view, [Path("/data") / name for name in names])
