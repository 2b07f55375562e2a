"""GrabCut finds things by their colour, by their depth, and by what is known of them already."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, embed_all, predict_all
from sa3d_nerfstudio.segmenters.grabcut import segmenter as grabcut
from sa3d_nerfstudio.segmenters.registry import make_segmenter

HEIGHT, WIDTH = 120, 160
Y, X = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
DISC = (X - 60) ** 2 + (Y - 70) ** 2 < 25**2
BLOCK = (X >= 100) & (X < 140) & (Y >= 45) & (Y < 95)


def noisy(rgb: torch.Tensor, amount: float = 0.02) -> torch.Tensor:
    return (rgb + amount * torch.randn(rgb.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


def colored() -> torch.Tensor:
    """A red disc beside a blue block on gray."""
    rgb = torch.full((HEIGHT, WIDTH, 3), 0.5)
    rgb[DISC] = torch.tensor([0.7, 0.3, 0.25])
    rgb[BLOCK] = torch.tensor([0.25, 0.35, 0.7])
    return noisy(rgb)


def table_depth(*things: torch.Tensor) -> torch.Tensor:
    """A table that recedes upwards, with things that stand out of it."""
    depth = 1 / (0.3 + 0.4 * Y / HEIGHT)
    for entry in things:
        depth = torch.where(entry, 0.8 * depth, depth)
    return depth


def iou(item: torch.Tensor, other: torch.Tensor) -> float:
    return float((item & other).sum() / (item | other).sum())


def ask(rgb: torch.Tensor, depth: torch.Tensor | None = None, prompt: Prompt | None = None, **asked: Any) -> Candidates:
    segmenter = make_segmenter("grabcut")
    embedding = segmenter.embed(SegmenterImage(rgb, "a.png", depth))
    return segmenter.predict(embedding, prompt or Prompt.from_points(rgb.shape[0], rgb.shape[1], **asked))


@pytest.mark.parametrize(
    ("asked", "truth"),
    [
        ({"positive": [(60, 70)]}, DISC),
        ({"positive": [(120, 70)]}, BLOCK),
        ({"positive": [(60, 70), (50, 60), (70, 85)], "negative": [(120, 70)]}, DISC),
        ({"positive": [(60, 70), (120, 70)]}, DISC | BLOCK),
        ({"box": [35, 45, 85, 95]}, DISC),
        ({"box": [100, 45, 140, 95]}, BLOCK),
        ({"box": [30, 40, 145, 100], "positive": [(120, 70)], "negative": [(60, 70)]}, BLOCK),
    ],
)
def test_by_color(asked: dict, truth: torch.Tensor) -> None:
    answer = ask(colored(), **asked)
    assert answer.masks.shape == (3, HEIGHT, WIDTH)
    assert answer.masks.dtype == torch.bool
    assert answer.scores.dtype == torch.float32
    assert iou(answer.best(), truth) > 0.9
    areas = answer.masks.sum(dim=(1, 2)).tolist()
    assert areas == sorted(areas), "from part to whole"


def test_by_depth_alone() -> None:
    """Two things of one colour on a table of the same: nothing but depth tells them apart."""
    gray = noisy(torch.full((HEIGHT, WIDTH, 3), 0.5))
    depth = table_depth(DISC, BLOCK)
    for entry, click in ((DISC, (60, 70)), (BLOCK, (120, 70))):
        assert iou(ask(gray, depth, positive=[click]).best(), entry) > 0.8
        assert iou(ask(gray, None, positive=[click]).best(), entry) < 0.8


def test_depth_tells_from_what_looks_alike() -> None:
    """A red thing before a red wall."""
    rgb = noisy(torch.tensor([0.7, 0.3, 0.25]).expand(HEIGHT, WIDTH, 3))
    assert iou(ask(rgb, torch.where(DISC, 1.0, 2.0), positive=[(60, 70)]).best(), DISC) > 0.9


def test_prior_rules() -> None:
    """A rendered mask says which of the two is meant although the click lies on both of their colours' border."""
    rgb = colored()
    for entry in (DISC, BLOCK):
        inside = torch.argwhere(entry)[0].flip(0)
        prior = entry.float()
        answer = ask(rgb, prompt=Prompt.from_points(HEIGHT, WIDTH, [inside.tolist()], prior=prior))
        assert iou(answer.best(), entry) > 0.9


