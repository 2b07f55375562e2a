"""Fixtures that all tests share."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sa3d_nerfstudio.demo.scene import write_scene
from tests.scenes import TINY
from tests.subprocesses import segmenting, succeed

# A test that names no weights would otherwise download gigabytes of them.
os.environ.setdefault("SA3D_NO_DOWNLOAD", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow files first, so that workers end together, and in each group last the files that need the tiny run."""

    def key(item: pytest.Item) -> tuple[bool, bool]:
        return item.path not in slow, item.path in waiting

    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("browser")}
    waiting = {item.path for item in items if "tiny_run" in getattr(item, "fixturenames", ())}
    items.sort(key=key)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Function that makes a folder for all workers: ``made_once(name, make)`` calls ``make(folder)`` in one of them."""
    base_temp = tmp_path_factory.getbasetemp()
    shared = (base_temp.parent if "PYTEST_XDIST_WORKER" in os.environ else base_temp) / "shared"
    shared.mkdir(exist_ok=True)

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                done.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def tiny_scene(made_once: Callable[..., Path]) -> Path:
    """Folder of the demo's scene in :data:`scenes.TINY` form. Written once: treat it as read-only."""
    return made_once("scenes", lambda folder: write_scene(folder / "tiny", TINY)) / "tiny"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of benchmark scenes and trained runs beside the checkout; the test is skipped where there is none."""
    folder = (Path(__file__).resolve().parents[2] / "shared").resolve()
    if not (folder / "scenes").is_dir():
        pytest.skip(f"there are no benchmark scenes at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_scene: Path, made_once: Callable[..., Path]) -> Path:
    """Folder of a nerfacto run of the tiny scene, saved by nerfstudio's trainer with stored weights. Read-only."""
    command = [sys.executable, "-m", "tests.tiny_nerfacto", tiny_scene]
    folder = made_once("runs", lambda output: succeed(*command, output))
    return folder / tiny_scene.name / "nerfacto" / "T"


@pytest.fixture(scope="session")
def tiny_prompt(tiny_scene: Path) -> dict[str, Any]:
    """The prompts of the ball in the tiny scene, as in prompts.json."""
    objects = json.loads((tiny_scene / "prompts.json").read_text())["objects"]
    return next(entry for entry in objects if entry["name"] == "ball")


@pytest.fixture(scope="session")
def tiny_segmented(
    tiny_run: Path, tiny_scene: Path, tiny_prompt: dict[str, Any], made_once: Callable[..., Path]
) -> tuple[Path, str]:
    """Folder of an sa3d run that ns-train made from one click, and its printed output. Read-only."""

    def make(folder: Path) -> None:
        command = segmenting(tiny_run / "nerfstudio_models", tiny_scene, folder, tiny_prompt)
        printed = succeed(*command)
        (folder / "printed.txt").write_text(printed)

    folder = made_once("segmented", make)
    return folder / tiny_scene.name / "sa3d" / "S", (folder / "printed.txt").read_text()


@pytest.fixture(scope="session")
def tiny_objects(tiny_run: Path, tiny_scene: Path, made_once: Callable[..., Path]) -> Path:
    """config.yml of an sa3d run with three objects of the tiny scene: ball, crate, and a hidden tin. Read-only."""

    def make(folder: Path) -> None:
        import sa3d_nerfstudio as sa3d

        run = sa3d.load(tiny_run, output_dir=folder, segmenter="oracle", oracle_instances=tiny_scene / "instances")
        prompts = {entry["name"]: entry for entry in json.loads((tiny_scene / "prompts.json").read_text())["objects"]}
        for name in ("ball", "crate", "tin"):
            run.prompt(prompts[name]["frame"], [prompts[name]["points"][0]], name=name)
            run.segment()
        run.pipeline.model.masks.hidden = {"tin"}
        run.save()

    (config,) = made_once("objects", make).rglob("config.yml")
    return config
