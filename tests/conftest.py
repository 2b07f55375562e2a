"""Fixtures that all tests share."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sa3d_nerfstudio.demo.scene import write_scene
from tests.scenes import TINY
from tests.subprocesses import succeed

# No test may fetch gigabytes of weights because it named none.
os.environ.setdefault("SA3D_NO_DOWNLOAD", "1")


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the demo's scene in :data:`scenes.TINY` form. Written once: treat it as read-only."""
    folder = tmp_path_factory.mktemp("scenes") / "tiny"
    write_scene(folder, TINY)
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of benchmark scenes and trained runs beside the checkout; the test is skipped where there is none."""
    folder = (Path(__file__).resolve().parents[2] / "shared").resolve()
    if not (folder / "scenes").is_dir():
        pytest.skip(f"there are no benchmark scenes at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a nerfacto run that ns-train has really trained on the tiny scene, for a moment. Read-only.

    Half as many steps give a field in which, in every other run, half of the views do not show the crate.
    """
    output = tmp_path_factory.mktemp("runs")
    train = [sys.executable, "-m", "sa3d_nerfstudio.demo.train", "--data", tiny_scene, "--output-dir", output]
    succeed(*train, "--timestamp", "T", "--steps", 1200)
    return output / tiny_scene.name / "nerfacto" / "T"


@pytest.fixture(scope="session")
def tiny_prompt(tiny_scene: Path) -> dict[str, Any]:
    """The prompts of the ball in the tiny scene, as in prompts.json."""
    objects = json.loads((tiny_scene / "prompts.json").read_text())["objects"]
    return next(entry for entry in objects if entry["name"] == "ball")


@pytest.fixture(scope="session")
def tiny_objects(tiny_run: Path, tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """config.yml of a sa3d run with three objects of the tiny scene: ball, crate, and a hidden tin. Read-only."""
    import sa3d_nerfstudio as sa3d

    output = tmp_path_factory.mktemp("objects")
    run = sa3d.load(tiny_run, output_dir=output, segmenter="oracle", oracle_instances=tiny_scene / "instances")
    prompts = {entry["name"]: entry for entry in json.loads((tiny_scene / "prompts.json").read_text())["objects"]}
    for name in ("ball", "crate", "tin"):
        run.prompt(prompts[name]["frame"], [prompts[name]["points"][0]], name=name)
        run.segment()
    run.pipeline.model.masks.hidden = {"tin"}
    return run.save()
