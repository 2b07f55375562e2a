"""The overview image: its size, masks, prompts and states."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sa3d_nerfstudio.overview import (
    BOX,
    CELL,
    GAP,
    NEGATIVE,
    PAPER,
    POSITIVE,
    STATE_COLORS,
    PromptPanel,
    ViewPanel,
    write_overview,
)
from sa3d_nerfstudio.prompts.prompt import Prompt

HEIGHT, WIDTH = 60, 80
GRAY = torch.full((HEIGHT, WIDTH, 3), 0.5)
DISC = ((torch.arange(HEIGHT)[:, None] - 30) ** 2 + (torch.arange(WIDTH) - 40) ** 2 < 15**2).float()
NOTHING = torch.zeros(HEIGHT, WIDTH)


def asked(**prompt: object) -> PromptPanel:
    prompted = Prompt.from_points(HEIGHT, WIDTH, **(prompt or {"positive": [(40, 30)]}))  # type: ignore[arg-type]
    return PromptPanel(GRAY, DISC > 0.5, prompted, "images/frame_1.jpg")


def view(mask: torch.Tensor = DISC, status: str = "used", rgb: torch.Tensor = GRAY) -> ViewPanel:
    return ViewPanel(rgb, mask, "images/frame_1.jpg", status)


def write(path: Path, *args, **kwargs) -> np.ndarray:
    write_overview(path, *args, **kwargs)
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def holds(picture: np.ndarray, color: tuple[int, int, int], least: int = 20) -> bool:
    return bool((np.abs(picture - color).max(axis=-1) <= 2).sum() >= least)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "overview.png"


def test_page_grows_by_rows(path: Path) -> None:
    shapes = [write(path, asked(), [view()] * number).shape for number in (0, 1, 4, 5, 9)]
    assert {shape[1] for shape in shapes} == {GAP + 4 * (CELL + GAP)}
    heights = [shape[0] for shape in shapes]
    row_height = heights[1] - heights[0]
    assert row_height >= GAP + CELL * HEIGHT / WIDTH
    assert [height - heights[0] for height in heights] == [0, row_height, row_height, 2 * row_height, 3 * row_height]
    assert not [file for file in path.parent.iterdir() if file != path]


def test_columns(path: Path) -> None:
    assert write(path, asked(), [view()] * 6, columns=6).shape[1] == GAP + 6 * (CELL + GAP)
    narrow = write(path, asked(), [view()] * 2, columns=1)
    assert narrow.shape[1] >= GAP + 2 * CELL, "the prompt view's row must fit"


def test_mask_changes_the_picture(path: Path) -> None:
    pictures = [write(path, asked(), [view(mask)]) for mask in (NOTHING, DISC, 1 - DISC)]
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()
    disc = pictures[1][-CELL * HEIGHT // WIDTH - GAP - 28 : -GAP - 28, GAP : GAP + CELL]
    center, corner = disc[120, 160], disc[5, 5]
    assert center[2] > center[0] + 20, "the object is tinted"
    assert corner.max() - corner.min() <= 3, "the rest keeps its hue"
    assert corner.max() < 127, "and is muted"
    assert holds(disc, PAPER), "a contour lies between the two"


def test_contour_lies_outside_the_mask(path: Path) -> None:
    picture = write(path, asked(), [view()])
    disc = picture[-CELL * HEIGHT // WIDTH - GAP - 28 : -GAP - 28, GAP : GAP + CELL]
    y, x = np.nonzero((np.abs(disc - PAPER).max(axis=-1) <= 2) & (np.indices(disc.shape[:2])[0] > 10))
    distance = np.hypot(y - 122, x - 162)
    assert distance.min() >= 57.5
    assert distance.max() <= 66


def test_unknown_is_not_the_object(path: Path) -> None:
    unknown = torch.full((HEIGHT, WIDTH), torch.nan)
    assert np.array_equal(write(path, asked(), [view(unknown)]), write(path, asked(), [view(NOTHING)]))


def test_threshold(path: Path) -> None:
    faint = [view(0.3 * DISC)]
    assert np.array_equal(write(path, asked(), faint), write(path, asked(), [view(NOTHING)]))
    assert not np.array_equal(write(path, asked(), faint, threshold=0.2), write(path, asked(), faint))


def test_prompts_are_drawn_where_they_lie(path: Path) -> None:
    picture = write(path, asked(positive=[(20, 30)], negative=[(60, 10)], box=[10, 5, 70, 55]), [])
    scale = 1.5 * CELL / WIDTH

    def around(x: float, y: float) -> np.ndarray:
        column, row = GAP + round((x + 0.5) * scale), GAP + round((y + 0.5) * scale)
        return picture[row - 12 : row + 12, column - 12 : column + 12]

    assert holds(around(20, 30), POSITIVE)
    assert holds(around(60, 10), NEGATIVE)
    assert not holds(around(60, 10), POSITIVE)
    assert holds(around(9.5, 30), BOX)
    assert holds(around(40, 54.5), BOX)
    assert not holds(write(path, asked(), []), NEGATIVE)


def test_a_box_thinner_than_a_pixel_is_drawn(path: Path) -> None:
    prompt = Prompt.from_points(3000, 4000, box=[1000, 500, 1001, 2500])
    assert holds(write(path, replace(asked(), prompt=prompt), []), BOX)


@pytest.mark.parametrize("state", STATE_COLORS)
def test_states_are_told_apart(path: Path, state: str) -> None:
    panels = [view(status=other) for other in STATE_COLORS if other != state and other != "prompt"]
    picture = write(path, asked(), [*panels, view(status=f"{state}: for a reason")])
    # Only the row of views is compared, because the summary shows every state that occurs.
    assert holds(picture[-CELL * HEIGHT // WIDTH - GAP :], STATE_COLORS[state])
    if state != "prompt":
        assert not holds(write(path, asked(), panels), STATE_COLORS[state])


def test_reason_and_name_change_the_picture(path: Path) -> None:
    pictures = [write(path, asked(), [view(status=f"rejected: {reason}")]) for reason in ("IoU is 0.1", "IoU is 0.2")]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_odd_sizes(path: Path) -> None:
    """Portraits, panoramas, a single pixel, masks of another size, names that are too long."""
    views = [
        ViewPanel(torch.rand(300, 40, 3), torch.rand(20, 30), "ü" * 200, "skipped: " + "why " * 50),
        ViewPanel(torch.rand(10, 400, 3), torch.rand(10, 400), "b.jpg", "used"),
        ViewPanel(torch.rand(1, 1, 3), torch.rand(1, 1), "", "something else"),
    ]
    picture = write(path, asked(), views, title="a title that is longer than the place for it " * 3)
    assert picture.shape[0] < 1200


def test_nothing_is_left_of_a_failure(path: Path) -> None:
    write(path, asked(), [view()])
    before = path.read_bytes()
    with pytest.raises(RuntimeError):
        write_overview(path, asked(), [view(rgb=torch.zeros(HEIGHT, WIDTH, 3).to_sparse())])
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["overview.png"]


def test_what_was_rendered_at_full_size_is_framed(path: Path) -> None:
    plain = write(path, asked(), [view()])
    framed = write(path, asked(), [replace(view(), window=(0.25, 0.25, 0.75, 0.75))])
    changed = np.argwhere(np.abs(plain - framed).max(axis=-1) > 20)
    (top, left), (bottom, right) = changed.min(axis=0), changed.max(axis=0)
    assert abs((right - left) / (bottom - top) - WIDTH / HEIGHT) < 0.05
    assert abs((right - left) / CELL - 0.5) < 0.03
