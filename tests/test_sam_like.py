"""The stand-in that errs as SAM does, on a synthetic image with known objects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.sam_like import OBJECT, PART, WHOLE, SamLike
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import SegmenterImage

HEIGHT, WIDTH = 120, 160
BOXES = {
    1: ([0.0, 0.0, 0.0], [60.0, 40.0, 1.0]),
    2: ([60.0, 0.0, 0.0], [80.0, 40.0, 1.0]),
    3: ([100.0, 40.0, 0.0], [130.0, 70.0, 1.0]),
}
"""Corners of two touching blocks side by side, and of one apart, in pixels of the image from (20, 30)."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Id maps of twenty views, all alike."""
    folder = tmp_path_factory.mktemp("instances")
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number, ((x0, y0, _), (x1, y1, _)) in BOXES.items():
        ids[30 + int(y0) : 30 + int(y1), 20 + int(x0) : 20 + int(x1)] = number
    for view in range(20):
        Image.fromarray(ids).save(folder / f"{view:02d}.png")
    return folder


def stand_in(folder: Path, **options: object) -> SamLike:
    y, x = np.meshgrid(np.arange(HEIGHT) - 29.5, np.arange(WIDTH) - 19.5, indexing="ij")
    surface = np.stack([x, y, np.full_like(x, 0.5)], axis=-1)
    return SamLike(folder, BOXES, lambda name: surface, **options)  # type: ignore[arg-type]


def ask(segmenter: SamLike, view: int, points: list, negative: list | None = None, scale: int = 1):
    image = SegmenterImage(torch.zeros(scale * HEIGHT, scale * WIDTH, 3), f"{view:02d}.png")
    prompt = Prompt.from_points(HEIGHT, WIDTH, points, negative or []).moved(image.height, image.width)
    return segmenter.predict(segmenter.embed(image), prompt)


def area(mask: torch.Tensor) -> float:
    return float(mask.float().mean()) * HEIGHT * WIDTH


def test_three_levels_in_token_order(folder: Path):
    answer = ask(stand_in(folder), 0, [(30, 50)])
    assert answer.single is None
    assert [area(mask) for mask in answer.masks] == pytest.approx([1200, 2400, 3200], rel=0.06)
    # The part is the half of the box, split along its longest side, that contains the point.
    assert answer.masks[PART, 50, 25] and not answer.masks[PART, 50, 70]
    assert ((answer.scores > 0.5) & (answer.scores < 1)).all()


def test_the_favourite_of_one_point_is_drawn_for_the_view(folder: Path):
    counts = np.zeros(3)
    for seed in range(30):
        segmenter = stand_in(folder, favourites=(0.2, 0.6, 0.2), seed=seed)
        for view in range(20):
            answer = ask(segmenter, view, [(30, 50)])
            counts[int(answer.scores.argmax())] += 1
            assert torch.equal(answer.scores, ask(segmenter, view, [(30, 50)]).scores), "drawn for the view, once"
    assert counts / counts.sum() == pytest.approx([0.2, 0.6, 0.2], abs=0.05)


@pytest.mark.parametrize(
    ("points", "negative", "level"),
    [([(30, 50), (35, 60)], [], PART), ([(30, 50), (70, 60)], [], OBJECT), ([(30, 50), (90, 50)], [], WHOLE)],
)
def test_several_points_are_answered_by_the_smallest_level_that_holds_them(
    folder: Path, points: list, negative: list, level: int
):
    answers = [ask(stand_in(folder, seed=seed), view, points, negative) for seed in range(5) for view in range(20)]
    hits = [int(answer.scores[:3].argmax()) == level for answer in answers]
    assert np.mean(hits) == pytest.approx(0.8, abs=0.1)
    for answer in answers:
        assert answer.single == 3
        favourite = answer.masks[int(answer.scores[:3].argmax())]
        assert float((answer.masks[3] ^ favourite).float().mean()) < 0.02


def test_a_level_with_a_point_beside_the_object_is_out(folder: Path):
    answers = [ask(stand_in(folder, seed=seed), 0, [(30, 50), (70, 60)], [(90, 50)]) for seed in range(40)]
    assert np.mean([int(answer.scores[:3].argmax()) == OBJECT for answer in answers]) == pytest.approx(0.8, abs=0.15)


def test_points_near_the_outline_fall_on_the_neighbour_now_and_then(folder: Path):
    # The point is two pixels away from the neighbour, or eight in an image four times as large.
    shares = []
    for scale in (1, 4):
        areas = [area(ask(stand_in(folder, seed=seed), 0, [(78, 50)], scale=scale).masks[OBJECT]) for seed in range(40)]
        shares.append(float(np.mean([object_area < 1600 for object_area in areas])))
    assert shares[0] == pytest.approx(0.5, abs=0.25)
    assert shares[1] == 0.0


def test_outlines_wobble_by_a_pixel_of_the_image_that_is_shown(folder: Path):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth = torch.from_numpy((x >= 20) & (x < 80) & (y >= 30) & (y < 70))
    error_shares = []
    for scale in (1, 2):
        mask = ask(stand_in(folder), 3, [(30, 50)], scale=scale).masks[OBJECT]
        enlarged = truth.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        error_shares.append(float((mask ^ enlarged).float().mean()))
    assert 0 < error_shares[1] < 0.75 * error_shares[0]
    assert error_shares[0] < 200 / (HEIGHT * WIDTH)
