"""The wheel: its contents, and its use outside the checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the unpacked wheel, as pip installs it."""
    if importlib.util.find_spec("setuptools") is None or importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip or no setuptools to build a wheel with")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "sa3d_nerfstudio", source / "sa3d_nerfstudio", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = source.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(site: Path):
    def held(folder: Path) -> set[str]:
        paths = folder.joinpath("sa3d_nerfstudio").rglob("*")
        return {str(path.relative_to(folder)) for path in paths if path.is_file() and path.suffix != ".pyc"}

    assert held(site) == held(ROOT)
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"sa3d_nerfstudio"}


def test_the_wheel_has_both_entry_points(site: Path):
    distribution = Distribution.at(next(site.glob("*.dist-info")))
    assert {entry.group: (entry.name, entry.value) for entry in distribution.entry_points} == {
        "console_scripts": ("sa3d", "sa3d_nerfstudio.commands:main"),
        "nerfstudio.method_configs": ("sa3d", "sa3d_nerfstudio.method:sa3d"),
    }


def test_the_wheel_passes_its_own_checkup(site: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    program = "import sa3d_nerfstudio.commands as sa3d; print(sa3d.__file__); sa3d.main(['doctor'])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(str(site))
    assert done.returncode == 0, done.stdout + done.stderr
