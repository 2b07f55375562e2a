"""Cameras of a run's data set, and the files that describe its images."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from nerfstudio.cameras.camera_paths import get_path_from_json
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datasets.base_dataset import InputDataset
from PIL import Image
from torch import Tensor

from sa3d_nerfstudio.datamanager import Filtered, FrozenImages
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.files import read_json, write_json
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.splat_files.source import ImportSource

_LISTS = ("train_filenames", "val_filenames", "test_filenames")


@dataclass
class DataSetFiles:
    """Images of a data set, as listed in its transforms.json, if it has one."""

    transforms: Path | None
    """Path of transforms.json; None if the data set has none."""
    content: dict[str, Any]
    """Content of transforms.json."""
    downscale_factor: int
    """Factor by which the images that the model was trained on are smaller than the originals."""

    @classmethod
    def of(cls, pipeline: SA3DPipeline) -> DataSetFiles:
        """The files of a run's data set.

        Raises:
            SA3DError: The transforms.json is damaged.
        """
        dataparser: Any = getattr(pipeline.datamanager, "dataparser", None)
        factor = getattr(dataparser, "downscale_factor", None) or 1
        path = cast(Filtered, pipeline.datamanager).transforms_path
        if path is None:
            return cls(None, {}, int(factor))
        return cls(path.absolute(), read_json(path, "list of images"), int(factor))

    @property
    def images(self) -> dict[Path, dict[str, Any]]:
        """Frames of transforms.json, by the absolute paths of their images."""
        frames = self.content.get("frames", [])
        return {self.absolute(frame["file_path"]): frame for frame in frames if "file_path" in frame}

    def absolute(self, path: str) -> Path:
        """Absolute path of a path in transforms.json, which is relative to the file."""
        assert self.transforms is not None
        return Path(os.path.abspath(self.transforms.parent / path))

    def original(self, image: Path) -> Path:
        """Full-size original of an image that the model was trained on: nerfstudio makes smaller copies."""
        image = Path(os.path.abspath(image))
        if self.downscale_factor == 1 or self.transforms is None:
            return image
        # nerfstudio finds the smaller copies by name alone.
        return next((original for original in self.images if original.name == image.name), image)

    def write_with_masks(self, path: Path, masks: Mapping[Path, Path]) -> bool:
        """Write a copy of transforms.json, in any folder, that names a mask for each image.

        Args:
            path: The file to write.
            masks: The mask of each image.

        Returns:
            Whether the file was written: nerfstudio requires a mask for every image or for none.
        """
        if not self.images or not set(self.images) <= set(masks):
            return False
        content = self._moved(path)
        for frame, image in zip(content["frames"], self.images, strict=True):
            frame["mask_path"] = os.path.relpath(masks[image].resolve(), path.parent.resolve())
        write_json(path, content)
        return True

    def write_with_images(self, path: Path, images: Mapping[Path, Path]) -> bool:
        """Write a copy of transforms.json with new images of the same size; frames without a new image are left out.

        Args:
            path: The file to write.
            images: The new image for each original.

        Returns:
            Whether the file was written: the data set has a transforms.json, which lists some of the originals.
        """
        replaced = [image for image in self.images if image in images]
        if not replaced:
            return False
        content = self._moved(path)
        new_paths = {image: os.path.relpath(images[image].resolve(), path.parent.resolve()) for image in replaced}
        pairs = zip(content["frames"], self.images, strict=True)
        content["frames"] = [{**frame, "file_path": new_paths[image]} for frame, image in pairs if image in new_paths]
        for frame in content["frames"]:
            frame.pop("mask_path", None)
        for key in _LISTS:
            if key in self.content:
                listed_images = [self.absolute(name) for name in self.content[key]]
                content[key] = [new_paths[image] for image in listed_images if image in new_paths]
        write_json(path, content)
        return True

    def _moved(self, path: Path) -> dict[str, Any]:
        """Content of transforms.json with paths relative to a new location of the file."""

        def moved(name: str) -> str:
            return os.path.relpath(self.absolute(name).resolve(), path.parent.resolve())

        content = copy.deepcopy(self.content)
        for frame in content["frames"]:
            for key in ("file_path", "depth_file_path"):
                if key in frame:
                    frame[key] = moved(frame[key])
        for key in _LISTS:
            if key in content:
                content[key] = [moved(name) for name in content[key]]
        if "ply_file_path" in content:
            content["ply_file_path"] = moved(content["ply_file_path"])
        return content


Split = Literal["train", "test", "all"]


@dataclass
class NamedCamera:
    """Camera of an image of the data set, or of a camera path."""

    name: Path
    """Path of its masks in their folder, ending in .png: the image's name, with its folders if names repeat."""
    camera: Cameras
    """Camera at the full size of the image."""
    image: Path | None = None
    """Path of the image at full size; None on a camera path."""


