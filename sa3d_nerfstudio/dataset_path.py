"""Where a trained run's data set lies now, which need not be where it lay during training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.sdfstudio_dataparser import SDFStudioDataParserConfig
from nerfstudio.data.dataparsers.sitcoms3d_dataparser import Sitcoms3DDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig

from sa3d_nerfstudio.errors import SA3DError, one_line

# The file that each data parser opens first. Other parsers read many, or choose by their options.
_METADATA_FILES: dict[type, str] = {
    NerfstudioDataParserConfig: "transforms.json",
    InstantNGPDataParserConfig: "transforms.json",
    BlenderDataParserConfig: "transforms_train.json",
    DNeRFDataParserConfig: "transforms_train.json",
    SDFStudioDataParserConfig: "meta_data.json",
    Sitcoms3DDataParserConfig: "cameras.json",
}


def locate_dataset(config: TrainerConfig, run_folder: Path, override: Path | None = None) -> Path | None:
    """Find the data set of a run and write its place into the run's configuration.

    A relative path is tried from the current folder, as nerfstudio does, then from the run's folder and each of its
    parents: a run and its data set that were moved together still belong together.

    Args:
        config: the run's configuration; ``data`` of the data manager and of its data parser are changed.
        run_folder: where the run's config.yml lies.
        override: the user's ``--data``, used instead of what the configuration says.

    Returns:
        The data set's path, or None for a run without one (random cameras).

    Raises:
        SA3DError: the data set is not there, or is not one that the run's data parser reads.
    """
    datamanager: Any = config.pipeline.datamanager
    dataparser: Any = getattr(datamanager, "dataparser", None)
    if dataparser is None:
        return None
    if override is None:
        path = _find(_recorded_path(datamanager, dataparser), run_folder)
    else:
        path = override.expanduser()
        if not os.path.exists(path):
            raise SA3DError(f"there is no data set {path}: check the path given with --data.")
    _check_readable(path, dataparser)
    config.data = datamanager.data = dataparser.data = path
    return path


def _recorded_path(datamanager: Any, dataparser: Any) -> Path:
    recorded = getattr(datamanager, "data", None)
    if recorded is None:  # nerfstudio's data managers look there next
        recorded = getattr(dataparser, "data", None)
    if not isinstance(recorded, (str, Path)):
        raise SA3DError("the run's config.yml names no data set: give its folder with --data.")
    return Path(recorded).expanduser()


def _find(recorded: Path, run_folder: Path) -> Path:
    if os.path.exists(recorded):
        return recorded
    if not recorded.is_absolute():
        run_folder = run_folder.resolve()
        for folder in (run_folder, *run_folder.parents):
            # os.path.exists, unlike Path.exists, takes any name for an answer
            if os.path.exists(folder / recorded):
                return (folder / recorded).resolve()
    raise SA3DError(f"the run's data set {recorded} is not there any more: give its folder with --data.")


def _check_readable(path: Path, dataparser: Any) -> None:
    name = _METADATA_FILES.get(type(dataparser))  # not of its subclasses, which may read other files
    if path.is_dir():
        if not any(path.iterdir()):
            raise SA3DError(f"the data set {path} is an empty folder: give the data set's folder with --data.")
        if name is None:
            return
        metadata = path / name
    elif path.suffix == ".json":
        metadata = path
    elif name is None:
        return
    else:
        raise SA3DError(f"{path} is not the folder of a data set: give the folder that has {name} with --data.")
    if not metadata.is_file():
        raise SA3DError(f"the data set {path} has no {name}: give the folder that has it with --data.")
    try:
        content = json.loads(metadata.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SA3DError(
            f"{metadata} cannot be read ({one_line(error)}): mend it, or give another data set with --data."
        ) from error
    if not isinstance(content, dict):
        raise SA3DError(f"{metadata} describes no cameras: give the folder of a data set with --data.")
