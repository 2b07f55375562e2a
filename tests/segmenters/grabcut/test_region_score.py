"""The region that looks like the thing that was meant scores best."""

from __future__ import annotations

import numpy as np
import torch

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.grabcut.image_cues import see
from sa3d_nerfstudio.segmenters.grabcut.placed_prompt import place
from sa3d_nerfstudio.segmenters.grabcut.region_score import best_regions, iou, score_regions

Y, X = np.indices((60, 80))


def disc(radius: float, x: int = 40, y: int = 30) -> np.ndarray:
    return (X - x) ** 2 + (Y - y) ** 2 < radius**2


CUES = see(np.where(disc(12)[..., None], np.array([0.8, 0.2, 0.2]), np.array([0.3, 0.4, 0.5])), None)


def best(regions: list[np.ndarray], prompt: Prompt) -> int:
    scores = score_regions(CUES, place(prompt, (60, 80)), np.stack(regions))
    assert ((scores >= 0) & np.isfinite(scores)).all()
    return int(scores.argmax())


def test_the_thing_itself() -> None:
    click = Prompt.from_points(60, 80, [(40, 30)])
    ragged = disc(12) ^ (np.random.default_rng(0).random(X.shape) < 0.2)
    assert best([disc(5), disc(12), disc(20), ragged, disc(12) & (X < 40), X < 45, X < 0], click) == 1


def test_a_prior_decides_between_things_that_look_the_same() -> None:
    things = [disc(9, 20), disc(9, 60)]
    cues = see(np.where((things[0] | things[1])[..., None], 0.8, 0.3) * np.ones(3), None)
    for number, entry in enumerate(things):
        prior = torch.from_numpy(np.where(X[entry].max() - 5 > X, entry, np.nan)).float()
        scores = score_regions(
            cues, place(Prompt.from_points(60, 80, [(1, 1)], prior=prior), (60, 80)), np.stack(things)
        )
        assert scores.argmax() == number


def test_a_box_is_filled() -> None:
    assert best([disc(12), disc(12) & (Y < 30)], Prompt.from_points(60, 80, box=[28, 18, 53, 43])) == 0


def test_distinct() -> None:
    regions = np.stack([disc(12), disc(12.1), disc(20), disc(5)])
    assert iou(regions[0], regions[1]) > 0.9
    assert best_regions(regions, np.array([0.9, 0.95, 0.5, 0.4]), 3) == [3, 1, 2]
    assert best_regions(regions[:2], np.array([0.9, 0.95]), 3) == [0, 1], "the same rather than fewer"
    assert iou(X < 0, X < 0) == 0
