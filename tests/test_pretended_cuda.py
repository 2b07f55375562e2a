"""All stages of the package on CUDA, or where there is none on a pretended device: see tests/pretended_device.py.

A pretended device computes on the CPU. Tests on it find tensors on the wrong device, but do not test CUDA's kernels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nerfstudio.models import splatfacto

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.commands.export import Box, Mesh, Points
from sa3d_nerfstudio.commands.masks import Masks
from sa3d_nerfstudio.commands.turntable import Turntable
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.lifting import make_lifting
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.sam import SamSegmenter
from sa3d_nerfstudio.segmenters.text import TextOptions, find_boxes
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.free_views import FreeViews
from sa3d_nerfstudio.views.cache import ViewCache
from sa3d_nerfstudio.views.disk import DiskStore
from sa3d_nerfstudio.views.photos import Photos
from sa3d_nerfstudio.views.surface_points import view_points
from sa3d_nerfstudio.views.training_views import TrainingViews
from tests import rasterizer
from tests.models.test_rays import ball
from tests.pretended_device import a_cuda_device
from tests.segmenters.prompts import HEIGHT, PROMPTS, WIDTH
from tests.small_models import camera, masked, masked_splats, small_model
from tests.stand_ins import no_diffusion, occupancy_on_cpu, sdf_on_cpu
from tests.tiny_dino import save_tiny_dino
from tests.tiny_sam import tiny_sam
from tests.tiny_transformers_sam import save_tiny_sam2, save_tiny_sam_hq

WITH_GRADIENTS = {"neus", "neus-facto", "generfacto"}
"""Methods whose normals are gradients."""
METHODS = (
    *("nerfacto", "depth-nerfacto", "vanilla-nerf", "mipnerf", "semantic-nerfw", "instant-ngp"),
    *("generfacto", "neus", "neus-facto"),
)
"""Tested methods; tensorf is missing, because it needs a cuDNN kernel that the CPU lacks."""


@pytest.fixture
def device() -> Iterator[None]:
    with a_cuda_device():
        yield


def on_cpu(module: torch.nn.Module) -> list[str]:
    """Names of the parameters and buffers that are not on the device."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if not tensor.is_cuda]


