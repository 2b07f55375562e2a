"""Frozen data managers of all kinds: no processes, no loading of training images, rays only through the object."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import DataManager, VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager, FullImageDatamanagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManager, ParallelDataManagerConfig
from nerfstudio.data.datamanagers.random_cameras_datamanager import (
    RandomCamerasDataManager,
    RandomCamerasDataManagerConfig,
)
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from nerfstudio.data.datasets.depth_dataset import DepthDataset
from pathos.helpers import mp
from PIL import Image
from torch import Tensor, multiprocessing

from sa3d_nerfstudio.datamanager import as_colours, frozen_datamanager
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.object_pixels import RayFilter

SHARED = Path(__file__).resolve().parents[2] / "shared"
RAY_CONFIGS = [VanillaDataManagerConfig, ParallelDataManagerConfig]


class Sphere:
    """Ray filter: rays that pass through a sphere in front of the camera."""

    def __init__(self, radius: float, centre: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        self.radius, self.centre, self.calls = radius, torch.tensor(centre), 0

    def __call__(self, rays: RayBundle) -> Tensor:
        self.calls += 1
        to_centre = self.centre - rays.origins
        along = (to_centre * rays.directions).sum(-1, keepdim=True)
        return ((to_centre - along * rays.directions).norm(dim=-1) < self.radius) & (along[..., 0] > 0)


def camera_to_world(angle: float) -> list[list[float]]:
    """Pose [4, 4] of a camera 4 m from the origin that looks at it; z is up, OpenGL axes."""
    c, s = math.cos(angle), math.sin(angle)
    return [[-s, 0, c, 4 * c], [c, 0, s, 4 * s], [0, 1, 0, 0], [0, 0, 0, 1]]


def write_scene(folder: Path, sizes: list[tuple[int, int]], model: str = "OPENCV", **camera: float) -> Path:
    """Write a data set in nerfstudio's format: cameras around the origin, with images of these (width, height)."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for i, (width, height) in enumerate(sizes):
        name = f"images/{i}.png"
        Image.new("RGB", (width, height), (i, 100, 200)).save(folder / name)
        frame: dict[str, Any] = {"file_path": name, "transform_matrix": camera_to_world(2 * math.pi * i / len(sizes))}
        frame |= {"w": width, "h": height, "fl_x": width, "fl_y": width, "cx": width / 2, "cy": height / 2, **camera}
        frames.append(frame)
    names = [frame["file_path"] for frame in frames]
    # The last image is for evaluation.
    splits = {"train_filenames": names[:-1], "val_filenames": names[-1:], "test_filenames": names[-1:]}
    (folder / "transforms.json").write_text(json.dumps({"camera_model": model, "frames": frames, **splits}))
    return folder


@pytest.fixture
def ring(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "ring", [(64, 48)] * 6)


def make(config_type: type, data: Path | None, target: Any = None, test_mode: str = "val", **options: Any) -> Any:
    """Make the frozen data manager of a configuration as a pipeline does."""
    config = config_type(**options)
    if data is not None:
        # Poses are not transformed, so that they share a frame with the tests' spheres.
        config.dataparser = NerfstudioDataParserConfig(
            data=data, orientation_method="none", center_method="none", auto_scale_poses=False
        )
    config._target = frozen_datamanager(target or config._target)
    return config.setup(device="cpu", test_mode=test_mode, world_size=1, local_rank=0)


def pixels_that_pass(datamanager: Any, sphere: Sphere, camera: int) -> Tensor:
    """Whether the ray of each pixel passes through the sphere, [height, width]: every ray is tested."""
    rays = datamanager.train_dataset.cameras.generate_rays(camera_indices=camera, keep_shape=True)
    return sphere(rays.flatten()).reshape(rays.shape)


def dilated(mask: Tensor, radius: int) -> Tensor:
    return torch.nn.functional.max_pool2d(mask[None].float(), 2 * radius + 1, stride=1, padding=radius)[0] > 0


