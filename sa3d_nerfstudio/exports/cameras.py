"""Cameras to export for: those of the data set's images at their full size, or those of a camera path."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image

from sa3d_nerfstudio.datamanager import FrozenImages
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.exports.files import read_json
from sa3d_nerfstudio.exports.transforms import DataSetFiles
from sa3d_nerfstudio.pipeline import SA3DPipeline

Split = Literal["train", "test", "all"]


@dataclass
class NamedCamera:
    """One camera."""

    name: Path
    """Where its masks go within their folder, ending in .png; the image's place within the data set's images."""
    camera: Cameras
    """At the full size of the image."""
    image: Path | None = None
    """The image itself, at full size; None on a camera path."""


def dataset_cameras(pipeline: SA3DPipeline, split: Split) -> list[NamedCamera]:
    """The cameras of the data set's images.

    Args:
        pipeline: A loaded run.
        split: Of the images that the base model was trained on, of those it is tested on, or of both.

    Raises:
        SA3DError: There are none.
    """
    datamanager: Any = pipeline.datamanager
    chosen = {"train": ["train"], "test": ["eval"], "all": ["train", "eval"]}[split]
    files = DataSetFiles.of(pipeline)
    found: dict[Path, tuple[Cameras, Path]] = {}
    for which in chosen:
        dataset: InputDataset | None = getattr(datamanager, f"{which}_dataset", None)
        if dataset is None:
            continue
        cameras = _undistorted(datamanager, which, dataset)
        for index, filename in enumerate(dataset.image_filenames):
            camera = copy.deepcopy(cameras[index : index + 1])
            original = files.original(Path(filename))
            camera.rescale_output_resolution(files.downscale_factor / dataset.scale_factor)
            if original.is_file() and files.downscale_factor > 1:
                # Sizes of images that have been scaled down were rounded.
                width, height = _image_size(original)
                camera.width[:], camera.height[:] = width, height
            found.setdefault(original, (camera, original))
    if not found:
        raise SA3DError(f"this run has no images for --split {split}: choose another split, or give a --camera-path.")
    names = _names(list(found))
    return [NamedCamera(name, *pair) for name, pair in zip(names, found.values(), strict=True)]


def path_cameras(path: Path) -> list[NamedCamera]:
    """The cameras of a camera path, as nerfstudio's viewer and ``ns-render camera-path`` have it.

    Raises:
        SA3DError: The file is missing, or is no camera path.
    """
    content = read_json(path, "camera path")
    try:
        cameras = get_path_from_json(content)
        size = int(content["render_height"]), int(content["render_width"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SA3DError(
            f"{path} is no camera path ({type(error).__name__}: {one_line(error)}): save one in nerfstudio's viewer."
        ) from error
    # As ns-render takes it: the size of the image is twice its centre.
    cameras.height[:], cameras.width[:] = size
    return [NamedCamera(Path(f"{index:05d}.png"), cameras[index : index + 1]) for index in range(len(cameras))]


def _undistorted(datamanager: Any, which: str, dataset: InputDataset) -> Cameras:
    """The cameras as the model renders them; see :meth:`FrozenImages.training_cameras`."""
    distortion = dataset.cameras.distortion_params
    if isinstance(datamanager, FrozenImages) and distortion is not None and bool((distortion != 0).any()):
        _ = datamanager.cached_train if which == "train" else datamanager.cached_eval
    return dataset.cameras


def has_distortion(cameras: list[NamedCamera]) -> bool:
    """Whether any camera has a lens that bends straight lines."""
    distortions = [one.camera.distortion_params for one in cameras]
    return any(params is not None and bool(torch.any(params != 0)) for params in distortions)


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise SA3DError(f"the image {path} cannot be read ({one_line(error)}): restore it.") from error


def _names(images: list[Path]) -> list[Path]:
    """Names for masks: the images' own if no two are the same, or else with the folders that tell them apart."""
    stems = [image.stem for image in images]
    if len(set(stems)) == len(stems):
        return [Path(f"{stem}.png") for stem in stems]
    # Folders tell them apart, or else the kind of file.
    common = Path(*_common_parts([image.parent for image in images]))
    names = [image.relative_to(common).with_suffix(".png") for image in images]
    if len(set(names)) == len(names):
        return names
    return [Path(f"{image.relative_to(common)}.png") for image in images]


def _common_parts(folders: list[Path]) -> list[str]:
    parts = []
    for level in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(level)) > 1:
            break
        parts.append(level[0])
    return parts
