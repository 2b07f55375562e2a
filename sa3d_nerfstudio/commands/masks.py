"""``sa3d masks``: 2D masks of any set of cameras."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sa3d_nerfstudio.commands.common import RunOptions
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say

if TYPE_CHECKING:
    from sa3d_nerfstudio.distributed.ranks import Ranks
    from sa3d_nerfstudio.exports.dataset import DataSetFiles


@dataclass(kw_only=True)
class Masks(RunOptions):
    """Write 2D masks of objects, one for each image of the data set, at its full size."""

    output_dir: Path
    """Folder to write to."""
    split: Literal["train", "test", "all"] = "train"
    """Images to write masks for: those that the run was trained on, those that it is tested on, or both."""
    camera_path: Path | None = None
    """Camera path (JSON, as nerfstudio's viewer saves it) to write masks for, instead of the images."""
    format: Literal["masks", "rgba", "id-map", "coco"] = "masks"
    """PNGs with white objects, the photos with the mask as alpha, PNGs with the object's id in each pixel, or one COCO
    file."""
    invert: bool = False
    """Objects are black on white, or transparent: nerfstudio, given such masks, learns the scene without them."""
    grow: int = 0
    """Dilate the objects by so many pixels, to include their outlines."""

    def main(self) -> None:
        """Write the masks."""
        if self.format not in ("masks", "rgba") and (self.invert or self.grow):
            raise SA3DError(
                "--invert and --grow are for --format masks and rgba: leave them out, or choose one of these."
            )
        if self.format == "rgba" and self.camera_path is not None:
            raise SA3DError("--format rgba is of photos, and a camera path has none: leave out --camera-path.")
        from sa3d_nerfstudio.distributed.launch import joined

        with joined(self.device) as ranks:
            self._write(ranks)

    def _write(self, ranks: Ranks) -> None:
        """Write the masks of this rank's cameras; the first rank also writes the files that list them."""
        from sa3d_nerfstudio.datamanager import FrozenImages
        from sa3d_nerfstudio.exports import dataset as cameras
        from sa3d_nerfstudio.exports import masks
        from sa3d_nerfstudio.exports.dataset import DataSetFiles

        # A damaged camera path ends the command before a run is loaded.
        on_path = None if self.camera_path is None else cameras.path_cameras(self.camera_path)
        pipeline, objects = self.load(self.output_dir)
        chosen = on_path or cameras.dataset_cameras(pipeline, self.split)
        if self.format == "rgba":
            cameras.require_photos(pipeline, chosen)
        maps = masks.id_maps(pipeline.model, chosen, objects, pipeline.config.threshold, ranks)
        if self.format == "coco":
            path = self.output_dir / "annotations.json"
            masks.write_coco(path, maps, objects, pipeline.model.masks.parents, ranks)
            say(f"saved       {path}")
            return
        if self.format == "id-map":
            names = masks.write_id_maps(self.output_dir, maps, objects, ranks)
            say(f"saved       {self.output_dir / 'ids'}, named in {names}")
            return
        if self.format == "rgba":
            images = masks.write_rgba(self.output_dir, maps, self.invert, self.grow, ranks)
            say(f"saved       {len(images)} photos with alpha in {self.output_dir / 'rgba'}")
            if not ranks.is_first:
                return
            files, transforms = DataSetFiles.of(pipeline), self.output_dir / "transforms.json"
            if files.write_with_images(transforms, images):
                say(f"saved       {transforms}, which names them")
                say(f"next        ns-train nerfacto --data {transforms}    # {self._what}")
            else:
                say(f"note        no transforms.json that names them: {_why_none(files)}")
            return
        written = masks.write_masks(self.output_dir, maps, objects, self.invert, self.grow, ranks)
        say(f"saved       {len(chosen)} masks in {self.output_dir / 'masks'}")
        if on_path is not None:
            return
        if isinstance(pipeline.datamanager, FrozenImages) and cameras.has_distortion(chosen):
            say(
                "note        no transforms.json that names them: they fit the images without their lens distortion, as "
                "the run was trained on them"
            )
            return
        if not ranks.is_first:
            return
        files, transforms = DataSetFiles.of(pipeline), self.output_dir / "transforms.json"
        if files.write_with_masks(transforms, written):
            say(f"saved       {transforms}, which names the images and their masks")
            say(f"next        ns-train nerfacto --data {transforms}    # {self._what}")
        elif self.split != "all" and files.images:
            say("note        for a transforms.json with mask_path, which needs a mask for every image, use --split all")
        else:
            say(f"note        no transforms.json that names them: {_why_none(files)}")

    @property
    def _what(self) -> str:
        return "a scene without the objects" if self.invert else "a scene of the objects alone"


def _why_none(files: DataSetFiles) -> str:
    """Why no transforms.json was written for the images of a run."""
    if not files.images:
        return "the data set has none of its own"
    return f"{files.transforms} lists other images than the run uses"
