"""A browser that uses nerfstudio's viewer as a person does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.subprocesses import ROOT

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader --ignore-gpu-blocklist "
    "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
)
INPUT = "input[not(@type='hidden')]"
SIZE = {"width": 1000, "height": 760}


HANG = 600.0
"""Seconds after which a page or a viewer counts as hung: a busy machine takes minutes to import nerfstudio."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as connection:
        connection.bind(("127.0.0.1", 0))
        return connection.getsockname()[1]


@contextmanager
def server(log: Path, *words: object, timeout: float = HANG) -> Iterator[str]:
    """Run a nerfstudio command that opens a viewer until the context ends.

    Yields:
        Address of the viewer.
    """
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    program = Path(sys.executable).parent / str(words[0])
    # Jobs in the background of a shell do not hear Ctrl-C, nor do their children, unless that is set back.
    command = ["env", "--default-signal=INT", sys.executable, program, *words[1:], "--viewer.websocket-port", port]
    with log.open("w") as file:
        process = subprocess.Popen([*map(str, command)], env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            start = time.monotonic()
            # Looked up, not tried: websockets prints a traceback for a connection that asks for nothing.
            while not listening_addresses(port):
                assert process.poll() is None and time.monotonic() - start < timeout, log.read_text()[-3000:]
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}"
            assert process.poll() is None, log.read_text()[-3000:]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(HANG)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


def listening_addresses(port: int) -> set[str]:
    """Addresses of this machine, as /proc writes them, on which somebody listens to a port."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and int(address.rsplit(":")[1], 16) == port:
                found.add(address.rsplit(":")[0])
    return found


class Tab:
    """One tab with the viewer in it."""

    def __init__(self, page: Any, shots: Path) -> None:
        self.page = page
        self.shots = shots
        page.set_default_timeout(1000 * HANG)
        page.get_by_text("Show Train Cams").wait_for(timeout=1000 * HANG)

    def press(self, name: str) -> None:
        """Press a button of the panel."""
        button = self.page.get_by_role("button", name=name, exact=True)
        button.scroll_into_view_if_needed()
        button.click()
        # The pointer would leave a hint over the panel.
        self.page.mouse.move(330, 72)

    def open_folder(self, name: str) -> None:
        """Open a folder of the panel."""
        self.page.get_by_text(name, exact=True).click()
        self.page.wait_for_timeout(500)

    def wait(self, text: str | re.Pattern[str], seconds: float = HANG) -> None:
        """Wait until the panel says something."""
        self.page.get_by_text(text).first.wait_for(timeout=1000 * seconds)

    def field(self, label: str) -> Any:
        """The text field beside a label."""
        return self.page.get_by_text(label, exact=True).locator(f"xpath=ancestor::*[.//{INPUT}][1]//{INPUT}").first

    def wait_field(self, label: str, start: str, seconds: float = HANG) -> None:
        """Wait until the text field beside a label begins with some text."""
        deadline = time.monotonic() + seconds
        while not (text := self.field(label).input_value()).startswith(start):
            assert time.monotonic() < deadline, f"{label} holds {text}; {self.status()}"
            self.page.wait_for_timeout(100)

    def wait_object(self, name: str, seconds: float = HANG) -> None:
        """Wait until an object is selected."""
        self._wait_choice("Object", name, seconds)

    def new_object(self, seconds: float = HANG) -> None:
        """Press "New object", and wait until it is selected and its name stands beside "Name", in an open folder."""
        before, deadline = self.choice("Object"), time.monotonic() + seconds
        self.press("New object")
        while (chosen := self.choice("Object")) == before or self.field("Name").input_value() != chosen:
            assert time.monotonic() < deadline, f"{chosen} is selected; {self.status()}"
            self.page.wait_for_timeout(100)

    def wait_view(self, name: str, seconds: float = HANG) -> None:
        """Wait until the panel says that the viewport shows something."""
        self._wait_choice("View", name, seconds)

    def choice(self, label: str) -> str:
        """What is chosen in a list."""
        return self.page.get_by_label(label, exact=True).first.input_value()

    def _wait_choice(self, label: str, name: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (chosen := self.choice(label)) != name:
            assert time.monotonic() < deadline, f"{chosen} is selected; {self.status()}"
            self.page.wait_for_timeout(100)

    def status(self) -> str:
        """What the panel says."""
        return " / ".join(self.page.locator("p").all_inner_texts())

    def picture(self) -> np.ndarray:
        """The viewport, RGB from 0 to 255 as floats."""
        image = Image.open(BytesIO(self.page.screenshot(clip={"x": 0, "y": 60, "width": 670, "height": 690})))
        return np.asarray(image.convert("RGB")).astype(float)

    def wait_until(self, looks: Callable[[np.ndarray], bool], seconds: float = HANG) -> np.ndarray:
        """Wait until the viewport looks as it should, and return it."""
        deadline = time.monotonic() + seconds
        while not looks(picture := self.picture()):
            assert time.monotonic() < deadline, self.status()
            self.page.wait_for_timeout(200)
        return picture

    def view(self, name: str) -> None:
        """Choose what the viewport shows."""
        self.choose("View", name)

    def choose(self, label: str, name: str) -> None:
        """Choose something in a list."""
        self.page.get_by_label(label, exact=True).first.click()
        self.page.get_by_role("option", name=name, exact=True).click()

    def still_picture(self, seconds: float = 120) -> np.ndarray:
        """The viewport when it has stopped changing."""
        deadline = time.monotonic() + seconds
        before, same = self.picture(), 0
        while same < 4 and time.monotonic() < deadline:
            self.page.wait_for_timeout(500)
            now = self.picture()
            same = same + 1 if np.abs(now - before).mean() < 0.05 else 0
            before = now
        return before

    def shot(self, name: str) -> None:
        """Keep a screenshot."""
        self.page.screenshot(path=str(self.shots / f"{name}.png"))


def changed(before: np.ndarray, after: np.ndarray, at: tuple[float, float], radius: int = 25) -> float:
    """Share of the pixels around a place on the page that look different."""
    x, y = round(at[0]), round(at[1]) - 60
    part = np.s_[max(y - radius, 0) : y + radius, max(x - radius, 0) : x + radius]
    return float((np.abs(before[part] - after[part]).max(-1) > 25).mean())
