"""Find the trained run that ``--load-dir`` names, and its data set."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.dnerf_dataparser import DNeRFDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.dataparsers.sdfstudio_dataparser import SDFStudioDataParserConfig
from nerfstudio.data.dataparsers.sitcoms3d_dataparser import Sitcoms3DDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from sa3d_nerfstudio.base_run.checkpoint import checkpoints_in, load_checkpoint
from sa3d_nerfstudio.errors import SA3DError, one_line

_REMEDY = "give the folder or the config.yml of a trained nerfstudio run with --load-dir, or --load-config"
_MODULE_MISSING = re.compile(r"No module named '([^']+)'")
_NAME_MISSING = re.compile(r"cannot find '([^']+)' in the module '([^']+)'")


@dataclass
class BaseRun:
    """Trained run, ready to be loaded."""

    config: TrainerConfig
    """Configuration of the run, read from its config.yml, with the data set's path corrected."""
    config_path: Path
    """Path of the config.yml."""
    checkpoint_path: Path
    """Path of the checkpoint to load."""
    step: int
    """Step of the checkpoint, from its file name."""

    @property
    def is_sa3d(self) -> bool:
        """Whether this is a run of sa3d, to be resumed, and not a base run."""
        return self.config.method_name == "sa3d"


def find_run(path: Path, load_step: int | None = None, data: Path | None = None) -> BaseRun:
    """Find the trained run at a path, without writing any file.

    The run's config.yml is read as nerfstudio reads it, with ``yaml.Loader``: **this runs code that the file names.**
    Only the config.yml of the requested run is opened; load runs only from people that you trust.

    Args:
        path: The run's folder, its checkpoint folder (nerfstudio_models), its config.yml, or one ``step-*.ckpt`` file.
        load_step: Step of the checkpoint to use instead of the newest.
        data: Path of the data set, if it differs from that in the run's config.yml.

    Raises:
        SA3DError: There is no such run or step, or its configuration, checkpoint or data set cannot be used.
    """
    try:
        return _find_run(path.expanduser(), load_step, data)
    except OSError as error:  # folders without permission to list them, disconnected drives
        raise SA3DError(f"{path} cannot be read ({one_line(error)}): {_REMEDY}.") from error


def _find_run(path: Path, load_step: int | None, data: Path | None) -> BaseRun:
    config_path, checkpoint_dir, named_step = _resolve_path(path)
    config = _read_config(config_path)
    if checkpoint_dir is None:
        checkpoint_dir = config_path.parent / config.relative_model_dir
    if named_step is not None and load_step not in (None, named_step):
        raise SA3DError(f"{path} is not the checkpoint of step {load_step}: leave out --load-step, or name its folder.")
    step, checkpoint_path = _choose_checkpoint(checkpoint_dir, load_step if named_step is None else named_step)
    load_checkpoint(checkpoint_path)  # reports a half-written checkpoint before a data set is read for minutes
    locate_dataset(config, config_path.parent, data)
    return BaseRun(config, config_path, checkpoint_path, step)


def _resolve_path(path: Path) -> tuple[Path, Path | None, int | None]:
    """Config.yml, checkpoint folder and step that a path stands for; the latter two are None unless it names them."""
    if not path.exists():
        raise SA3DError(f"there is no {path}: {_REMEDY}.")
    if path.is_file():
        if path.suffix in (".yml", ".yaml"):
            return path, None, None
        step = next((step for step, file in checkpoints_in(path.parent).items() if file.name == path.name), None)
        if step is None:
            raise SA3DError(f"{path} is neither a config.yml nor a step-*.ckpt file: {_REMEDY}.")
        return _config_beside(path.parent), path.parent, step
    if (path / "config.yml").is_file():
        return path / "config.yml", None, None
    if checkpoints_in(path) or path.name == TrainerConfig().relative_model_dir.name:
        return _config_beside(path), path, None
    if not any(path.iterdir()):
        raise SA3DError(f"the folder {path} is empty: {_REMEDY}.")
    runs = _runs_below(path)
    if runs:
        raise SA3DError(f"{path} holds runs but is none itself: give one of them with --load-dir, such as {runs[0]}.")
    raise SA3DError(f"{path} is not a nerfstudio run, for there is no {path / 'config.yml'}: {_REMEDY}.")


