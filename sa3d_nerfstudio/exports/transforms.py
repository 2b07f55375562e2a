"""The data set's own files: which image is which, and a transforms.json that names the masks."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sa3d_nerfstudio.exports.files import read_json, write_json
from sa3d_nerfstudio.pipeline import SA3DPipeline

_LISTS = ("train_filenames", "val_filenames", "test_filenames")


@dataclass
class DataSetFiles:
    """The images of a data set, as its transforms.json lists them, if it has one."""

    transforms: Path | None
    """The transforms.json."""
    content: dict[str, Any]
    """What is in it."""
    downscale_factor: int
    """How much smaller than the originals the images are that the model was trained on."""

    @classmethod
    def of(cls, pipeline: SA3DPipeline) -> DataSetFiles:
        """The files of a run's data set.

        Raises:
            SA3DError: The transforms.json is damaged.
        """
        dataparser: Any = getattr(pipeline.datamanager, "dataparser", None)
        factor = getattr(dataparser, "downscale_factor", None) or 1
        data = getattr(getattr(dataparser, "config", None), "data", None)
        path = None if data is None else Path(data) if Path(data).suffix == ".json" else Path(data) / "transforms.json"
        if path is None or not path.is_file():
            return cls(None, {}, int(factor))
        return cls(path.absolute(), read_json(path, "list of images"), int(factor))

    @property
    def images(self) -> dict[Path, dict[str, Any]]:
        """The frames of transforms.json by the absolute paths of their images."""
        frames = self.content.get("frames", [])
        return {self.absolute(frame["file_path"]): frame for frame in frames if "file_path" in frame}

    def absolute(self, path: str) -> Path:
        """A path in transforms.json, which is relative to it."""
        assert self.transforms is not None
        return Path(os.path.abspath(self.transforms.parent / path))

    def original(self, image: Path) -> Path:
        """The image at full size, given one that the model was trained on: nerfstudio keeps smaller copies of it."""
        image = Path(os.path.abspath(image))
        if self.downscale_factor == 1 or self.transforms is None:
            return image
        # nerfstudio finds the smaller copies by name alone.
        return next((original for original in self.images if original.name == image.name), image)

    def write_with_masks(self, path: Path, masks: Mapping[Path, Path]) -> bool:
        """Write a copy of transforms.json that names a mask for each image. Its own place may be anywhere.

        Args:
            path: The file to write.
            masks: The mask of each image.

        Returns:
            Whether it has been written: nerfstudio wants a mask for every image or for none.
        """
        images = self.images
        if not images or not set(images) <= set(masks):
            return False

        def moved(name: str) -> str:
            return os.path.relpath(self.absolute(name).resolve(), path.parent.resolve())

        content = copy.deepcopy(self.content)
        for frame, image in zip(content["frames"], images, strict=True):
            frame["mask_path"] = os.path.relpath(masks[image].resolve(), path.parent.resolve())
            for key in ("file_path", "depth_file_path"):
                if key in frame:
                    frame[key] = moved(frame[key])
        for key in _LISTS:
            if key in content:
                content[key] = [moved(name) for name in content[key]]
        if "ply_file_path" in content:
            content["ply_file_path"] = moved(content["ply_file_path"])
        write_json(path, content)
        return True
