"""Training and evaluation images of a run, by the names that annotations use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import DataManager

from sa3d_nerfstudio.datamanager import FrozenImages
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import FreeView

_PLACE = re.compile(r"image(\d+)", re.IGNORECASE)
_SPLIT_PREFIX = re.compile(r"[01]_(.+)")


@dataclass(frozen=True)
class RunImage:
    """One image of a run."""

    path: Path
    """File of the image."""
    camera: Cameras
    """Camera of the image at the size that the run was trained in, of shape [1]."""
    training_view: int | None
    """Index of the image among the training views; None for evaluation images."""

    def check_shape(self, height: int, width: int) -> None:
        """Check that an annotation of this size has the image's aspect ratio.

        Raises:
            SA3DError: The aspect ratios differ.
        """
        rows, columns = int(self.camera.height[0]), int(self.camera.width[0])
        if abs(width * rows / (height * columns) - 1) > 0.02:  # downscaling rounds the sizes
            raise SA3DError(
                f"the annotation of {self.path.name} is {width} x {height} pixels and the run's image {columns} x "
                f"{rows}, which is another shape: train on the images that were annotated."
            )


class RunImages:
    """All images of a run.

    Args:
        datamanager: The frozen data manager of the run.
        trained: Cameras of the training images; by default those of the data set.

    Raises:
        SA3DError: The run was trained on images without their lens distortion, unlike the annotated images.
    """

    def __init__(self, datamanager: DataManager, trained: Cameras | None = None) -> None:
        train, evaluation = datamanager.train_dataset, datamanager.eval_dataset
        assert train is not None
        distortion = train.cameras.distortion_params
        if isinstance(datamanager, FrozenImages) and distortion is not None and bool((distortion != 0).any()):
            raise SA3DError(
                "the run's method takes the lens distortion out of its images, so they differ from the annotated ones: "
                "train it on images without distortion, such as those of COLMAP's image_undistorter."
            )
        cameras = train.cameras if trained is None else trained
        images = {
            Path(path): RunImage(Path(path), cameras[view : view + 1], view)
            for view, path in enumerate(train.image_filenames)
        }
        if evaluation is not None:
            for view, path in enumerate(evaluation.image_filenames):
                images.setdefault(Path(path), RunImage(Path(path), evaluation.cameras[view : view + 1], None))
        self._images = sorted(images.values(), key=lambda image: image.path.name)

    def find(self, name: str, num_images: int | None = None) -> RunImage:
        """The image that an annotation belongs to.

        Args:
            name: The annotation's name, without suffix.
            num_images: Number of images in the scene, if annotations are named by position.

        Raises:
            SA3DError: The run has no such image.
        """
        stems = [image.path.stem for image in self._images]
        return self._images[place_of(name, stems, num_images)]


def prompted_view(pipeline: SA3DPipeline, session: SegmentationSession, image: RunImage) -> int | str:
    """Key of a session's view for prompts in an image; images not trained on are added as free views."""
    if image.training_view is not None:
        return image.training_view
    camera = image.camera.to(pipeline.device)
    image_side, view_side = max(int(camera.height[0]), int(camera.width[0])), pipeline.views.long_side
    if image_side > view_side:
        camera.rescale_output_resolution(view_side / image_side)
    trace = pipeline.model.trace_view(camera, pipeline.views.lock)
    session.free[image.path.name] = FreeView(trace, camera.camera_to_worlds[0])
    return image.path.name


def place_of(name: str, stems: Sequence[str], num_images: int | None = None) -> int:
    """Index of an annotation's image among the sorted images.

    The image has the annotation's name; or that name without the "0_" or "1_" by which some annotations mark a split;
    or, for "image007", it is the eighth of all images, if the run has all. Nothing is guessed beyond that.

    Args:
        name: The annotation's name, without suffix.
        stems: The images' names in order, without suffixes.
        num_images: Number of images in the scene, if annotations are named by position.

    Raises:
        SA3DError: There is no such image, or there is more than one.
    """
    split = _SPLIT_PREFIX.fullmatch(name)
    for candidate in (name, split[1] if split else name):
        if stems.count(candidate) > 1:
            raise SA3DError(f"the run has more than one image named {candidate}: give each a name of its own.")
        if candidate in stems:
            return stems.index(candidate)
    match = _PLACE.fullmatch(name)
    if match is not None and num_images is not None:
        if len(stems) != num_images:
            raise SA3DError(
                f"the annotation {name} counts among {num_images} images, but the run's data set has {len(stems)}: "
                "train on the whole scene."
            )
        if int(match[1]) < num_images:
            return int(match[1])
    raise SA3DError(
        f"the run's data set has no image named {name} (it has {', '.join(stems[:3])}, ...): "
        "train on the images under their published names."
    )