def assert_rays_cover_the_sphere(datamanager: Any, sphere: Sphere, stride: int, num_batches: int) -> None:
    datamanager.ray_filter = sphere
    # Rays are drawn at random: with another seed, a few pixels at the rim may have none nearby.
    torch.manual_seed(0)
    indices = torch.cat([datamanager.next_train(step)[1]["indices"] for step in range(num_batches)])
    for index, camera in enumerate(datamanager.train_dataset.cameras):
        drawn = torch.zeros(int(camera.height), int(camera.width), dtype=torch.bool)
        _, y, x = indices[indices[:, 0] == index].unbind(-1)
        drawn[y, x] = True
        passing = pixels_that_pass(datamanager, sphere, index)
        assert (drawn & ~dilated(passing, 2 * stride)).sum() == 0, "a ray far from the object"
        assert (passing & ~dilated(drawn, stride - 1)).sum() == 0, "a part of the object without rays"


@pytest.mark.parametrize("config_type", RAY_CONFIGS)
def test_rays_pass_through_the_object(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring)
    assert isinstance(datamanager, (VanillaDataManager, ParallelDataManager))
    sphere = Sphere(0.3, (0.5, 0.0, 0.2))
    assert 20 < pixels_that_pass(datamanager, sphere, 0).sum() < 300
    assert_rays_cover_the_sphere(datamanager, sphere, stride=1, num_batches=40)


def test_images_of_several_sizes(tmp_path: Path) -> None:
    sizes = [(64, 48), (48, 64), (250, 131), (64, 48), (64, 48)]
    datamanager = make(VanillaDataManagerConfig, write_scene(tmp_path / "mixed", sizes))
    assert_rays_cover_the_sphere(datamanager, Sphere(0.3), stride=3, num_batches=60)


@pytest.mark.parametrize("lens", [{"k1": 0.3, "p1": 0.05}, {"model": "OPENCV_FISHEYE", "k1": 0.1}])
def test_distorted_and_fisheye_cameras(lens: dict[str, Any], tmp_path: Path) -> None:
    distorted = make(VanillaDataManagerConfig, write_scene(tmp_path / "distorted", [(64, 48)] * 4, **lens))
    plain = make(VanillaDataManagerConfig, write_scene(tmp_path / "plain", [(64, 48)] * 4))
    sphere = Sphere(0.4, (0.0, 0.0, 1.0))
    assert not torch.equal(pixels_that_pass(distorted, sphere, 0), pixels_that_pass(plain, sphere, 0))
    assert_rays_cover_the_sphere(distorted, sphere, stride=1, num_batches=40)


def test_desk() -> None:
    scene = SHARED / "scenes" / "desk"
    if not scene.is_dir():
        pytest.skip(f"no scene at {scene}")
    datamanager = make(VanillaDataManagerConfig, scene)
    centre = datamanager.train_dataset.cameras.camera_to_worlds[:, :, 3].mean(0)
    below = (float(centre[0]), float(centre[1]), float(centre[2]) - 0.4)
    assert_rays_cover_the_sphere(datamanager, Sphere(0.1, below), stride=4, num_batches=150)


@pytest.mark.parametrize("config_type", RAY_CONFIGS)
def test_rays_and_indices_belong_together(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring)
    datamanager.ray_filter = Sphere(0.5)
    rays, batch = datamanager.next_train(0)
    c, y, x = batch["indices"].unbind(-1)
    expected = datamanager.train_dataset.cameras.generate_rays(
        camera_indices=c[:, None], coords=torch.stack([y, x], dim=-1) + 0.5
    )
    assert torch.equal(rays.camera_indices[:, 0], c)
    torch.testing.assert_close(rays.directions, expected.directions)
    torch.testing.assert_close(rays.origins, expected.origins)


@pytest.mark.parametrize("config_type", RAY_CONFIGS)
def test_without_a_filter_every_pixel_is_drawn(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring, train_num_rays_per_batch=100_000)
    rays, batch = datamanager.next_train(0)
    assert len(rays) == len(batch["indices"]) == datamanager.get_train_rays_per_batch() == 100_000
    counts = torch.zeros(5, 48, 64)
    counts.index_put_(batch["indices"].unbind(-1), torch.ones(100_000), accumulate=True)
    expected = 100_000 / counts.numel()
    assert (counts - expected).square().mean() / expected == pytest.approx(1, abs=0.1)  # as a Poisson process


