"""Follow the steps of docs/viewer.md in a browser, and save a picture of each: the pictures of that page.

``python -m tools.viewer_pictures RUN X Y DOCS [OPTIONS]``: RUN is a trained run, X Y the pixel of the first training
photo to click on, from the top left. OPTIONS go to ``ns-train sa3d``.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import TimeoutError, sync_playwright

from tests.viewer.browser import CHROMIUM, FLAGS, Tab, changed, server

SIZE = {"width": 1240, "height": 760}
CANVAS = (920, 709)
"""Width and height of the viewport, left of the panel and below the title bar of 51 pixels."""


def place(run: Path, x: float, y: float) -> tuple[float, float]:
    """Position on the page of a pixel of the first training photo, which is as high as the viewport."""
    config: Any = yaml.load((run / "config.yml").read_text(), Loader=yaml.UnsafeLoader)  # as nerfstudio does
    data = Path(config.pipeline.datamanager.data or config.data)
    transforms = json.loads((data / "transforms.json").read_text())
    scale = CANVAS[1] / transforms["h"]
    return CANVAS[0] / 2 + (x + 0.5 - transforms["w"] / 2) * scale, 51 + (y + 0.5) * scale


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("x", type=float)
    parser.add_argument("y", type=float)
    parser.add_argument("docs", type=Path)
    arguments, options = parser.parse_known_args()
    at = place(arguments.run, arguments.x, arguments.y)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        words = ["ns-train", "sa3d", "--load-dir", arguments.run, "--output-dir", "outputs", "--timestamp", "T"]
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS.split())
        with server(Path(folder) / "log.txt", *words, *options) as address:
            page = browser.new_page(viewport=SIZE)
            page.goto(address)
            tab = Tab(page, arguments.docs)

            def keep(name: str) -> None:
                # nerfstudio renders coarsely first, and shows the resolution.
                with suppress(TimeoutError):
                    tab.wait(re.compile(r"Resolution: \d{1,2}x"), seconds=5)
                tab.wait(re.compile(r"Resolution: \d{3,}x"), seconds=300)
                tab.still_picture(seconds=120)
                page.screenshot(path=str(arguments.docs / f"viewer-{name}.jpg"), type="jpeg", quality=85)

            tab.wait("Choose + point", seconds=120)
            keep("1-open")
            tab.press("+ point")
            tab.wait("+ point is on", seconds=120)
            before = tab.still_picture(seconds=120)
            page.mouse.click(*at)
            page.mouse.move(330, 72)
            tab.wait_until(lambda picture: changed(before, picture, at) > 0.3, seconds=60)
            keep("2-click")
            tab.press("Segment")
            tab.wait("pass 1: view 6", seconds=600)
            page.screenshot(path=str(arguments.docs / "viewer-3-progress.jpg"), type="jpeg", quality=85)
            tab.wait("views used,", seconds=1800)
            tab.view("object removed")
            keep("4-removed")
            tab.view("object only")
            keep("5-object")
            tab.open_folder("Save and export")
            tab.press("Write the object's points")
            tab.wait("points written", seconds=300)
            page.screenshot(path=str(arguments.docs / "viewer-6-export.jpg"), type="jpeg", quality=85)


if __name__ == "__main__":
    main()
