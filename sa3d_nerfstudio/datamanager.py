"""The base run's data manager, frozen: nothing is loaded for training, and rays are drawn through the object only."""

from __future__ import annotations

import copy
import functools
import types
import typing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers import full_images_datamanager
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager
from nerfstudio.data.datamanagers.random_cameras_datamanager import RandomCamerasDataManager
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor, nn

from sa3d_nerfstudio.base_run.patches import any_start_method
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.object_pixels import PixelCells, RayFilter

CELLS_ALONG_IMAGE = (96, 192, 384)
"""Numbers of blocks along an image's longer side that are tested for the object; the larger ones for small objects."""

_MADE_BY_SETUP_EVAL = frozenset(
    {
        "eval_image_dataloader",
        "iter_eval_image_dataloader",
        "eval_pixel_sampler",
        "eval_ray_generator",
        "fixed_indices_eval_dataloader",
        "eval_dataloader",
        # nerfstudio's main branch, after 1.1.5
        "eval_raybatchstream",
        "eval_ray_dataloader",
        "iter_eval_raybundles",
        "image_eval_dataloader",
    }
)


@functools.lru_cache
def frozen_datamanager(target: Any) -> type[DataManager]:
    """A subclass of a data manager that never trains.

    - Data managers of rays (``VanillaDataManager``, ``ParallelDataManager`` and their subclasses) start no processes
      and load no training images; evaluation images are loaded on first use. ``next_train`` draws rays from the
      training cameras, through the object only if a ``ray_filter`` is set.
    - Data managers of full images (``FullImageDatamanager``) load nothing before images are requested.
    - Data managers without images (``RandomCamerasDataManager``) have the same cameras each time, named by number.
    - Any other data manager keeps its behaviour.

    Args:
        target: the base configuration's ``_target``: a class, or a generic alias such as
            ``VanillaDataManager[DepthDataset]``, whose data set type is kept.
    """
    origin = typing.get_origin(target) or target
    frozen: type[DataManager]
    bases: tuple[Any, ...] = (target,)
    if issubclass(origin, (VanillaDataManager, ParallelDataManager)):
        frozen = FrozenRays
    elif issubclass(origin, FullImageDatamanager):
        frozen = FrozenImages
    elif issubclass(origin, RandomCamerasDataManager):
        frozen = FrozenRandomCameras
        bases = (target, RayClassMarker)
    else:
        frozen = Filtered
    # new_class keeps an alias among __orig_bases__, where nerfstudio looks for the data set's type
    namespace = {"__module__": __name__, "__doc__": f"{origin.__name__} that never trains."}
    return types.new_class(f"Frozen{origin.__name__}", (frozen, *bases), exec_body=lambda body: body.update(namespace))


class Filtered(DataManager):
    """Mixin for a data manager: the ray filter, and the cameras and photos of the training views."""

    ray_may_show: RayFilter | None = None
    """Selects the rays that would show the object without occluders; more exact than the filter, and slower."""
    has_photos = True
    """Whether the model was trained on images."""
    _ray_filter: RayFilter | None = None
    _cells: PixelCells | None = None

    @property
    def transforms_path(self) -> Path | None:
        """Path of the data set's transforms.json; None if it has none."""
        data = getattr(getattr(getattr(self, "dataparser", None), "config", None), "data", None)
        if data is None:
            return None
        path = Path(data) if Path(data).suffix == ".json" else Path(data) / "transforms.json"
        return path if path.is_file() else None

    @property
    def ray_filter(self) -> RayFilter | None:
        """Selects the rays that pass through the object; None selects all rays."""
        return self._ray_filter

    @ray_filter.setter
    def ray_filter(self, ray_filter: RayFilter | None) -> None:
        self._ray_filter = ray_filter
        self.reset_ray_filter()

    def training_cameras(self) -> Cameras:
        """The cameras that the model was trained with."""
        assert self.train_dataset is not None
        return self.train_dataset.cameras

    def training_photo(self, index: int) -> Float[Tensor, "height width 3"]:
        """The training image of a camera of :meth:`training_cameras`, in [0, 1].

        Raises:
            SA3DError: The image cannot be read.
        """
        assert self.train_dataset is not None
        try:
            # With masks applied and colours behind transparency, as in training.
            image = self.train_dataset.get_data(index)["image"]
        except (OSError, ValueError) as error:
            path = self.train_dataset.image_filenames[index]
            raise SA3DError(
                f"{path} cannot be read ({one_line(error)}): put it back, or choose --pipeline.image-source render."
            ) from error
        return as_colours(image)

    def reset_ray_filter(self) -> None:
        """Drop the pixels that show the object; to be called when the object has changed."""
        self._cells = None

    def learn(self, shown: Bool[Tensor, " num_rays"]) -> None:
        """Draw fewer rays that miss the object, given a mask of the last drawn rays that have shown it."""
        if self._cells is not None:
            self._cells.learn(shown)


