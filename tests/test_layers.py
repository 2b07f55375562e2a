"""Imports of the package against the table of layers in ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "sa3d_nerfstudio"


def read_modules(root: Path) -> dict[str, Path]:
    """File of each module of the package, by its dotted name."""
    files = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_imports(modules: dict[str, Path]) -> dict[str, set[str]]:
    """The modules that each module imports, anywhere in its file: under TYPE_CHECKING and in functions too."""
    graph = {}
    for name, path in modules.items():
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        imported = set()
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                submodules = {f"{source}.{alias.name}" for alias in node.names}
                imported |= submodules & modules.keys() or {source}
        graph[name] = {module for module in imported if module in modules} - {name}
    return graph


def read_layers(page: str) -> dict[str, int]:
    """Layer of each room and loose module, from rows such as ``| 3 | `traces`, `segmenters` | ... |``."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, flags=re.MULTILINE)
    return {room: int(layer) for layer, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


def room(module: str) -> str:
    """The folder, or the loose module, that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


MODULES = read_modules(ROOT)
IMPORTS = read_imports(MODULES)
LAYERS = read_layers((ROOT / "ARCHITECTURE.md").read_text("utf8"))


def upward(imports: dict[str, set[str]], layers: dict[str, int]) -> list[str]:
    """Imports between rooms that do not lead to a lower layer."""
    return [
        f"{module} ({layers[room(module)]}) -> {target} ({layers[room(target)]})"
        for module, targets in imports.items()
        for target in sorted(targets)
        if room(module) != room(target) and layers[room(module)] <= layers[room(target)]
    ]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; none where there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_room_has_a_layer():
    assert {room(module) for module in MODULES} == LAYERS.keys()


def test_no_module_imports_upwards():
    assert not upward(IMPORTS, LAYERS)


def test_no_circle():
    assert not circle(IMPORTS)


def test_modules_import_from_modules():
    """No module imports from a room's ``__init__``, which would import the whole room."""
    rooms = {name for name, path in MODULES.items() if path.stem == "__init__"} - {f"{PACKAGE}.commands"}
    assert not [f"{module} -> {target}" for module in IMPORTS for target in IMPORTS[module] & rooms]


def test_few_modules_are_loose():
    assert len(list((ROOT / PACKAGE).glob("*.py"))) <= 15


@pytest.mark.parametrize(
    "source",
    [
        "from sa3d_nerfstudio.viewer.panel import Panel",
        "def later():\n    from sa3d_nerfstudio.viewer import panel",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sa3d_nerfstudio.viewer.panel",
        "from ..viewer.panel import Panel",
        "from ..viewer import panel",
    ],
)
def test_upward_arrows_and_circles_are_found_wherever_they_are_written(tmp_path: Path, source: str):
    for name, text in {"fields/grid.py": source, "viewer/panel.py": "from sa3d_nerfstudio.fields import grid"}.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True)
        path.with_name("__init__.py").write_text("")
        path.write_text(text)
    imports = read_imports(read_modules(tmp_path))
    assert upward(imports, {"fields": 1, "viewer": 2}) == [
        f"{PACKAGE}.fields.grid (1) -> {PACKAGE}.viewer.panel (2)",
    ]
    assert set(circle(imports)) == {f"{PACKAGE}.fields.grid", f"{PACKAGE}.viewer.panel"}
