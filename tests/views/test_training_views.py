"""Images of training views for segmenters: the render, or the photo on exactly the render's pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanagerConfig
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from PIL import Image
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.photos import Photos
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests.small_models import masked, small_model
from tests.test_datamanager import make, write_scene

CONFIGS = [VanillaDataManagerConfig, ParallelDataManagerConfig, FullImageDatamanagerConfig]


def sky(directions: Tensor) -> Tensor:
    """Colour of each direction: waves, so that neighbouring directions differ."""
    return 0.5 + 0.5 * torch.sin(8 * directions)


def photographed(folder: Path, size: tuple[int, int], **lens: float) -> Path:
    """Write a data set of photos of the sky; pixels follow the rays of their camera, including its lens."""
    scene = write_scene(folder, [size] * 3, "OPENCV", **lens)
    cameras = make(VanillaDataManagerConfig, scene).train_dataset.cameras
    for index in range(len(cameras)):
        rays = cameras.generate_rays(camera_indices=index, keep_shape=True)
        pixels = (sky(rays.directions) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(scene / "images" / f"{index}.png")
    return scene


def looked_at(datamanager: Any, long_side: int, photo: bool = True) -> TrainingViews:
    """Views of an untrained model at the data manager's cameras."""
    cameras = datamanager.training_cameras()
    photos = Photos(datamanager.training_photo) if photo else None
    model = masked(small_model("nerfacto"))
    return TrainingViews(model, cameras, datamanager.train_dataset.image_filenames, long_side, photos=photos)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("lens", [{}, {"k1": 0.1, "k2": 0.02, "p1": 0.01}], ids=["pinhole", "distorted"])
@pytest.mark.parametrize("long_side", [31, 300])
def test_photo_and_render_share_their_pixels(config: type, lens: dict[str, float], long_side: int, tmp_path: Path):
    """Photo pixels match the directions of rays: at full size, and at a size that does not divide it."""
    views = looked_at(make(config, photographed(tmp_path / "sky", (82, 63), **lens)), long_side)
    picture, camera = views.picture(1), views.camera(1)
    # Models of full images rasterise without lens distortion, which nerfstudio has removed from the images.
    pinhole = config is FullImageDatamanagerConfig
    rays = camera.generate_rays(camera_indices=0, keep_shape=True, disable_distortion=pinhole)
    expected = sky(rays.directions)
    assert picture.shape == expected.shape == (*views.trace(1).rgb.shape[:2], 3)
    error = (picture - expected).abs()
    shifted = (picture[:, 1:] - expected[:, :-1]).abs()
    assert error.mean() < 0.12 * shifted.mean()
    # No drift towards the borders either, where interpolation has fewer pixels.
    assert error[-3:].mean() < 0.3 * shifted.mean()
    assert error[:, -3:].mean() < 0.3 * shifted.mean()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("long_side", "side", "size"), [(31, 1024, (62, 82)), (31, 50, (38, 50)), (300, 50, (38, 50))])
def test_networks_see_photos_at_up_to_their_own_size(
    config: type, long_side: int, side: int, size: tuple[int, int], tmp_path: Path
):
    """The size of photos does not depend on that of renders, and both show the same part of the scene."""
    views = looked_at(make(config, photographed(tmp_path / "sky", (82, 63))), long_side)
    picture = views.picture(1, side)
    assert picture.shape[:2] == views.picture_size(1, side)
    assert abs(picture.shape[0] - size[0]) <= 1 and picture.shape[1] == size[1]
    trace = views.trace(1)
    small = torch.nn.functional.interpolate(
        picture.permute(2, 0, 1)[None], (trace.height, trace.width), mode="bilinear", antialias=True
    )[0].permute(1, 2, 0)
    expected = sky(views.camera(1).generate_rays(camera_indices=0, keep_shape=True).directions)
    assert (small - expected).abs().mean() < 0.2 * (expected[:, 1:] - expected[:, :-1]).abs().mean()
    assert views.picture_size(1) == (trace.height, trace.width)
    assert len({views.picture_key(1, side), views.picture_key(1, 40), views.key(1)}) == 3


