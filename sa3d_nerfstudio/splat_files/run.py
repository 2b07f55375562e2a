"""Nerfstudio runs of splatfacto, made of Gaussians that another program has trained."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from numpy import ndarray
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import atomic_path, check_writable, write_json
from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.previews import Preview
from sa3d_nerfstudio.splat_files.source import SOURCE

STEP = 29_999
"""Step in the checkpoint's name: the last step of a training of splatfacto, as nerfstudio counts."""


def write_run(
    gaussians: Gaussians,
    cameras: Sequence[SplatCamera],
    up: Float[ndarray, "3"],
    source: str,
    output_dir: Path,
    name: str,
    timestamp: str | None = None,
    progress: Callable[[Sequence[SplatCamera]], Any] = iter,
) -> Path:
    """Write a run of splatfacto as ``ns-train`` leaves it, in the frame of the Gaussians.

    Nothing is rotated, scaled or left out. Cameras without a photo get a quick drawing of the scene.

    Args:
        gaussians: The scene.
        cameras: Its training views.
        up: Upward direction.
        source: Name of the file that the Gaussians come from.
        output_dir: Folder of all runs.
        name: Folder of the scene's runs within it.
        timestamp: Folder of this run; by default the time.
        progress: Iterates over the cameras, and may show the progress.

    Returns:
        The run's config.yml, which is written last.

    Raises:
        SA3DError: The run exists already, or cannot be written.
    """
    config = _config(gaussians, output_dir, name, timestamp)
    folder = config.get_base_dir()
    if folder.exists():
        raise SA3DError(f"there is a run {folder} already: remove it, or give another --timestamp.")
    size = sum(getattr(gaussians, field).nbytes for field in gaussians.__dataclass_fields__)
    check_writable(folder, int(1.02 * size) + 300_000 * len(cameras))
    # Runs of sa3d are named after the folder of their data set.
    folder.joinpath(name, "images").mkdir(parents=True, exist_ok=True)
    _write_dataset(folder / name, gaussians, cameras, up, source, progress)
    write_json(folder / "dataparser_transforms.json", {"transform": np.eye(4)[:3].tolist(), "scale": 1.0})
    with atomic_path(config.get_checkpoint_dir() / f"step-{STEP:09d}.ckpt") as temporary:
        torch.save({"step": STEP, "pipeline": _state(gaussians), "optimizers": {}, "scalers": {}}, temporary)
    path = folder / "config.yml"
    with atomic_path(path) as temporary:
        temporary.write_text(yaml.dump(config), "utf8")
    return path


def run_name(path: Path) -> str:
    """Folder name for the scene of a file."""
    stem = re.sub(r"(\.compressed)?\.[^.]+$", "", path.name)
    return re.sub(r"[^\w.-]+", "_", stem).strip("._")[:80] or "scene"


def _config(gaussians: Gaussians, output_dir: Path, name: str, timestamp: str | None) -> TrainerConfig:
    config = copy.deepcopy(method_configs["splatfacto"])
    assert isinstance(config, TrainerConfig)
    config.output_dir, config.experiment_name = output_dir, name
    if timestamp is not None:
        config.timestamp = timestamp
    config.set_timestamp()
    datamanager: Any = config.pipeline.datamanager
    # The frame is kept, every camera is a training view, and images keep their size.
    datamanager.dataparser = NerfstudioDataParserConfig(
        orientation_method="none", center_method="none", auto_scale_poses=False, eval_mode="all", downscale_factor=1
    )
    config.data = datamanager.data = datamanager.dataparser.data = config.get_base_dir() / name
    model: Any = config.pipeline.model
    # At degree 0 splatfacto keeps colours in another form than splat files do.
    model.sh_degree = max(gaussians.sh_degree, 1)
    # The few random Gaussians of a new model are replaced by those of the checkpoint.
    model.random_init, model.num_random = True, 100
    return config


def _state(gaussians: Gaussians) -> dict[str, torch.Tensor]:
    rest = gaussians.features_rest
    if not rest.shape[1]:
        rest = np.zeros((len(gaussians), 3, 3), np.float32)
    values = {
        "means": gaussians.means,
        "scales": gaussians.scales,
        "quats": gaussians.quats,
        "features_dc": gaussians.features_dc,
        "features_rest": rest,
        "opacities": gaussians.opacities[:, None],
    }
    state = {f"_model.gauss_params.{name}": torch.from_numpy(np.ascontiguousarray(v)) for name, v in values.items()}
    return {**state, "_model.device_indicator_param": torch.empty(0)}


def _write_dataset(
    folder: Path,
    gaussians: Gaussians,
    cameras: Sequence[SplatCamera],
    up: ndarray,
    source: str,
    progress: Callable[[Sequence[SplatCamera]], Any],
) -> None:
    preview, frames, drawn = None, [], []
    for camera in progress(cameras):
        if camera.photo is None:
            preview = preview or Preview(gaussians)
            image = Path("images") / f"{Path(camera.name).with_suffix('') if '.' in camera.name else camera.name}.jpg"
            (folder / image).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(preview.draw(camera)).save(folder / image, quality=85)
            drawn.append(image.name)
        else:
            image = camera.photo.absolute()
        frames.append(
            {
                "file_path": image.as_posix(),
                "w": camera.width,
                "h": camera.height,
                "fl_x": camera.fx,
                "fl_y": camera.fy,
                "cx": camera.cx,
                "cy": camera.cy,
                **camera.distortion,
                "transform_matrix": camera.pose.tolist(),
            }
        )
    entry = {"file": source, "sh_degree": gaussians.sh_degree, "up": [float(value) for value in up], "previews": drawn}
    write_json(folder / "transforms.json", {"camera_model": cameras[0].model, SOURCE: entry, "frames": frames})