def _config_beside(checkpoint_dir: Path) -> Path:
    candidates = [folder / "config.yml" for folder in (checkpoint_dir, checkpoint_dir.absolute().parent)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise SA3DError(
        f"the checkpoints in {checkpoint_dir} lack their config.yml (looked for {candidates[0]} and {candidates[1]}): "
        "copy the whole run's folder."
    )


def _runs_below(folder: Path) -> list[Path]:
    """Up to three runs in an outputs folder of layout SCENE/METHOD/TIME: one at each depth."""
    return [
        config.parent
        for depth in (1, 2, 3)
        for config in islice(folder.glob("/".join(["*"] * depth + ["config.yml"])), 1)
    ]


def _read_config(path: Path) -> TrainerConfig:
    try:
        config = yaml.load(path.read_text("utf-8"), Loader=yaml.Loader)
    except Exception as error:  # the file can name any class, so that any error can arise
        raise SA3DError(_why_unreadable(path, error)) from error
    if not isinstance(config, TrainerConfig):
        raise SA3DError(f"{path} is not the configuration of a nerfstudio run: {_REMEDY}.")
    sections = {
        "pipeline": VanillaPipelineConfig,
        "pipeline.datamanager": DataManagerConfig,
        "pipeline.model": ModelConfig,
    }
    for name, kind in sections.items():
        section = config
        for attribute in name.split("."):
            section = getattr(section, attribute, None)
        if not isinstance(section, kind):
            raise SA3DError(f"{path} has no valid {name}, so it is damaged or incomplete: restore it, or train again.")
    if not isinstance(config.method_name, str) or not isinstance(config.relative_model_dir, Path):
        raise SA3DError(f"{path} has no valid method_name and relative_model_dir: restore it, or train again.")
    return config


def _why_unreadable(path: Path, error: Exception) -> str:
    if match := _MODULE_MISSING.search(str(error)):
        package = match[1].split(".")[0]
        return (
            f"{path} needs the Python module {match[1]}, which is not installed here: "
            f"pip install the nerfstudio plugin that the run was trained with (it provides {package})."
        )
    if match := _NAME_MISSING.search(str(error)):
        return (
            f"{path} needs {match[1]} of the Python module {match[2]}, which has none here: "
            f"install the version of {match[2].split('.')[0]} that the run was trained with."
        )
    return f"{path} cannot be read as a nerfstudio configuration ({one_line(error)}): restore it, or train again."


def _choose_checkpoint(folder: Path, step: int | None) -> tuple[int, Path]:
    checkpoints = checkpoints_in(folder) if folder.is_dir() else {}
    if not checkpoints:
        raise SA3DError(f"the run has no checkpoint (step-*.ckpt) in {folder}: train it until it has saved one.")
    if step is None:
        step = max(checkpoints)
    if step not in checkpoints:
        saved_steps = ", ".join(str(saved_step) for saved_step in checkpoints)
        raise SA3DError(f"there is no checkpoint of step {step} in {folder}: give --load-step one of {saved_steps}.")
    return step, checkpoints[step]


# The file that each data parser opens first. Other parsers read many files, or choose them by their options.
_METADATA_FILES: dict[type, str] = {
    NerfstudioDataParserConfig: "transforms.json",
    InstantNGPDataParserConfig: "transforms.json",
    BlenderDataParserConfig: "transforms_train.json",
    DNeRFDataParserConfig: "transforms_train.json",
    SDFStudioDataParserConfig: "meta_data.json",
    Sitcoms3DDataParserConfig: "cameras.json",
}


def locate_dataset(config: TrainerConfig, run_folder: Path, override: Path | None = None) -> Path | None:
    """Find the data set of a run and write its path into the run's configuration.

    A relative path is tried from the current folder, as nerfstudio does, then from the run's folder and each of its
    parents, so that a run and its data set may be moved together.

    Args:
        config: The run's configuration; its ``data``, and those of the data manager and data parser, are changed.
        run_folder: Folder of the run's config.yml.
        override: The user's ``--data``, used instead of the configuration's path.

    Returns:
        The data set's path, or None for a run without one (random cameras).

    Raises:
        SA3DError: The data set is missing, or the run's data parser does not read it.
    """
    datamanager: Any = config.pipeline.datamanager
    dataparser: Any = getattr(datamanager, "dataparser", None)
    if dataparser is None:
        return None
    if override is None:
        path = _find_dataset(_recorded_path(datamanager, dataparser), run_folder)
    else:
        path = override.expanduser()
        if not os.path.exists(path):
            raise SA3DError(f"there is no data set {path}: check the path given with --data.")
    _check_readable(path, dataparser)
    config.data = datamanager.data = dataparser.data = path
    return path


def _recorded_path(datamanager: Any, dataparser: Any) -> Path:
    recorded = getattr(datamanager, "data", None)
    if recorded is None:  # the next place where nerfstudio's data managers look
        recorded = getattr(dataparser, "data", None)
    if not isinstance(recorded, (str, Path)):
        raise SA3DError("the run's config.yml names no data set: give its folder with --data.")
    return Path(recorded).expanduser()


def _find_dataset(recorded: Path, run_folder: Path) -> Path:
    if os.path.exists(recorded):
        return recorded
    if not recorded.is_absolute():
        run_folder = run_folder.resolve()
        for folder in (run_folder, *run_folder.parents):
            # os.path.exists, unlike Path.exists, returns False for names that the system refuses
            if os.path.exists(folder / recorded):
                return (folder / recorded).resolve()
    raise SA3DError(f"the run's data set {recorded} is not there any more: give its folder with --data.")


def _check_readable(path: Path, dataparser: Any) -> None:
    name = _METADATA_FILES.get(type(dataparser))  # of the exact type: subclasses may read other files
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