def test_prior_completes_what_it_does_not_know() -> None:
    prior = DISC.float()
    prior[:, 60:] = torch.nan
    answer = ask(colored(), prompt=Prompt.from_points(HEIGHT, WIDTH, [(45, 70)], prior=prior))
    assert iou(answer.best(), DISC) > 0.9


def test_prior_stops_where_it_knows_better() -> None:
    """Half of an evenly red thing is known not to be the object: colour alone would take both."""
    prior = (DISC & (X < 60)).float()
    answer = ask(colored(), prompt=Prompt.from_points(HEIGHT, WIDTH, [(45, 70)], prior=prior))
    assert iou(answer.best(), DISC & (X < 60)) > 0.8


@pytest.mark.parametrize("value", [0.0, 0.3, float("nan")])
def test_prior_without_an_object_is_none(value: float) -> None:
    prompt = Prompt.from_points(HEIGHT, WIDTH, [(60, 70)], prior=torch.full((HEIGHT, WIDTH), value))
    answer, without = ask(colored(), prompt=prompt), ask(colored(), positive=[(60, 70)])
    assert torch.equal(answer.masks, without.masks)


def test_clicks_are_kept() -> None:
    """Positive points are in every candidate, negative points in none, however odd."""
    positive, negative = [(60, 70), (120, 70), (5, 5)], [(62, 78), (130, 90)]
    masks = ask(colored(), table_depth(DISC, BLOCK), positive=positive, negative=negative).masks
    for x, y in positive:
        assert masks[:, y, x].all()
    for x, y in negative:
        assert not masks[:, y, x].any()


def test_nothing_outside_the_box() -> None:
    masks = ask(colored(), box=[50, 60, 120, 100]).masks
    assert masks.any()
    masks[:, 60:100, 50:120] = False
    assert not masks.any()


def test_holes() -> None:
    """A pinhole is noise, the hole of a ring is not."""
    ring = DISC & ((X - 60) ** 2 + (Y - 70) ** 2 > 10**2)
    rgb = torch.full((HEIGHT, WIDTH, 3), 0.5)
    rgb[ring] = torch.tensor([0.7, 0.3, 0.25])
    rgb[70, 43] = 0.5
    mask = ask(noisy(rgb), positive=[(42, 80), (78, 60)], negative=[(60, 70)]).best()
    assert mask[70, 43]
    assert not mask[68:73, 58:63].any()
    assert iou(mask, ring) > 0.9


def test_deterministic_and_stateless() -> None:
    segmenter = make_segmenter("grabcut")
    images = [SegmenterImage(colored(), "a.png", table_depth(DISC)), SegmenterImage(colored().flip(1), "b.png")]
    prompts = [Prompt.from_points(HEIGHT, WIDTH, [(60, 70)]), Prompt.from_points(HEIGHT, WIDTH, [(99, 70)])]
    embeddings = [segmenter.embed(image) for image in images]
    first = [segmenter.predict(*pair) for pair in zip(embeddings, prompts, strict=True)]
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    for number in (1, 0, 1):
        fresh = make_segmenter("grabcut")
        for again in (
            segmenter.predict(embeddings[number], prompts[number]),
            fresh.predict(fresh.embed(images[number]), prompts[number]),
        ):
            assert torch.equal(again.masks, first[number].masks)
            assert torch.equal(again.scores, first[number].scores)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (17, 400), (480, 640), (33, 32)])