class WithoutProcesses(Filtered):
    """Mixin for a data manager that starts no processes, and so can be made whatever the process's start method."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with any_start_method():
            super().__init__(*args, **kwargs)


class FrozenRays(WithoutProcesses):
    """Mixin for a data manager of rays."""

    config: Any
    device: Any
    train_pixel_sampler: PixelSampler | None = None
    _eval_is_pending = False

    def setup_train(self) -> None:
        """Set up the drawing of rays, without images or processes."""
        assert self.train_dataset is not None
        self.train_pixel_sampler = PixelSamplerConfig().setup(num_rays_per_batch=self._rays_per_batch())
        self.train_ray_generator = RayGenerator(self.train_dataset.cameras.to(self.device)).to(self.device)

    def _rays_per_batch(self) -> int:
        return self.config.train_num_rays_per_batch

    def setup_eval(self) -> None:
        """As in the base class, but deferred to the first use if the attributes that it makes are known."""
        base = super().setup_eval
        if getattr(base, "__func__", None) in (VanillaDataManager.setup_eval, ParallelDataManager.setup_eval):
            self._eval_is_pending = True
        else:
            base()

    def __getattr__(self, name: str) -> Any:
        if name in _MADE_BY_SETUP_EVAL and self.__dict__.get("_eval_is_pending"):
            self._eval_is_pending = False
            super().setup_eval()
            # Up to nerfstudio 1.1.5 a data manager is a torch module; on the main branch it only holds modules.
            for module in self.modules() if isinstance(self, nn.Module) else vars(self).values():
                if isinstance(module, nn.Module) and module is not self:
                    module.to(self.device)
            return getattr(self, name)
        if name == "iter_train_raybundles" and isinstance(self, ParallelDataManager):
            # next_eval of nerfstudio's main branch reads this; here only evaluation has batches.
            return self.iter_eval_raybundles
        if isinstance(self, nn.Module):
            return super().__getattr__(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Random rays of the training cameras.

        Args:
            step: not used.

        Returns:
            ``train_pixel_sampler.num_rays_per_batch`` rays, and a batch of their "indices" (camera, y, x) alone.

        Raises:
            SA3DError: no training camera sees the object.
        """
        assert self.train_pixel_sampler is not None
        self.train_count += 1
        if self._cells is None:
            self._cells = self._cells_with_object()
        indices = self._cells.sample(self.train_pixel_sampler.num_rays_per_batch)
        return self.train_ray_generator(indices), {"indices": indices}

    def _cells_with_object(self) -> PixelCells:
        assert self.train_dataset is not None
        cameras = self.train_dataset.cameras.to(self.device)
        if self.ray_filter is None:
            return PixelCells.whole_images(cameras)
        for num_cells in CELLS_ALONG_IMAGE:
            cells = PixelCells.with_object(
                cameras, num_cells, self.train_ray_generator, self.ray_filter, self.ray_may_show
            )
            if len(cells.bounds):
                return cells
        raise SA3DError(
            "the segmented object is empty, or no training view sees it: segment it again with another prompt."
        )