@pytest.mark.parametrize("method", METHODS)
def test_methods(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for install in (sdf_on_cpu, no_diffusion, occupancy_on_cpu):
        install(monkeypatch)
    model = masked(small_model(method))
    model.masks["ball"] = ball(0.7)
    view = camera(6, 8)
    with torch.no_grad():
        expected, plain = dict(model.get_outputs_for_camera(view)), model.trace_view(view)
    with a_cuda_device(autograd=method in WITH_GRADIENTS), torch.no_grad():
        moved = model.to("cuda")
        assert not on_cpu(moved)
        outputs = dict(moved.get_outputs_for_camera(view.to("cuda")))
        for name, image in expected.items():
            # generfacto has a random light source.
            assert method == "generfacto" or torch.allclose(outputs[name].cpu(), image, atol=1e-4), name
            assert outputs[name].is_cuda, name
        trace = moved.compressed_view(view)
        assert trace.depth.is_cuda
        assert torch.allclose(trace.rgb.cpu(), plain.rgb, atol=0.01)
        exported = moved.get_outputs_for_camera_ray_bundle(view.to("cuda").generate_rays(0, keep_shape=True))
        assert all(image.is_cuda for image in exported.values())


def test_fields_are_placed_filled_and_read(device: None) -> None:
    grid = ball(0.7).to("cuda")
    points = torch.rand(200, 3, device="cuda")
    for field in (grid.placed_again(0.1), grid.resampled(grid.fresh()), grid.with_room_for(points * 3, 0.1, 5)):
        assert not on_cpu(field)
    assert grid.probability_at(points).is_cuda
    assert grid.hits(points * 0.1, torch.nn.functional.normalize(points, dim=-1)).any()
    new = MaskGrid(16).to("cuda")
    new.prepare(points, 0.1)
    new.copy_from(grid)
    assert new.object_points()[0].is_cuda
    copy = MaskGrid(16)
    copy.load_state_dict(grid.state_dict())
    assert on_cpu(copy)


@pytest.mark.parametrize("lifting", ["evidence", "gradient"])
def test_views_are_cached_lifted_and_found_on_disk(device: None, lifting: Any, tmp_path: Path) -> None:
    model = masked(small_model("nerfacto")).to("cuda")
    cameras = camera(6, 8)

    def views() -> TrainingViews:
        return TrainingViews(
            model, cameras, [Path("a.png")], 8, cache=ViewCache(1, DiskStore(lambda: tmp_path)),
            photos=Photos(lambda _: torch.rand(6, 8, 3)),
        )  # fmt: skip

    first = views()
    trace = first.trace(0)
    assert isinstance(trace, CompressedTrace)
    first.cache.flush()
    reopened = views()
    loaded = reopened.trace(0)
    assert reopened.cache.computed == 0
    assert torch.equal(loaded.depth, trace.depth)
    assert loaded.depth.is_cuda
    assert reopened.picture(0).is_cuda
    for field in (ball(0.7).to("cuda"), model.new_field(16)):
        lifter = make_lifting(lifting, field.fresh())
        lifter.add(loaded, torch.rand(48, device="cuda") > 0.5)
        probability, known = lifter.render(loaded)
        assert probability.is_cuda
        assert known.is_cuda


def test_from_python(device: None, tiny_run: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path) -> None:
    instances = tiny_scene / "instances"
    run = sa3d.load(tiny_run, output_dir=tmp_path, segmenter="oracle", oracle_instances=instances, num_views=4)
    assert str(run.pipeline.device).startswith("cuda")
    assert run.pipeline.views.long_side == 1008
    run.prompt(tiny_prompt["frame"], [tiny_prompt["points"][0]], name="ball")
    assert run.segment().last()
    saved, mask = run.save(), run.mask(0)
    reloaded = sa3d.load(saved, output_dir=tmp_path, segmenter="grabcut", image_source="photo", max_passes=1)
    assert not on_cpu(reloaded.pipeline.model), "a checkpoint's objects lie where the model is"
    assert torch.allclose(reloaded.mask(0), mask, atol=1e-5)
    reloaded.prompt(tiny_prompt["frame"], [tiny_prompt["points"][0]], name="second", box=None)
    reloaded.segment()
    outputs = reloaded.render(reloaded.pipeline.views.cameras[0:1])
    assert all(outputs[name].is_cuda for name in outputs)
    with pytest.raises(RuntimeError, match="same device"):
        _ = mask + mask.cpu()


@pytest.fixture
def objects_run(tiny_objects: Path) -> Path:
    return tiny_objects


def test_exports(device: None, objects_run: Path, tmp_path: Path) -> None:
    from nerfstudio.scripts import exporter

    prompted: dict[str, Any] = {"load_config": objects_run, "object": ("ball",)}
    folder = tmp_path / "out"
    Points(**prompted, output_dir=folder, num_points=200).main()
    Mesh(**prompted, output_dir=folder, method="tsdf", resolution=12, format="ply").main()
    Box(**prompted, output_dir=folder, tilted=True).main()
    Masks(**prompted, output_dir=folder).main()
    names = ("object_rgb", "background_rgb", "object_depth", "mask_overlay")
    for number, outputs in enumerate((("object_rgb", "mask"), names)):
        path = tmp_path / f"{number}.mp4"
        Turntable(**prompted, output_path=path, frames=2, size=(16, 16), rendered_output_names=outputs).main()
    exporter.ExportPointCloud(
        objects_run, tmp_path / "cloud", num_points=200, normal_method="open3d", num_rays_per_batch=512,
        remove_outliers=False,
    ).main()  # fmt: skip


def test_the_viewers_work(device: None, tiny_objects: Path, tiny_scene: Path) -> None:
    run = sa3d.load(tiny_objects, segmenter="grabcut", max_passes=1, num_views=2, working_size=32)
    pipeline = run.pipeline
    free_views = FreeViews(pipeline.model, pipeline.views, pipeline.make_segmenter, pipeline.config)
    editor = Editor(free_views, resolution=16)
    name = editor.free_views.look(pipeline.views.cameras[3:4])
    editor.mark(name, 0.5, 0.5, True)
    assert editor.picture(name).shape[-1] == 3
    assert not on_cpu(pipeline.model)
    grid = pipeline.model.masks["ball"]
    positions, colors = next(iter(view_points(pipeline.views, [0], grid, 0.5)))
    assert positions.device == colors.device == torch.device("cpu")


def picture() -> SegmenterImage:
    rgb = torch.rand(HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0)).to("cuda")
    return SegmenterImage(rgb, "a.png", torch.ones(HEIGHT, WIDTH, device="cuda"))


