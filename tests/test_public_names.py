"""Public names of the package's folders, and modules that importing the package loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUBS = sorted((ROOT / "sa3d_nerfstudio").rglob("__init__.pyi"))
HEAVY = {"torch", "nerfstudio", "open3d", "cv2", "numpy", "transformers", "segment_anything", "viser", "matplotlib"}


def test_every_folder_has_public_names():
    folders = {path.parent for path in (ROOT / "sa3d_nerfstudio").rglob("*/__init__.py")}
    assert folders - {stub.parent for stub in STUBS} == {ROOT / "sa3d_nerfstudio" / "commands"}


@pytest.mark.parametrize("stub", STUBS, ids=lambda stub: stub.parent.name)
def test_public_names_are_there(stub: Path):
    room = importlib.import_module(".".join(stub.parent.relative_to(ROOT).parts))
    assert set(room.__all__) == set(_all_of(stub))
    for name in room.__all__:
        value = getattr(room, name)
        # A constant's module is unknown; classes and functions come from the room itself.
        assert getattr(value, "__module__", room.__name__).startswith(room.__name__)


def _all_of(stub: Path) -> list[str]:
    assigned = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.Assign)]
    return ast.literal_eval(assigned[0].value)


@pytest.mark.parametrize("statement", ["import sa3d_nerfstudio", "import sa3d_nerfstudio.commands"])
def test_importing_loads_nothing_heavy(statement: str):
    """nerfstudio imports the package for each of its commands, and ``sa3d --help`` must be quick."""
    program = f"import sys; {statement}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(loaded.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["from sa3d_nerfstudio import load", "from sa3d_nerfstudio.splat_files.run import write_run"],
)
def test_modules_can_be_the_first_to_import_nerfstudio(statement: str):
    """nerfstudio's table of methods imports the trainer, and with it all that a run needs, as a plugin.

    A module of these that imports the table itself would be imported a second time while it is only half loaded.
    """
    done = subprocess.run([sys.executable, "-c", statement], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