def large(folder: Path, radius: float) -> Any:
    """Data manager of three training images of 320 x 240 pixels of a sphere; the ray filter has twice its radius."""
    torch.manual_seed(0)
    datamanager = make(VanillaDataManagerConfig, write_scene(folder / "large", [(320, 240)] * 4))
    datamanager.ray_filter, datamanager.ray_may_show = Sphere(2 * radius), Sphere(radius)
    return datamanager


def half_hidden(radius: float, from_centre: float = 0.0) -> RayFilter:
    """Filter of rays that show a sphere, hidden except for its part this far to the right of its centre."""

    def shows(rays: RayBundle) -> Tensor:
        right = torch.linalg.cross(rays.origins, torch.tensor([0.0, 0.0, 1.0]).expand_as(rays.origins))
        return Sphere(radius)(rays) & ((rays.directions * right).sum(-1) > from_centre)

    return shows


def all_pixels(datamanager: Any, shows: RayFilter) -> Tensor:
    """Whether each pixel of the training images shows the object: [camera, height, width]."""
    cameras = datamanager.train_dataset.cameras
    bundles = [cameras.generate_rays(camera_indices=index, keep_shape=True) for index in range(len(cameras))]
    return torch.stack([shows(bundle.flatten()).reshape(bundle.shape) for bundle in bundles])


def covered(datamanager: Any) -> Tensor:
    """Whether each pixel of the training images may be drawn: [camera, height, width]."""
    pixels = torch.zeros(3, 240, 320, dtype=torch.bool)
    for camera, y0, x0, y1, x1 in datamanager._cells.bounds.tolist():
        pixels[camera, y0:y1, x0:x1] = True
    return pixels


@pytest.mark.parametrize("radius", [0.02, 0.3])
def test_rays_are_drawn_where_the_object_may_show(radius: float, tmp_path: Path) -> None:
    datamanager = large(tmp_path, radius)
    assert Sphere(radius)(datamanager.next_train(0)[0]).float().mean() > 0.95
    assert (all_pixels(datamanager, Sphere(radius)) & ~covered(datamanager)).sum() == 0


def test_what_shows_the_object_is_learnt_and_drawn_evenly(tmp_path: Path) -> None:
    """Pixels that do not show the object are not drawn again; all others are equally likely throughout."""
    datamanager, shows = large(tmp_path, 0.1), half_hidden(0.1)
    datamanager.train_pixel_sampler.num_rays_per_batch = 1024
    truth, counts, shares = all_pixels(datamanager, shows), torch.zeros(3, 240, 320), []
    for step in range(60):
        rays, batch = datamanager.next_train(step)
        visible = shows(rays)
        datamanager.learn(visible)
        shares.append(float(visible.float().mean()))
        counts.index_put_(batch["indices"][visible].unbind(-1), torch.ones(int(visible.sum())), accumulate=True)
    assert shares[0] < 0.6
    assert shares[-1] > 0.99
    assert truth.sum() > 200
    assert (counts[~truth] == 0).all()
    expected = counts.sum() / truth.sum()
    assert (counts[truth] - expected).square().mean() / expected == pytest.approx(1, abs=0.3)  # as a Poisson process


def test_what_is_hidden_is_left_out_before_each_pixel_was_tried(tmp_path: Path) -> None:
    shows = half_hidden(0.6, from_centre=0.35)
    datamanager = large(tmp_path, 0.6)
    datamanager.train_pixel_sampler.num_rays_per_batch = 1024
    truth, shares = all_pixels(datamanager, shows), []
    for step in range(20):
        visible = shows(datamanager.next_train(step)[0])
        datamanager.learn(visible)
        shares.append(float(visible.float().mean()))
    assert shares[0] < 0.25
    assert shares[-1] > 0.6
    # The tips of the visible part, less than a block each, may be missed.
    assert (truth & ~covered(datamanager)).sum() < 0.005 * truth.sum()


def test_where_nothing_shows_all_that_passes_is_drawn(ring: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, ring)
    datamanager.ray_filter, datamanager.ray_may_show = Sphere(0.3), Sphere(0.01, (50.0, 0.0, 0.0))
    assert Sphere(0.3)(datamanager.next_train(0)[0]).float().mean() > 0.5
    for step in range(30):
        datamanager.learn(torch.zeros(1024, dtype=torch.bool))
        assert len(datamanager.next_train(step)[0]) == 1024


