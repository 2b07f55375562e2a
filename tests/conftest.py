"""Fixtures that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from scenes import TINY

from sa3d_nerfstudio.demo.scene import write_scene


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the demo's scene in :data:`scenes.TINY` form. Written once: treat it as read-only."""
    folder = tmp_path_factory.mktemp("scenes") / "tiny"
    write_scene(folder, TINY)
    return folder


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of benchmark scenes and trained runs beside the checkout; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "scenes").is_dir():
        pytest.skip(f"there are no benchmark scenes at {folder}")
    return folder