@pytest.mark.parametrize("name", ["sam", "sam2", "sam-hq"])
@pytest.mark.parametrize("dense", [False, True])
def test_networks(device: None, name: str, dense: bool, tmp_path: Path) -> None:
    segmenter: Any
    if name == "sam":
        segmenter = SamSegmenter(tiny_sam().to("cuda"), dense)
    else:
        pytest.importorskip("transformers")
        folder = (save_tiny_sam2 if name == "sam2" else save_tiny_sam_hq)(tmp_path)
        options = SegmenterOptions(device="cuda", sam_checkpoint=folder, sam_dense_prompts=dense)
        segmenter = make_segmenter(name, options)
    embedding = segmenter.embed(picture())
    disk = DiskStore(lambda: tmp_path)
    disk.write("a", segmenter.to_tensors(embedding), {})
    entry = disk.read("a")
    assert entry is not None
    embedding = segmenter.from_tensors(entry[0])
    for prompt in PROMPTS.values():
        candidates = segmenter.predict(embedding, prompt)
        # Three masks, and for prompts of several points or a box the single mask, too.
        assert candidates.masks.shape[1:] == (HEIGHT, WIDTH) and len(candidates.masks) in (1, 3, 4)
    assert segmenter.fingerprint


def test_words(device: None, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert find_boxes(picture(), "a mug", TextOptions(str(save_tiny_dino(tmp_path)), device="cuda:0"))


class Halves:
    """Segmenter that returns the left half of each image."""

    def embed(self, image: SegmenterImage) -> torch.Tensor:
        return image.rgb[..., 0]

    def predict(self, embedding: torch.Tensor, prompt: Prompt) -> Candidates:
        mask = torch.zeros_like(embedding, dtype=torch.bool)
        mask[:, : embedding.shape[1] // 2] = True
        return Candidates(mask[None], torch.ones(1))


def test_splats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splatfacto, "rasterization", rasterizer.rasterization)
    monkeypatch.setattr(splatfacto, "get_viewmat", splatfacto.get_viewmat._torchdynamo_orig_callable)
    with a_cuda_device(autograd=True):
        model = masked_splats(60)
        model.to("cuda")
        view = camera(12, 16)
        poses = view.camera_to_worlds.repeat(2, 1, 1)
        poses[1, 0, 3] = 0.3
        cameras = type(view)(poses, view.fx[0], view.fy[0], view.cx[0], view.cy[0], view.width[0], view.height[0])
        views = TrainingViews(model, cameras, [Path("a.png"), Path("b.png")], 16)
        field = model.new_field(0)
        model.masks["left"] = field
        session = SegmentationSession(views, Halves(), field, SessionSettings(max_passes=2))
        session.prompt(0, Prompt.from_points(12, 16, [(3, 6)]))
        session.run()
        assert not on_cpu(model)
        assert field.selected().any()
        with torch.no_grad():
            outputs = model.get_outputs_for_camera(view.to("cuda"))
            assert all(outputs[name].is_cuda for name in dict(outputs))
        restored = masked_splats(60).to("cuda")
        restored.load_state_dict(model.state_dict())
        assert not on_cpu(restored)
        probability, _ = render_probability(views.trace(1), restored.masks["left"])
        assert torch.allclose(probability, render_probability(views.trace(1), field)[0])
        restored.for_inference = True
        assert len(restored.means) < 60
