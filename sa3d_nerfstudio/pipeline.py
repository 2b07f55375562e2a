"""Pipeline: the base run's data and its frozen model with masks, and the sessions that fill these."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
import yaml
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManagerConfig
from nerfstudio.models.base_model import ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipeline, VanillaPipelineConfig
from torch import Tensor

from sa3d_nerfstudio.base_run.checkpoint import check_finite, load_checkpoint
from sa3d_nerfstudio.base_run.patches import GUIDANCE, lpips_without_download, without_guidance
from sa3d_nerfstudio.datamanager import Filtered, frozen_datamanager
from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.fields.mask_grid import MIN_RESOLUTION
from sa3d_nerfstudio.files import atomic_path, cannot_write, digest, read_json
from sa3d_nerfstudio.models.attach import with_masks
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.prompts.config import ObjectPrompts, PromptConfig, read_prompts
from sa3d_nerfstudio.segmentation.everything import SceneSegmentation, SceneSettings
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.saved_prompts import write_session_prompts
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.text_finder import TextFinder
from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterOptions, input_side
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.text import GROUNDING_DINO, SAM_3_CONCEPTS, TextOptions, gives_masks
from sa3d_nerfstudio.splat_files.source import ImportSource
from sa3d_nerfstudio.viewer.panel import SegmentPanel
from sa3d_nerfstudio.views.cache import Embeddings, ViewCache, default_budget
from sa3d_nerfstudio.views.cameras import learnt_poses
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.photos import Photos
from sa3d_nerfstudio.views.training_views import TrainingViews

CPU_RAYS_PER_CHUNK = 1024
"""Rays per chunk on a CPU: chunks that fit its caches render twice as fast as nerfstudio's default of 32768."""

INSTANCE_CELLS = 64
"""Vertices along each axis of the grids by which instances in several views are matched."""

SCENE_BYTES = 2_000_000_000
"""Memory for the mask grids of a whole scene, in bytes."""
VERTEX_BYTES = 12
"""Bytes of a vertex of a mask grid: evidence, and a logit."""

MOVING = "the scene changes with time, and a mask holds for one moment only: give --load-dir a run of a still scene."


@dataclass
class BaseReference:
    """Reference of a sa3d run to its base run. Filled in from --load-dir."""

    method: str
    """Name of the method that trained the base run."""
    config: Path
    """Its config.yml."""
    checkpoint: Path
    """Its checkpoint."""
    step: int
    """Step of the checkpoint."""
    datamanager_target: Any
    """Class of its data manager; nerfstudio's tools overwrite the one in the configuration."""


