"""The trained run of each scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sa3d_nerfstudio.errors import SA3DError

PLACEHOLDER = "{scene}"
"""Text in a path that stands for the scene's name."""


def find_scene_run(runs: str, names: Sequence[str], method: str | None = None) -> Path | None:
    """Find the config.yml of a scene's run.

    Args:
        runs: A folder with SCENE/METHOD/TIME below it, as ``ns-train`` writes; or a path with {scene} in it, of a run
            or of the folder with METHOD/TIME.
        names: Names of the scene's folder in order of preference; case is ignored.
        method: Method of the runs; by default any.

    Returns:
        The path, or None if the scene has no run. Of several runs of one method, the last by name is taken, which is
        the newest where names are times.

    Raises:
        SA3DError: There is no such folder, or there are runs of several methods to choose from.
    """
    for folder in _folders(runs, names):
        configs = [folder] if folder.name == "config.yml" and folder.is_file() else sorted(folder.glob("config.yml"))
        configs = configs or sorted(folder.glob("*/*/config.yml"))
        if method is not None:
            configs = [config for config in configs if _method(config) == method]
        # Runs of sa3d lie beside the run that they segment.
        configs = [config for config in configs if _method(config) != "sa3d"]
        methods = sorted({_method(config) for config in configs})
        if len(methods) > 1:
            raise SA3DError(f"{folder} has runs of several methods: choose with --method {' or '.join(methods)}.")
        if configs:
            return configs[-1]
    return None


def _folders(runs: str, names: Sequence[str]) -> list[Path]:
    if PLACEHOLDER in runs:
        return [Path(runs.replace(PLACEHOLDER, name)).expanduser() for name in names]
    root = Path(runs).expanduser()
    if not root.is_dir():
        raise SA3DError(f"there is no folder {root}: give --runs the folder of SCENE/METHOD/TIME that ns-train wrote.")
    subfolders = {path.name.lower(): path for path in sorted(root.iterdir())}
    return [subfolders[name.lower()] for name in names if name.lower() in subfolders]


def _method(config: Path) -> str:
    return config.absolute().parent.parent.name
