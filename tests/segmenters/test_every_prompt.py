"""Every prompt as users write it, to every segmenter: the table in docs/segmenters.md."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.config import PromptConfig, read_prompts
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.text_finder import TextFinder
from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterOptions
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.text import TextOptions
from tests.analytic import BallViews
from tests.tiny_dino import save_tiny_dino
from tests.tiny_sam import save_mobile_sam, save_tiny_sam
from tests.tiny_transformers_sam import HAS_SAM3, save_tiny_sam2, save_tiny_sam3, save_tiny_sam_hq

BALL, SCALE = 3, 2
"""The ball that is prompted; prompts are for images of twice the size that segmenters see."""
RANDOM: dict[str, Callable[[Path], Path]] = {
    "sam": lambda folder: save_tiny_sam(folder / "tiny.pth"),
    "mobile-sam": lambda folder: save_mobile_sam(folder / "mobile_sam.pt"),
    "sam2": lambda folder: save_tiny_sam2(folder / "sam2"),
    "sam-hq": lambda folder: save_tiny_sam_hq(folder / "sam-hq"),
    "sam3": lambda folder: save_tiny_sam3(folder / "sam3"),
}
"""Networks of the real classes with random weights, tiny where there is such a one: they answer something, and not the
object."""
if not HAS_SAM3:
    del RANDOM["sam3"]
EXTRAS = {"sam3": "transformers", "sam2": "transformers", "sam-hq": "transformers", "mobile-sam": "mobile_sam"}
SEEING = ("grabcut", "oracle")
KINDS = ("point", "points", "box", "scribble", "polyline", "mask", "text", "all")


class Scene(BallViews):
    """The balls, as :func:`read_prompts` wants views."""

    def find(self, view: str | int) -> int:
        return int(str(view).removesuffix(".png"))

    def image_size(self, view: int) -> tuple[int, int]:
        return SCALE * self.height, SCALE * self.width

    def picture(self, view: int, side: int | None = None) -> Tensor:
        """A colour each, unlike the neighbours'."""
        return torch.tensor([[0.3, 0.4, 0.3], [0.8, 0.2, 0.1], [0.2, 0.3, 0.9], [0.9, 0.8, 0.2]])[self.ids(view)]


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene(count=4, height=96, width=128)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> dict[str, Path]:
    """What the segmenters are built from, by name."""
    folder = tmp_path_factory.mktemp("weights")
    for view in range(len(scene)):
        Image.fromarray(scene.ids(view).numpy().astype(np.uint8)).save(folder / scene.name(view))
    return {
        "oracle": folder,
        "text": save_tiny_dino(folder / "dino"),
        **{n: make(folder) for n, make in RANDOM.items()},
    }


@pytest.fixture
def prompt_of(tmp_path: Path, scene: Scene, weights: dict[str, Path]) -> Callable[[str], Prompt]:
    """The prompt that comes of options or a file, by kind."""
    on = (scene.ids(0) == BALL).numpy()
    y, x = np.nonzero(on)
    middle = [float(SCALE * x.mean()), float(SCALE * y.mean())]
    points = [*middle, middle[0] + 6, middle[1]]
    box = [SCALE * x.min(), SCALE * y.min(), SCALE * (x.max() + 1), SCALE * (y.max() + 1)]
    stroke = [[middle[0] - 8, middle[1]], [middle[0] + 8, middle[1] + 4]]

    canvas = np.zeros((SCALE * scene.height, SCALE * scene.width, 3), np.uint8)
    cv2.polylines(canvas, [np.array(stroke, np.int32).reshape(-1, 1, 2)], False, (255, 255, 255), 3)
    canvas[5:8, 5:60] = (255, 0, 0)
    Image.fromarray(canvas).save(tmp_path / "scribble.png")
    # A mask of yet another size.
    Image.fromarray(on).resize((300, 225), Image.Resampling.NEAREST).save(tmp_path / "mask.png")
    entry = {"name": "x", "view": "000.png", "scribble": stroke, "background_scribble": [[5, 5], [60, 5]]}
    (tmp_path / "prompts.json").write_text(json.dumps([entry]))

    def predictor(views: SessionViews) -> MaskPredictor:
        raise AssertionError("one box needs no mask")

    finder = TextFinder(scene, TextOptions(str(weights["text"])), predictor, lambda: MaskGrid(8))

    options: dict[str, dict[str, Any]] = {
        "point": {"points": middle},
        "points": {"points": points, "negative_points": (4, 4)},
        "box": {"box": box},
        "scribble": {"scribble": tmp_path / "scribble.png"},
        "mask": {"mask": tmp_path / "mask.png"},
        "text": {"text": "a red mug", "box_index": 0},
        "all": {"points": points, "negative_points": (4, 4), "box": box, "scribble": tmp_path / "scribble.png"},
    }

    def read(kind: str) -> Prompt:
        if kind == "polyline":
            config = PromptConfig(file=tmp_path / "prompts.json")
        else:
            config = PromptConfig(view="000.png", **options[kind])
        (prompted,) = read_prompts(config, scene, "thing", finder)
        return prompted.views[0]

    return read


def build(name: str, weights: dict[str, Path]) -> Segmenter:
    return make_segmenter(name, SegmenterOptions(sam_checkpoint=weights.get(name), oracle_instances=weights["oracle"]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [*RANDOM, *SEEING])
def test_every_prompt_to_every_segmenter(
    name: str, kind: str, scene: Scene, weights: dict[str, Path], prompt_of: Callable[[str], Prompt]
):
    for package in {EXTRAS.get(name, "torch"), "transformers" if kind == "text" else "torch"}:
        pytest.importorskip(package, reason="needs the extras")
    session = SegmentationSession(scene, build(name, weights), MaskGrid(8), SessionSettings())
    prompt = prompt_of(kind)
    try:
        candidates = session.prompt(0, prompt)
    except SA3DError as error:
        # Random weights may find nothing, and so may a random detector's box.
        assert (name in RANDOM or kind == "text") and "selects nothing" in str(error)
        candidates = session.segmenter.predict(session.predictor.embed(0), prompt.resized(scene.height, scene.width))
    assert candidates.masks.shape[1:] == (scene.height, scene.width)
    assert len(candidates.masks) == len(candidates.scores) >= 1
    if kind == "mask" or (name in SEEING and kind != "text"):
        truth = scene.ids(0) == BALL
        mask = session.mask_of(0)
        assert (mask & truth).sum() / (mask | truth).sum() > (0.99 if name == "oracle" else 0.8)
