"""The images of a run, of training and of evaluation alike, by the names that annotations use."""

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
    """Its file."""
    camera: Cameras
    """Its camera at the size that the run was trained in, [1]."""
    training_view: int | None
    """Its index among the training views, if it is one of them."""

    def check_shape(self, height: int, width: int) -> None:
        """Check that an annotation of this size can be one of the image.

        Raises:
            SA3DError: Its sides are in another ratio.
        """
        rows, columns = int(self.camera.height[0]), int(self.camera.width[0])
        if abs(width * rows / (height * columns) - 1) > 0.02:  # sizes are rounded when images shrink
            raise SA3DError(
                f"the annotation of {self.path.name} is {width} x {height} pixels and the run's image {columns} x "
                f"{rows}, which is another shape: train on the images that were annotated."
            )


class RunImages:
    """All images of a run.

    Args:
        datamanager: The run's, frozen.
        trained: The cameras of the training images, where these are not the data set's own.

    Raises:
        SA3DError: The images are trained on without their lens distortion, so not as they were annotated.
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
            name: The annotation's name for it.
            num_images: How many images the scene has, if annotations are named by place.

        Raises:
            SA3DError: The run has no such image.
        """
        stems = [image.path.stem for image in self._images]
        return self._images[place_of(name, stems, num_images)]


def prompted_view(pipeline: SA3DPipeline, session: SegmentationSession, image: RunImage) -> int | str:
    """The view by which a session of the run can be prompted in an image, even if it was not trained on."""
    if image.training_view is not None:
        return image.training_view
    camera = image.camera.to(pipeline.device)
    longest, wanted = max(int(camera.height[0]), int(camera.width[0])), pipeline.views.long_side
    if longest > wanted:
        camera.rescale_output_resolution(wanted / longest)
    trace = pipeline.model.trace_view(camera, pipeline.views.lock)
    session.free[image.path.name] = FreeView(trace, camera.camera_to_worlds[0])
    return image.path.name


def place_of(name: str, stems: Sequence[str], num_images: int | None = None) -> int:
    """Index, among the sorted images, of the image of an annotation.

    An image of that very name; or of that name without the "0_" or "1_" by which some annotations mark a split; or, for
    "image007", the eighth of all images, if all are there. Nothing is guessed beyond that.

    Args:
        name: The annotation's name, without suffix.
        stems: The images' names in order, without suffixes.
        num_images: How many images the scene has, if annotations are named by place.

    Raises:
        SA3DError: There is no such image, or there is more than one.
    """
    split = _SPLIT_PREFIX.fullmatch(name)
    for known in (name, split[1] if split else name):
        if stems.count(known) > 1:
            raise SA3DError(f"the run has more than one image named {known}: give each a name of its own.")
        if known in stems:
            return stems.index(known)
    place = _PLACE.fullmatch(name)
    if place is not None and num_images is not None:
        if len(stems) != num_images:
            raise SA3DError(
                f"the annotation {name} counts among {num_images} images, but the run's data set has {len(stems)}: "
                "train on the whole scene."
            )
        if int(place[1]) < num_images:
            return int(place[1])
    raise SA3DError(
        f"the run's data set has no image named {name} (it has {', '.join(stems[:3])}, ...): "
        "train on the images under their published names."
    )