class FrozenImages(WithoutProcesses):
    """Mixin for a data manager of full images."""

    _undistorted: dict[str, Cameras] | None = None

    def setup_train(self) -> None:
        """Load no images, and start none of the processes that nerfstudio's main branch uses for images on disk."""
        base = super().setup_train
        if getattr(base, "__func__", None) is not FullImageDatamanager.setup_train:
            base()

    def training_cameras(self) -> Cameras:
        """The cameras that the model was trained with: those of the undistorted images."""
        return self.undistorted_cameras("train")

    def undistorted_cameras(self, split: Literal["train", "eval"]) -> Cameras:
        """The cameras of the images of a split as the model renders them, without distortion.

        nerfstudio undistorts all images when it loads and caches them, and writes the new intrinsics and sizes into the
        data set's cameras. Here its function undistorts a blank image for each camera, and no image is loaded.
        """
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        assert dataset is not None
        if not _is_distorted(dataset.cameras) or f"cached_{split}" in vars(self):
            return dataset.cameras
        if self._undistorted is None:
            self._undistorted = {}
        if split not in self._undistorted:
            cameras = copy.deepcopy(dataset.cameras)
            for index in range(len(cameras)):
                size = int(cameras.height[index]), int(cameras.width[index])
                matrix, image = _undistort(dataset.cameras, index, np.zeros((*size, 3), dtype=np.uint8))
                cameras.fx[index], cameras.fy[index] = float(matrix[0, 0]), float(matrix[1, 1])
                cameras.cx[index], cameras.cy[index] = float(matrix[0, 2]), float(matrix[1, 2])
                cameras.height[index], cameras.width[index] = image.shape[:2]
            self._undistorted[split] = cameras
        return self._undistorted[split]

    def training_photo(self, index: int) -> Float[Tensor, "height width 3"]:
        """As in the base class, but undistorted, as the cameras are."""
        photo = super().training_photo(index)
        assert self.train_dataset is not None
        if not _is_distorted(self.train_dataset.cameras):
            return photo
        if "cached_train" in vars(self):  # by a tool of nerfstudio's, which has changed the cameras, too
            return as_colours(vars(self)["cached_train"][index]["image"])
        return torch.from_numpy(_undistort(self.train_dataset.cameras, index, photo.numpy())[1])

    def get_train_rays_per_batch(self) -> int:
        """Number of pixels of a training image, without loading the images."""
        assert self.train_dataset is not None
        camera = self.train_dataset.cameras[0]
        return int(camera.height.item() * camera.width.item())


class FrozenRandomCameras(FrozenRays):
    """Mixin for a data manager of random cameras around a generated object, without images.

    Its evaluation cameras, which are drawn anew for each instance, are the training views here. They are named by
    number, and have the size that segmenters need: no photo determines it.
    """

    has_photos = False

    SIZE = 512
    """Pixels along each side of a view."""

    SEED = 0
    """Seed of the cameras, so that a prompt given in one process is in the same view in the next."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.SEED)
            super().__init__(*args, **kwargs)
        # Both of its data sets have the same cameras.
        self.training_cameras().rescale_output_resolution(self.SIZE / self.config.eval_resolution)
        if self.train_pixel_sampler is not None:
            self.setup_train()
        for dataset in (self.train_dataset, self.eval_dataset):
            assert dataset is not None
            names = [Path(f"{index:03d}.png") for index in range(len(dataset))]
            # The outputs of a data parser, which exporters of meshes read from the data set.
            dataset._dataparser_outputs = DataparserOutputs(names, dataset.cameras, scene_box=dataset.scene_box)
            dataset.scale_factor = 1.0

    def training_photo(self, index: int) -> Float[Tensor, "height width 3"]:
        """Not available: there are no photos.

        Raises:
            SA3DError: Always.
        """
        raise SA3DError("this run was trained without images: use --pipeline.image-source render.")

    def _rays_per_batch(self) -> int:
        return self.config.train_resolution**2


class RayClassMarker(ParallelDataManager):
    """Last base class of a data manager that draws rays, for the class checks of nerfstudio's exporters of points.

    Up to 1.1.5 they accept any data manager of nerfstudio's; those of the main branch accept only data managers of
    rays, by class, and draw rays by ``next_train`` as before. Nothing else is taken over.
    """

    setup_eval = DataManager.setup_eval
    get_datapath = DataManager.get_datapath


def _is_distorted(cameras: Cameras) -> bool:
    return cameras.distortion_params is not None and bool((cameras.distortion_params != 0).any())


def _undistort(cameras: Cameras, index: int, image: Any) -> tuple[Any, Any]:
    """A camera's 3 x 3 matrix and its image, [height, width, channels], both without distortion, by nerfstudio."""
    camera = cameras[index].reshape(())
    matrix = camera.get_intrinsics_matrices().numpy()
    if camera.distortion_params is None or not bool((camera.distortion_params != 0).any()):
        return matrix, image
    parameters = camera.distortion_params.numpy()
    matrix, image, _ = full_images_datamanager._undistort_image(camera, parameters, {}, image, matrix)
    return matrix, image


def as_colours(image: Tensor) -> Float[Tensor, "height width 3"]:
    """An image of a data set as colours in [0, 1], with white behind transparency."""
    image = image.float() / 255 if image.dtype == torch.uint8 else image.float()
    if image.shape[-1] == 4:
        image = image[..., :3] * image[..., 3:] + 1 - image[..., 3:]
    return image