def test_sizes(height: int, width: int) -> None:
    rgb = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0))
    prompts: list[dict[str, Any]] = [
        {"positive": [(width - 1, 0)]},
        {"box": [0, 0, width, height]},
        {"box": [0.4, 0.4, 0.6, 0.6]},
    ]
    for asked in prompts:
        answer = ask(rgb, 1 + rgb[..., 0], **asked)
        assert answer.masks.shape == (3, height, width)
        assert answer.scores.isfinite().all()


def test_larger_images_are_cut_finely() -> None:
    big = torch.nn.functional.interpolate(colored().permute(2, 0, 1)[None], scale_factor=4, mode="bilinear")
    truth = DISC.repeat_interleave(4, 0).repeat_interleave(4, 1)
    answer = ask(big[0].permute(1, 2, 0), positive=[(240, 280)])
    assert answer.masks.shape == (3, 4 * HEIGHT, 4 * WIDTH)
    assert iou(answer.best(), truth) > 0.93


@pytest.mark.parametrize("depth", [torch.zeros(HEIGHT, WIDTH), torch.full((HEIGHT, WIDTH), 1e9), -table_depth(DISC)])
def test_odd_depths(depth: torch.Tensor) -> None:
    answer = ask(colored(), depth, positive=[(60, 70)])
    assert answer.scores.isfinite().all()
    assert answer.best()[70, 60]


def test_missing_depths_do_no_harm() -> None:
    """A field renders infinity, or nothing, where rays miss everything."""
    depth = torch.where(DISC, 1.0, 2.0)
    for missing in (torch.inf, torch.nan):
        depth[:30] = missing
        assert iou(ask(colored(), depth, positive=[(60, 70)]).best(), DISC) > 0.9


def test_a_prompt_that_selects_nothing() -> None:
    with pytest.raises(SA3DError, match="add a positive point or a box"):
        ask(colored(), negative=[(3, 3)])


@pytest.mark.parametrize(("scene", "least"), [("desk", 0.75), ("toys", 0.75), ("shelf", 0.7)])
def test_shared_scenes(shared_dir: Path, scene: str, least: float) -> None:
    """Photographs without depth, three points and one negative per object."""
    folder = shared_dir / "scenes" / scene
    found = []
    for entry in json.loads((folder / "prompts.json").read_text())["objects"]:
        rgb = torch.from_numpy(np.asarray(Image.open(folder / entry["frame"]))).float() / 255
        truth = torch.from_numpy(np.asarray(Image.open(folder / entry["mask"]))) == entry["id"]
        answer = ask(rgb, positive=entry["points"], negative=entry["negative_points"])
        found.append(iou(answer.best(), truth))
    assert np.mean(found) > least


@pytest.mark.parametrize(("step", "what"), [("see", "embedded"), ("score_regions", "asked about")])
def test_several_images_are_worked_on_at_once(step: str, what: str, monkeypatch: pytest.MonkeyPatch):
    """Each waits for the others in the middle of its work, and what comes of it is what it is alone."""
    images = [SegmenterImage(colored().roll(shift, 1), f"{shift}.png", table_depth(DISC)) for shift in (0, 5, 10)]
    prompts = [Prompt.from_points(HEIGHT, WIDTH, [(60 + shift, 70)]) for shift in (0, 5, 10)]
    segmenter = grabcut.GrabCutSegmenter(threads=3)
    alone = [segmenter.embed(image) for image in images]
    expected = [segmenter.predict(*pair) for pair in zip(alone, prompts, strict=True)]
    all_there = threading.Barrier(3, timeout=300)
    original: Callable[..., Any] = getattr(grabcut, step)

    def meet(*args: Any) -> Any:
        all_there.wait()
        return original(*args)

    monkeypatch.setattr(grabcut, step, meet)
    embeddings = embed_all(segmenter, images) if what == "embedded" else alone
    monkeypatch.setattr(grabcut, step, meet if what == "asked about" else original)
    found = predict_all(segmenter, list(zip(embeddings, prompts, strict=True)))
    for each, other in zip(found, expected, strict=True):
        assert torch.equal(each.masks, other.masks)
        assert torch.equal(each.scores, other.scores)