def test_without_a_photo_it_is_the_render(tmp_path: Path):
    views = looked_at(make(VanillaDataManagerConfig, write_scene(tmp_path / "ring", [(20, 16)] * 3)), 20, photo=False)
    assert views.picture(0).equal(views.trace(0).rgb)


@pytest.mark.parametrize("config", CONFIGS)
def test_transparent_photos_are_seen_on_white(config: type, tmp_path: Path):
    scene = write_scene(tmp_path / "ring", [(20, 16)] * 3)
    Image.new("RGBA", (20, 16), (100, 200, 0, 51)).save(scene / "images" / "0.png")
    photo = make(config, scene).training_photo(0)
    assert photo.shape == (16, 20, 3)
    assert photo[3, 3].tolist() == pytest.approx([0.2 * 100 / 255 + 0.8, 0.2 * 200 / 255 + 0.8, 0.8], abs=1e-5)


def test_a_photo_that_is_gone(tmp_path: Path):
    scene = write_scene(tmp_path / "ring", [(20, 16)] * 3)
    datamanager = make(VanillaDataManagerConfig, scene)
    (scene / "images" / "1.png").unlink()
    with pytest.raises(SA3DError, match=r"1\.png cannot be read .*--pipeline\.image-source render"):
        datamanager.training_photo(1)


def test_what_is_preloaded_is_the_same_and_taken_once(tmp_path: Path):
    views = looked_at(make(VanillaDataManagerConfig, photographed(tmp_path / "sky", (82, 63))), 31)
    expected, photos = views.picture(1), views.photos
    assert photos is not None
    calls: list[int] = []

    def counted(view: int) -> Tensor:
        calls.append(view)
        return photos.photo(view)

    views.photos = Photos(counted)
    views.preload(1, picture=False)
    assert calls == []
    for _ in range(2):
        views.preload(1, picture=True)
    assert calls == [1]
    assert torch.equal(views.picture(1), expected)
    assert calls == [1]
    assert torch.equal(views.picture(1), expected)
    assert calls == [1, 1]


def test_what_is_on_disk_is_preloaded_and_nothing_is_rendered(tmp_path: Path):
    data = make(VanillaDataManagerConfig, write_scene(tmp_path / "ring", [(20, 16)] * 3))
    first = looked_at(data, 20, photo=False)
    first.cache.disk = DiskStore(lambda: tmp_path / "cache")
    first.trace(1)
    first.cache.flush()
    second = looked_at(data, 20, photo=False)
    second.cache.disk = first.cache.disk
    for view in (0, 1):
        second.preload(view, picture=True)
    assert list(second.cache._entries) == [f"trace-{second.key(1)}"]
    assert second.cache.computed == 0


def test_a_view_from_anywhere_is_that_of_a_pinhole_camera(tmp_path: Path):
    """At the pose of a training camera, with its angle, it shows the middle of that camera's view."""
    views = looked_at(make(VanillaDataManagerConfig, write_scene(tmp_path / "scene", [(64, 48)] * 3)), 64)
    camera, whole = views.camera(1), views.trace(1)
    side = 48
    angle = 2 * math.atan(side / 2 / float(camera.fx))
    assert float(camera.fx) == pytest.approx(float(camera.fy))
    assert (float(camera.cx), float(camera.cy)) == (32, 24)
    square = views.render_from(views.camera_to_worlds[1], angle, side)
    assert (square.height, square.width) == (side, side)
    assert torch.allclose(square.rgb, whole.rgb[:, 8:56], atol=1e-4)
    middle = whole.surface_points().reshape(48, 64, 3)[:, 8:56]
    assert torch.allclose(square.surface_points().reshape(side, side, 3), middle, atol=1e-2)