def test_nothing_is_learnt_of_other_rays(tmp_path: Path) -> None:
    datamanager = large(tmp_path, 0.1)
    datamanager.learn(torch.zeros(1024, dtype=torch.bool))
    rays, _ = datamanager.next_train(0)
    before = covered(datamanager)
    datamanager.learn(torch.zeros(len(rays) - 1, dtype=torch.bool))
    assert torch.equal(covered(datamanager), before)
    datamanager.learn(torch.arange(len(rays)) > 100)
    assert covered(datamanager).sum() < before.sum()
    # A second mask for the same batch is ignored.
    after = covered(datamanager)
    datamanager.learn(torch.zeros(len(rays), dtype=torch.bool))
    assert torch.equal(covered(datamanager), after)


def test_exporters_set_the_batch_size(ring: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, ring)
    datamanager.train_pixel_sampler.num_rays_per_batch = 17
    assert len(datamanager.next_train(0)[0]) == 17
    assert datamanager.get_train_rays_per_batch() == 17


def test_the_filter_runs_once_until_reset(ring: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, ring)
    sphere = datamanager.ray_filter = Sphere(0.5)
    datamanager.next_train(0)
    datamanager.next_train(1)
    assert sphere.calls == 5
    before = datamanager.next_train(2)[1]["indices"][:, 2].float().std()
    sphere.radius = 0.1
    datamanager.reset_ray_filter()
    after = datamanager.next_train(3)[1]["indices"][:, 2].float().std()
    assert sphere.calls == 10
    assert after < before / 2
    datamanager.ray_filter = None
    assert datamanager.next_train(4)[1]["indices"][:, 2].float().std() > before


def test_an_object_smaller_than_a_cell_is_found(tmp_path: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, write_scene(tmp_path / "large", [(1920, 1080)] * 3))
    sphere = datamanager.ray_filter = Sphere(0.008, (0.0, 0.0, 0.017))  # 4 pixels in radius, between centres of cells
    _, batch = datamanager.next_train(0)
    assert sphere.calls > 2
    index, y, x = batch["indices"].unbind(-1)
    row, column = pixels_that_pass(datamanager, sphere, 0).nonzero(as_tuple=True)
    assert 20 < len(row) < 100
    assert (y[index == 0] - row.float().mean()).abs().max() < 20
    assert (x[index == 0] - column.float().mean()).abs().max() < 20


def test_an_empty_object_is_refused(ring: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, ring)
    datamanager.ray_filter = Sphere(0.1, (0.0, 0.0, 50.0))
    with pytest.raises(SA3DError, match="segment it again"):
        datamanager.next_train(0)


def test_no_processes(ring: Path) -> None:
    datamanager = make(ParallelDataManagerConfig, ring)
    datamanager.next_train(0)
    next(iter(datamanager.fixed_indices_eval_dataloader))
    assert mp.active_children() == []  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(datamanager, "data_procs")


@pytest.mark.parametrize("config_type", [*RAY_CONFIGS, FullImageDatamanagerConfig])
def test_images_are_not_opened_before_they_are_needed(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring)
    for path in (ring / "images").iterdir():
        path.unlink()
    assert datamanager.get_train_rays_per_batch() > 0
    if config_type is not FullImageDatamanagerConfig:
        datamanager.next_train(0)
    with pytest.raises(FileNotFoundError):
        next(iter(datamanager.fixed_indices_eval_dataloader))


@pytest.mark.parametrize("config_type", RAY_CONFIGS)
def test_evaluation_is_the_base_s(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring)
    camera, batch = next(iter(datamanager.fixed_indices_eval_dataloader))
    assert batch["image"].shape == (48, 64, 3)
    torch.testing.assert_close(camera.camera_to_worlds[0, :, 3], torch.tensor(camera_to_world(5 * math.pi / 3))[:3, 3])
    camera, batch = datamanager.next_eval_image(0)
    assert batch["image"][0, 0, 0] == pytest.approx(5 / 255)  # the sixth image
    rays, batch = datamanager.next_eval(0)
    assert len(rays) == len(batch["image"]) == datamanager.get_eval_rays_per_batch()