def dataset_cameras(pipeline: SA3DPipeline, split: Split) -> list[NamedCamera]:
    """Cameras of the data set's images; the training cameras with the poses that the base run has learnt.

    Args:
        pipeline: A loaded run.
        split: Images that the base model was trained on, images that it is tested on, or both.

    Raises:
        SA3DError: The split has no images.
    """
    datamanager: Any = pipeline.datamanager
    chosen = {"train": ["train"], "test": ["eval"], "all": ["train", "eval"]}[split]
    files = DataSetFiles.of(pipeline)
    learnt: dict[Path, Tensor] = {}
    if (trained := getattr(datamanager, "train_dataset", None)) is not None:
        learnt = dict(zip(trained.image_filenames, pipeline.training_cameras().camera_to_worlds, strict=True))
    images: dict[Path, tuple[Cameras, Path]] = {}
    for split_name in chosen:
        dataset: InputDataset | None = getattr(datamanager, f"{split_name}_dataset", None)
        if dataset is None:
            continue
        cameras = _undistorted(datamanager, split_name, dataset)
        for index, filename in enumerate(dataset.image_filenames):
            camera = copy.deepcopy(cameras[index : index + 1])
            camera.camera_to_worlds = learnt.get(filename, camera.camera_to_worlds[0])[None].clone()
            original = files.original(Path(filename))
            camera.rescale_output_resolution(files.downscale_factor / dataset.scale_factor)
            if original.is_file() and files.downscale_factor > 1:
                # The sizes of scaled-down images were rounded.
                width, height = _image_size(original)
                camera.width[:], camera.height[:] = width, height
            images.setdefault(original, (camera, original))
    if not images:
        raise SA3DError(f"this run has no images for --split {split}: choose another split, or give a --camera-path.")
    names = _names(list(images))
    return [NamedCamera(name, *pair) for name, pair in zip(names, images.values(), strict=True)]


def path_cameras(path: Path) -> list[NamedCamera]:
    """Cameras of a camera path, as saved by nerfstudio's viewer and read by ``ns-render camera-path``.

    Raises:
        SA3DError: The file is missing, or is not a camera path.
    """
    content = read_json(path, "camera path")
    try:
        cameras = get_path_from_json(content)
        size = int(content["render_height"]), int(content["render_width"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise SA3DError(
            f"{path} is no camera path ({type(error).__name__}: {one_line(error)}): save one in nerfstudio's viewer."
        ) from error
    # As in ns-render, where the image's size is twice its principal point.
    cameras.height, cameras.width = (torch.full_like(cameras.height, side) for side in size)
    return [NamedCamera(Path(f"{index:05d}.png"), cameras[index : index + 1]) for index in range(len(cameras))]


def _undistorted(datamanager: Any, which: str, dataset: InputDataset) -> Cameras:
    """The cameras as the model renders them; see :meth:`FrozenImages.undistorted_cameras`."""
    if isinstance(datamanager, FrozenImages):
        return datamanager.undistorted_cameras("train" if which == "train" else "eval")
    return dataset.cameras


def has_distortion(cameras: list[NamedCamera]) -> bool:
    """Whether any camera has lens distortion."""
    distortions = [item.camera.distortion_params for item in cameras]
    return any(params is not None and bool(torch.any(params != 0)) for params in distortions)


def require_photos(pipeline: SA3DPipeline, cameras: list[NamedCamera]) -> None:
    """Check that cameras have photos, and that masks fit these.

    Args:
        pipeline: A loaded run.
        cameras: Cameras of its data set.

    Raises:
        SA3DError: There are no photos, or the model was trained on undistorted copies of them.
    """
    source = ImportSource.of(DataSetFiles.of(pipeline).content)
    if source is not None and source.previews:
        raise SA3DError("this run was made of splats without photos: use sa3d turntable, or --format masks.")
    if any(item.image is None or not item.image.is_file() for item in cameras):
        raise SA3DError("this run has no photos: use --format masks.")
    if isinstance(pipeline.datamanager, FrozenImages) and has_distortion(cameras):
        raise SA3DError(
            "masks of splats fit the photos without their lens distortion: undistort the photos first, or use "
            "--format masks."
        )


def _image_size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise SA3DError(f"the image {path} cannot be read ({one_line(error)}): restore it.") from error


def _names(images: list[Path]) -> list[Path]:
    """Names for masks: those of the images if unique, otherwise prefixed by the folders in which they differ."""
    stems = [image.stem for image in images]
    if len(set(stems)) == len(stems):
        return [Path(f"{stem}.png") for stem in stems]
    # The folders make the names unique; otherwise the suffixes do.
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