@dataclass
class SA3DPipelineConfig(SessionSettings, VanillaPipelineConfig):
    """Segment objects in a trained radiance field."""

    _target: type = field(default_factory=lambda: SA3DPipeline)
    datamanager: Annotated[DataManagerConfig, tyro.conf.Suppress] = field(default_factory=DataManagerConfig)
    """Data manager of the base run."""
    model: Annotated[ModelConfig, tyro.conf.Suppress] = field(default_factory=ModelConfig)
    """Model of the base run."""
    base: Annotated[BaseReference | None, tyro.conf.Suppress] = None
    """The base run."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """Object to segment; without a prompt, objects are prompted in the viewer."""
    object_name: str = "object"
    """Name that the segmented object is saved under."""
    segmenter: str = "sam-vit-h"
    """2D segmenter: sam-vit-h, sam-vit-l, sam-vit-b, sam (of any size), mobile-sam, sam2, sam3, sam-hq, grabcut (which
    needs no weights), oracle (for benchmarks), or a plugin's."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model: a file, or for sam2, sam3 and sam-hq a folder or a name on Hugging
    Face."""
    sam_download: bool = True
    """Download published weights on first use; else the error message names their source."""
    dense_prompts: bool = False
    """Prompt SAM with the rendered mask itself and a box around it, beside points on it; not known to help."""
    image_source: Literal["photo", "render"] = "photo"
    """Image of a training view for segmenters: the photo that the model was trained with, if there is one, or the base
    model's render. Networks get photos at up to their input size, whatever the working size."""
    text_model: str = "auto"
    """For text prompts: folder of a Grounding DINO or SAM 3 model, or its name on the Hugging Face hub; by default
    SAM 3 with the segmenter sam3, and Grounding DINO with any other."""
    oracle_instances: Path | None = None
    """For the oracle: folder of id maps named like the images."""
    resolution: int = 128
    """Vertices of the mask grid along each axis; the grid is placed around the object."""
    working_size: int | None = None
    """Longer side of the images in which views are segmented; by default 1008 on CUDA and 160 on a CPU, and windows of
    images two or four times as large around objects that are small in these, no finer than the training images."""
    cache_gb: float | None = None
    """Memory for renders and embeddings of views, in GB; by default half of the free memory of GPU or machine."""
    keep_cache: bool = True
    """Keep renders and embeddings of views on disk for later runs; written at each save, or when memory is short."""
    cache_disk_gb: float = 50.0
    """Disk space of all runs that share the cache folder, in GB; when it is full, entries of other runs are deleted."""
    cache_dir: Path | None = None
    """Folder of this cache; by default the folder "cache" beside the runs of sa3d."""
    object_background: Literal["white", "black"] = "white"
    """Background colour of object_rgb."""
    save_base: bool = True
    """Store the base model's weights in the checkpoint; else refer to the base run, which must then stay in place."""
    everything: bool = False
    """Segment the whole scene: all objects that the segmenter proposes in some views."""
    everything_views: int = SceneSettings.num_views
    """Views whose masks are the proposals."""
    everything_min_share: float = SceneSettings.min_share
    """Smallest share of an image's pixels that a proposal covers."""
    everything_text: str = ""
    """Segment the whole scene, but only the objects that these words name; different kinds are separated by full
    stops."""
    everything_max_objects: int = SceneSettings.max_objects
    """Largest number of objects, parts and wholes included."""
    everything_max_minutes: float | None = None
    """Time after which no further object is begun, and the current one is given up unless it is the first; the same
    command goes on with the rest with --load-dir RUN, the saved run's folder, or with the same --timestamp."""
    redo: bool = False
    """Segment objects again even if they are finished with the same prompts and settings."""