@pytest.mark.parametrize("config_type", [*RAY_CONFIGS, FullImageDatamanagerConfig])
def test_processes_may_have_been_started_in_any_way_before(
    config_type: type, ring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfstudio's main branch sets the start method to "spawn", which fails if processes were started before."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("context has already been set")

    monkeypatch.setattr(multiprocessing, "set_start_method", refuse)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda *args, **kwargs: "fork")
    options = {"cache_images": "disk"} if config_type is FullImageDatamanagerConfig else {}
    assert len(make(config_type, ring, **options).training_cameras()) == 5
    assert multiprocessing.set_start_method is refuse


def test_next_eval_may_come_first(ring: Path) -> None:
    assert len(make(VanillaDataManagerConfig, ring).next_eval(0)[0]) == 1024


@pytest.mark.parametrize("config_type", [*RAY_CONFIGS, FullImageDatamanagerConfig])
def test_inference_loads_nothing(config_type: type, ring: Path) -> None:
    datamanager = make(config_type, ring, test_mode="inference")
    assert not hasattr(datamanager, "train_ray_generator")
    assert not hasattr(datamanager, "eval_dataloader")
    assert datamanager.get_datapath() == ring
    assert len(datamanager.train_dataset) == len(datamanager.train_dataparser_outputs.image_filenames) == 5
    assert len(datamanager.eval_dataset) == 1


class Custom(VanillaDataManager[DepthDataset]):
    """Data manager of a plugin that overrides ``setup_eval``."""

    def setup_eval(self) -> None:
        super().setup_eval()
        self.prepared = True


@pytest.mark.parametrize(
    ("target", "dataset_type"),
    [
        (VanillaDataManager, InputDataset),
        (VanillaDataManager[DepthDataset], DepthDataset),
        (ParallelDataManager, InputDataset),
        (ParallelDataManager[DepthDataset], DepthDataset),
        (FullImageDatamanager, InputDataset),
        (FullImageDatamanager[DepthDataset], DepthDataset),
        (Custom, DepthDataset),
    ],
)
def test_dataset_type_is_kept(target: Any, dataset_type: type, ring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_datamanager(target), "create_train_dataset", plain_dataset)
    monkeypatch.setattr(frozen_datamanager(target), "create_eval_dataset", plain_dataset)
    configs = {VanillaDataManager: VanillaDataManagerConfig, ParallelDataManager: ParallelDataManagerConfig}
    config_type = configs.get(getattr(target, "__origin__", target), VanillaDataManagerConfig)
    if "FullImage" in str(target):
        config_type = FullImageDatamanagerConfig
    datamanager = make(config_type, ring, target)
    assert datamanager.dataset_type is dataset_type
    assert isinstance(datamanager, getattr(target, "__origin__", target))


def plain_dataset(datamanager: Any) -> InputDataset:
    """Stand-in for data sets that need files missing from the ring, such as depth images."""
    return InputDataset(datamanager.train_dataparser_outputs)


def test_a_subclass_keeps_its_own_preparations(ring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_datamanager(Custom), "create_train_dataset", plain_dataset)
    monkeypatch.setattr(frozen_datamanager(Custom), "create_eval_dataset", plain_dataset)
    assert make(VanillaDataManagerConfig, ring, Custom).prepared


def test_full_images(ring: Path) -> None:
    datamanager = make(FullImageDatamanagerConfig, ring, cache_images="gpu")
    datamanager.ray_filter = Sphere(0.5)
    assert datamanager.get_train_rays_per_batch() == 48 * 64
    camera, batch = datamanager.next_train(0)
    assert camera.shape == (1,)
    assert batch["image"].shape == (48, 64, 3)
    assert len(datamanager.fixed_indices_eval_dataloader) == 1


@pytest.mark.skipif(
    not hasattr(FullImageDatamanagerConfig(), "dataloader_num_workers"),
    reason="nerfstudio 1.1.5 keeps no images on disk",
)
def test_full_images_may_stay_on_disk(ring: Path) -> None:
    """On nerfstudio's main branch, no worker processes start, because they cannot import a class made at run time."""
    datamanager = make(FullImageDatamanagerConfig, ring, cache_images="disk")
    assert not torch.multiprocessing.active_children()
    assert datamanager.training_photo(0).shape == (48, 64, 3)
    assert datamanager.get_train_rays_per_batch() == 48 * 64
    ((camera, batch),) = datamanager.fixed_indices_eval_dataloader
    assert camera.shape == (1,)
    assert batch["image"].shape == (48, 64, 3)


