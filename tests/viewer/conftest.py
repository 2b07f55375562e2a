"""The viewer of ``ns-train sa3d``, and a browser to open it with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sa3d_nerfstudio.segmenters.text import text_available
from tests.tiny_dino import save_tiny_dino
from tests.viewer.browser import CHROMIUM, FLAGS, SIZE, Tab, server

# Small renders: two cores share a browser without a GPU and a radiance field.
OPTIONS = ["--pipeline.segmenter", "grabcut", "--pipeline.working-size", 64, "--pipeline.max-passes", 2]

READ_ON = re.compile(
    r"Task exception was never retrieved\nfuture: [^\n]*_message_producer\(\)[^\n]*StopAsyncIteration[^\n]*\n"
    r"Traceback.*?\nStopAsyncIteration\n",
    re.DOTALL,
)
"""What viser 1.0 may print when it ends while a tab is open: what sends its messages asks for one more than there
are."""


@dataclass
class Place:
    """Where things are on the canvas when the tab opens: at the first training view."""

    ball: tuple[float, float]
    away: tuple[float, float]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Remember which test was left with a viewer that the others of its file share."""
    report = yield
    if report.failed and "training" in getattr(item, "fixturenames", ()):
        vars(item.parent).setdefault("left_by", item.name)
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A viewer that hangs would have every test wait for it until its time is up."""
    name = vars(item.parent).get("left_by")
    if name is not None and "training" in getattr(item, "fixturenames", ()):
        pytest.fail(f"{name} has failed with the viewer that this test goes on with", pytrace=False)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


@pytest.fixture(scope="module")
def training(tiny_run: Path, folder: Path) -> Iterator[str]:
    """Address of the viewer of ``ns-train sa3d`` without a prompt."""
    text = ["--pipeline.text-model", save_tiny_dino(folder / "dino", wider=2.0)] if text_available() else []
    words = ["ns-train", "sa3d", "--load-dir", tiny_run, "--output-dir", folder, "--timestamp", "S", *OPTIONS, *text]
    log = folder / "train.log"
    with server(log, *words) as address:
        yield address
    # Ctrl-C is how one leaves it.
    printed = READ_ON.sub("", log.read_text())
    assert "Traceback" not in printed and "terminate called" not in printed, printed[-3000:]


@pytest.fixture(scope="module")
def run(folder: Path, tiny_scene: Path) -> Path:
    return folder / tiny_scene.name / "sa3d" / "S"


@pytest.fixture(scope="module")
def place(tiny_scene: Path) -> Place:
    transforms = json.loads((tiny_scene / "transforms.json").read_text())
    name = Path(transforms["train_filenames"][0]).name
    ids = np.asarray(Image.open(tiny_scene / "instances" / name))
    objects = json.loads((tiny_scene / "objects.json").read_text())["objects"]
    ball = next(entry["id"] for entry in objects if entry["name"] == "ball")
    rows, columns = np.nonzero(ids == ball)
    height, width = ids.shape
    x, y = (columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height
    # The canvas lies below the title bar and left of the panel, and is as high as the photo.
    canvas_height, canvas_width, top = SIZE["height"] - 51, 680, 51
    ball_at = (canvas_width / 2 + (x - 0.5) * width / height * canvas_height, top + y * canvas_height)
    return Place(ball_at, (60.0, 120.0))


@pytest.fixture
def tab(chromium: Any, training: str, folder: Path) -> Iterator[Tab]:
    page = chromium.new_page(viewport=SIZE)
    page.goto(training)
    yield Tab(page, folder)
    page.close()