class SA3DPipeline(VanillaPipeline):
    """A trained run with masks.

    Raises:
        SA3DError: The configuration names no base run (``ns-train sa3d`` without ``--load-dir``).
    """

    config: SA3DPipelineConfig

    def __init__(
        self,
        config: SA3DPipelineConfig,
        device: str,
        test_mode: Literal["test", "val", "inference"] = "val",
        world_size: int = 1,
        local_rank: int = 0,
        grad_scaler: Any = None,
    ) -> None:
        if config.base is None:
            raise SA3DError("there is no run to segment: give one with --load-dir outputs/SCENE/METHOD/TIME.")
        if getattr(config.model, "enable_temporal_distortion", False):
            raise SA3DError(MOVING)
        # nerfstudio's tools overwrite this with sa3d's, and ns-render dataset builds another data manager from it.
        config.datamanager._target = config.base.datamanager_target
        vanilla = copy.copy(config)
        vanilla.datamanager = copy.copy(config.datamanager)
        vanilla.datamanager._target = frozen_datamanager(config.base.datamanager_target)
        vanilla.model = copy.copy(config.model)
        try:
            with lpips_without_download(), without_guidance():
                # Nothing is trained: each of several processes has all data and the whole model.
                super().__init__(vanilla, device, test_mode, 1, 0, grad_scaler)
        except OSError as error:  # includes Pillow's error for damaged images
            folder = "" if error.filename else f", in {config.datamanager.data}"
            raise SA3DError(f"the data set cannot be read ({one_line(error)}{folder}): restore its images.") from error
        if getattr(self.datamanager, "includes_time", False):
            raise SA3DError(MOVING)
        self.config = config
        model = with_masks(self._model, config.threshold, config.object_background)
        model.requires_grad_(False)
        if torch.device(device).type == "cpu":
            model.config.eval_num_rays_per_chunk = min(model.config.eval_num_rays_per_chunk, CPU_RAYS_PER_CHUNK)
        self._model = model.to(device)
        self.model.for_inference = test_mode == "inference"
        self.eval()
        self.ranks = Ranks()
        """The processes that share the jobs of the command line."""
        self._views: TrainingViews | None = None
        self._segmenter: tuple[Any, Segmenter] | None = None
        self._embeddings: tuple[Segmenter, dict[int, Embeddings]] | None = None
        self.cache_folder: Path | None = None
        """Folder for renders and embeddings of views, unless the configuration names one."""
        self.segment_panel = SegmentPanel(self)
        """The viewer's panel; nerfstudio finds it among the attributes of the pipeline."""
        manager = cast(Filtered, self.datamanager)
        manager.ray_filter = lambda rays: self.model.masks.hits(*self._lines(rays), config.threshold)
        manager.ray_may_show = lambda rays: self.model.masks.may_show(*self._lines(rays), config.threshold)
        self.model.on_exported = manager.learn

    @property
    def model(self) -> MaskOutputs:
        """The base model with masks."""
        return cast(MaskOutputs, self._model)

    def _lines(self, rays: RayBundle) -> tuple[Tensor, Tensor]:
        return rays.origins.to(self.device), rays.directions.to(self.device)

    def training_cameras(self) -> Cameras:
        """Cameras that the base model was trained with, in the poses of its camera optimiser."""
        return learnt_poses(self.model, cast(Filtered, self.datamanager).training_cameras())

    @property
    def views(self) -> TrainingViews:
        """The training views, at the working size."""
        if self._views is None:
            dataset = self.datamanager.train_dataset
            assert dataset is not None
            scaled_down = getattr(getattr(self.datamanager, "dataparser", None), "downscale_factor", None) or 1
            size = self.config.working_size or (1008 if self.device.type == "cuda" else 160)
            scale = scaled_down / dataset.scale_factor
            cameras, photos = self.training_cameras(), self._photos(dataset.image_filenames)
            self._views = TrainingViews(
                self.model, cameras, dataset.image_filenames, size, scale, photos, self._make_cache()
            )
        return self._views

    def _photos(self, images: Sequence[Path]) -> Photos | None:
        """The photos that segmenters see, of the training views with these images; None if they see renders."""
        manager = cast(Filtered, self.datamanager)
        if self.config.image_source != "photo" or not manager.has_photos:
            return None
        # The images of an imported run may be drawings, which are coarser than renders.
        transforms = manager.transforms_path
        source = None if transforms is None else ImportSource.of(read_json(transforms, "list of images"))
        drawings = set() if source is None else set(source.previews)
        missing = {view for view, image in enumerate(images) if image.name in drawings}
        return None if len(missing) == len(images) else Photos(manager.training_photo, missing)

    def _make_cache(self) -> ViewCache:
        config = self.config
        folder = config.cache_dir or self.cache_folder
        disk = None
        if folder is not None and config.keep_cache:
            disk = DiskStore(lambda: folder / self.base_digest(), int(config.cache_disk_gb * 1e9))
        free = default_budget(self.device) // (self.ranks.local_size if self.device.type == "cpu" else 1)
        budget = free if config.cache_gb is None else int(config.cache_gb * 1e9)
        return ViewCache(budget, disk)

    def base_digest(self) -> str:
        """Digest of all that determines renders of the base model: weights, configuration, and this package's version.

        It is computed from the weights in use, since their checkpoint may have been overwritten meanwhile.
        """
        state = self.model.state_dict()
        weights = {name: value for name, value in state.items() if not name.startswith(("masks.", "lpips."))}
        settings = copy.copy(self.model.config)
        # The chunk size does not change a render.
        settings.eval_num_rays_per_chunk = 0
        named = [item for name in sorted(weights) for item in (name, weights[name])]
        return digest([version("sa3d-nerfstudio"), yaml.dump(settings), self.model.scene_box.aabb, *named])

    def make_segmenter(self) -> Segmenter:
        """The 2D segmenter that the configuration names; built once.

        Raises:
            SA3DError: No segmenter has that name, or its weights are missing.
        """
        config = self.config
        options = SegmenterOptions(
            device=self.device,
            sam_checkpoint=config.sam_checkpoint,
            oracle_instances=config.oracle_instances,
            sam_dense_prompts=config.dense_prompts,
            sam_download=config.sam_download,
        )
        if self._segmenter is None or self._segmenter[0] != (config.segmenter, options):
            self._segmenter = ((config.segmenter, options), make_segmenter(config.segmenter, options))
        return self._segmenter[1]

    def sized(self, segmenter: Segmenter, factor: float = 1.0) -> tuple[TrainingViews, Embeddings]:
        """The training views in images larger by a factor, and a segmenter's embeddings of them."""
        views = self.views.larger(factor)
        if self._embeddings is None or self._embeddings[0] is not segmenter:
            self._embeddings = (segmenter, {})
        embeddings = self._embeddings[1]
        if views.long_side not in embeddings:
            key = partial(views.picture_key, side=input_side(segmenter))
            embeddings[views.long_side] = Embeddings(views.cache, segmenter, key)
        return views, embeddings[views.long_side]

    def session(
        self,
        name: str | None = None,
        segmenter: Segmenter | None = None,
        register: bool = True,
        resolution: int | None = None,
        ranks: Ranks | None = None,
    ) -> SegmentationSession:
        """Begin to segment an object.

        Args:
            name: The object's name; an object of the same name is replaced.
            segmenter: The segmenter; by default that of the configuration.
            register: Whether to add the object to the model's masks now.
            resolution: Vertices of the mask grid along each axis, at most; by default as configured.
            ranks: Processes that segment the object together; by default this one alone, as in the viewer.
        """
        config = self.config
        segmenter = segmenter or self.make_segmenter()
        name = name or config.object_name
        grid = self.model.new_field(resolution or config.resolution)
        views, embeddings = self.sized(segmenter)
        choose = partial(self.sized, segmenter) if config.working_size is None else None
        session = SegmentationSession(views, segmenter, grid, config, embeddings, choose, ranks=ranks)
        if register:
            self.model.masks[name] = grid
        return session

    def scene(self, segmenter: Segmenter | None = None) -> SceneSegmentation:
        """Begin to segment all objects of the scene. The caller adds the objects found to the model's masks.

        Args:
            segmenter: The segmenter; by default that of the configuration.
        """
        config = self.config
        segmenter = segmenter or self.make_segmenter()
        views, embeddings = self.sized(segmenter)
        minutes = config.everything_max_minutes
        settings = SceneSettings(
            num_views=config.everything_views,
            min_share=config.everything_min_share,
            max_objects=config.everything_max_objects,
            max_seconds=None if minutes is None else 60 * minutes,
            threshold=config.threshold,
            min_agreement=config.min_agreement,
            part_gap=config.part_gap,
        )
        predictor = MaskPredictor(segmenter, SessionViews(views, {}, SessionReport()), embeddings)
        # Grids of the largest number of objects fit into SCENE_BYTES; most are smaller, since pixels bound them, too.
        vertices = SCENE_BYTES / (VERTEX_BYTES * max(config.everything_max_objects, 1))
        resolution = max(min(config.resolution, int(vertices ** (1 / 3))), MIN_RESOLUTION)
        session = partial(self.session, None, segmenter, register=False, resolution=resolution)
        words = config.everything_text
        if not words.strip(" ."):
            return SceneSegmentation(views, predictor, session, settings)
        finder = self.text_finder()
        return SceneSegmentation(views, predictor, session, settings, lambda view: finder.proposals(view, words))

    def text_options(self) -> TextOptions:
        """Options of the network that finds words in images."""
        config = self.config
        model = config.text_model
        if model == "auto":
            is_sam3, checkpoint = config.segmenter == "sam3", str(config.sam_checkpoint)
            # A folder that holds only the tracker takes no words.
            concepts = checkpoint if gives_masks(TextOptions(checkpoint)) else SAM_3_CONCEPTS.published
            model = concepts if is_sam3 else GROUNDING_DINO.published
        return TextOptions(model, device=str(self.device), download=config.sam_download)

    def text_finder(self) -> TextFinder:
        """Finder of words in the training views."""

        def predictor(views: SessionViews) -> MaskPredictor:
            segmenter = self.make_segmenter()
            return MaskPredictor(segmenter, views, self.sized(segmenter)[1])

        new_field = partial(self.model.new_field, INSTANCE_CELLS)
        return TextFinder(self.views, self.text_options(), predictor, new_field, self.config.threshold)

    def prompts_from_config(self) -> list[ObjectPrompts]:
        """Prompts of the configuration, by object and view.

        Raises:
            SA3DError: A view is unknown, a point lies outside its image, a file cannot be read, or one is given beside
                a name for the object.
        """
        config = self.config
        if config.prompt.file is not None and config.object_name != type(config).object_name:
            raise SA3DError(
                "give either --pipeline.prompt.file or --pipeline.object-name, not both: in the file, name is a key of "
                "each entry."
            )
        return read_prompts(config.prompt, self.views, config.object_name, self.text_finder())

    def remember(self, name: str, session: SegmentationSession) -> None:
        """Store the prompts of an object with its mask, so that the viewer can continue from them."""
        self.model.masks.prompts[name] = write_session_prompts(session)

    def load_pipeline(self, loaded_state: dict[str, Any], step: int) -> None:
        """Load a checkpoint of the base run, or of a sa3d run with or without base weights in it.

        Raises:
            SA3DError: The weights do not fit the base model, or the base run is gone.
        """
        state: Mapping[str, Tensor] = {key.removeprefix("module."): value for key, value in loaded_state.items()}
        if not any(key.startswith("_model.") and not key.startswith("_model.masks.") for key in state):
            assert self.config.base is not None
            path = self.config.base.checkpoint
            if not path.exists():
                raise SA3DError(
                    f"this run was saved without the base weights, and its base run's {path} is gone: put it back."
                )
            state = {**load_checkpoint(path)["pipeline"], **state}
        self.model.update_to_step(step)
        model_state = {key.removeprefix("_model."): value for key, value in state.items() if key.startswith("_model.")}
        model_state = {key: value for key, value in model_state.items() if not key.startswith(GUIDANCE)}
        missing, unexpected = self.model.load_state_dict(model_state, strict=False)
        missing = [key for key in missing if not key.startswith(("masks.", "lpips."))]
        if missing or unexpected:
            raise SA3DError(
                f"the checkpoint does not fit the model in config.yml ({len(missing)} tensors missing, "
                f"{len(unexpected)} too many): use the config.yml that belongs to it, and the nerfstudio that wrote it."
            )
        check_finite(self.model)
        self.eval()

    def checkpoint_state(self) -> dict[str, Any]:
        """State for a checkpoint: all weights, or the masks alone if the base weights stay in the base run."""
        state = self.state_dict()
        if self.config.save_base:
            return state
        return {key: value for key, value in state.items() if key.startswith("_model.masks.")}

    def checkpoint_bytes(self) -> int:
        """Approximate size of a checkpoint, in bytes."""
        tensors = [value for value in self.checkpoint_state().values() if isinstance(value, Tensor)]
        return sum(value.numel() * value.element_size() for value in tensors)

    def save_checkpoint(self, path: Path, step: int) -> None:
        """Write a checkpoint that nerfstudio's tools read; if that fails, an existing one is unchanged."""
        state: dict[str, Any] = {"step": step, "pipeline": self.checkpoint_state()}
        # nerfstudio's trainer reads these; they are empty here.
        state |= {"optimizers": {}, "schedulers": {}, "scalers": {}}
        with atomic_path(path) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch's error for a full disk
                raise cannot_write(path, error) from error

    def get_param_groups(self) -> dict[str, list[Any]]:
        """No parameter groups: nothing is trained by gradient steps."""
        return {}

    def get_training_callbacks(self, training_callback_attributes: Any) -> list[Any]:
        """No callbacks: nothing is trained by gradient steps."""
        return []