def test_full_images_are_looked_at_as_they_were_trained_on(tmp_path: Path) -> None:
    """Training undistorts images, with other intrinsics; the cameras and photos of a frozen manager are the same."""
    distorted = write_scene(tmp_path / "distorted", [(64, 48)] * 3, k1=0.2)
    trained = make(FullImageDatamanagerConfig, distorted, FullImageDatamanager)
    _ = trained.cached_train
    frozen = make(FullImageDatamanagerConfig, distorted)
    before = frozen.train_dataset.cameras.fx.clone()
    cameras = frozen.training_cameras()
    assert not torch.allclose(before, cameras.fx)
    for name in ("fx", "fy", "cx", "cy", "width", "height"):
        assert torch.equal(getattr(cameras, name), getattr(trained.train_dataset.cameras, name)), name
    # Images are undistorted once.
    assert torch.equal(frozen.training_cameras().fx, cameras.fx)
    photo = as_colours(trained.cached_train[1]["image"].cpu())
    assert torch.allclose(frozen.training_photo(1), photo, atol=1 / 255)
    assert "cached_train" not in vars(frozen), "all images are kept"
    # nerfstudio's tools may still load all images.
    _ = frozen.cached_train
    assert torch.equal(frozen.training_cameras().fx, cameras.fx)
    assert torch.equal(frozen.training_photo(1).cpu(), photo)


def test_undistorted_images_are_not_loaded_for_their_cameras(ring: Path) -> None:
    datamanager = make(FullImageDatamanagerConfig, ring)
    datamanager.training_cameras()
    assert "cached_train" not in datamanager.__dict__


def test_random_cameras() -> None:
    datamanager = make(RandomCamerasDataManagerConfig, None)
    sphere = datamanager.ray_filter = Sphere(0.5)
    assert issubclass(type(datamanager), RandomCamerasDataManager)
    assert issubclass(type(datamanager), ParallelDataManager), "or exporters of nerfstudio's main branch refuse it"
    rays, _ = datamanager.next_train(0)
    assert len(rays) == datamanager.config.train_resolution**2
    assert sphere(rays).float().mean() > 0.8
    assert len(datamanager.training_cameras()) == 256
    assert datamanager.training_cameras()[5].width.item() == datamanager.eval_dataset.cameras[5].height.item() == 512
    names = [str(name) for name in datamanager.train_dataset.image_filenames]
    assert names[::100] == ["000.png", "100.png", "200.png"]
    with pytest.raises(SA3DError, match="trained without images"):
        datamanager.training_photo(0)


def test_random_cameras_are_the_same_each_time() -> None:
    """Cameras are equal in all processes, as prompts refer to views by number; the global random state is unchanged."""
    poses, numbers = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        poses.append(make(RandomCamerasDataManagerConfig, None).training_cameras().camera_to_worlds)
        numbers.append(torch.rand(1))
    assert torch.equal(*poses)
    assert numbers[0] != numbers[1]
    torch.manual_seed(1)
    assert numbers[0] == torch.rand(1)


def test_nothing_goes_into_checkpoints(ring: Path) -> None:
    datamanager = make(VanillaDataManagerConfig, ring)
    datamanager.next_eval(0)
    # A data manager is a module up to nerfstudio 1.1.5 only.
    assert not issubclass(type(datamanager), torch.nn.Module) or datamanager.state_dict() == {}
    assert datamanager.get_param_groups() == {}


def test_one_class_per_target() -> None:
    assert frozen_datamanager(VanillaDataManager) is frozen_datamanager(VanillaDataManager)
    assert frozen_datamanager(VanillaDataManager[DepthDataset]) is not frozen_datamanager(VanillaDataManager)
    assert issubclass(frozen_datamanager(ParallelDataManager[DepthDataset]), DataManager)
    assert frozen_datamanager(ParallelDataManager).__name__ == "FrozenParallelDataManager"
