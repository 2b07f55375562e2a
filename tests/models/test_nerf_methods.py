"""Every NeRF method that a CPU can train: briefly by ns-train, then segmented and exported by real commands.

nerfacto is in test_methods.py. CUDA libraries have stand-ins (tests/stand_ins.py). So short a training leaves a fog:
any object that is found and can be exported will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import pytest
import torch
import trimesh
from PIL import Image
from trimesh.visual import ColorVisuals

from sa3d_nerfstudio.base_run.checkpoint import checkpoints_in, load_checkpoint
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.models.signed_distance import signed_distance_to
from tests import scenes
from tests.subprocesses import QUIET, nerfstudio, segmenting, training

pytestmark = pytest.mark.slow

SDF_CENTER, SDF_RADIUS = (-0.1, -0.1, 0.17), 0.3
"""Initial ball of fields of signed distances; it contains the object, the scene's ball, on one side."""
THRESHOLD = 0.25
"""Threshold of the mask: few rays end in such a fog, and light that passes is not the object."""

_NEAR_AND_FAR = ["--pipeline.model.collider-params", "near_plane", 0.1, "far_plane", 3.0]
_FEW_SAMPLES = ["--pipeline.model.num-coarse-samples", 16, "--pipeline.model.num-importance-samples", 16]
_SMALL_NERFACTO = [
    "--pipeline.model.num-levels", 6, "--pipeline.model.log2-hashmap-size", 12, "--pipeline.model.max-res", 128,
    "--pipeline.model.num-nerf-samples-per-ray", 12, "--pipeline.model.num-proposal-samples-per-ray", 24, 12,
    "--pipeline.model.near-plane", 0.1, "--pipeline.model.far-plane", 3.0, "--optimizers.fields.optimizer.lr", 0.02,
]  # fmt: skip
_NERFACTO = [
    *_SMALL_NERFACTO, "--pipeline.model.implementation", "torch", "--pipeline.model.average-init-density", 3.0,
    "--pipeline.model.proposal-initial-sampler", "uniform",
]  # fmt: skip
_NGP = [
    "--pipeline.model.grid-resolution", 16, "--pipeline.model.grid-levels", 1, "--pipeline.model.log2-hashmap-size", 12,
    "--pipeline.model.max-res", 128, "--pipeline.model.render-step-size", 0.1,
    "--pipeline.target-num-samples", 4096, "--pipeline.max-num-samples-per-ray", 32,
    "--optimizers.fields.optimizer.lr", 0.02,
]  # fmt: skip
_SDF = [
    "--pipeline.model.sdf-field.num-layers", 2, "--pipeline.model.sdf-field.hidden-dim", 64,
    "--pipeline.model.sdf-field.num-layers-color", 2, "--pipeline.model.sdf-field.hidden-dim-color", 32,
    "--pipeline.model.sdf-field.geo-feat-dim", 8, "--pipeline.model.sdf-field.num-levels", 4,
    "--pipeline.model.sdf-field.max-res", 64, "--pipeline.model.sdf-field.log2-hashmap-size", 10,
    "--pipeline.model.sdf-field.inside-outside", False, "--pipeline.model.sdf-field.bias", SDF_RADIUS,
    "--pipeline.model.sdf-field.beta-init", 0.4,
]  # fmt: skip


@dataclass(frozen=True)
class Method:
    """Training of a method on the tiny scene."""

    options: Sequence[object]
    """Options that make it small."""
    data: Sequence[object] = ("nerfstudio-data",)
    """Data parser, and its options."""
    form: Callable[[Path, Path], Path] | None = None
    """Rewrites the scene into the form that the data parser reads."""
    suffix: str = ""
    """Suffix of the names of its outputs."""
    trained_as: str | None = None
    """Name of the method in its runs, if it is a larger kind of another method."""
    steps: int = 60
    rays: int = 128


def _sdfstudio(scene: Path, folder: Path) -> Path:
    return scenes.as_sdfstudio(scene, folder, SDF_CENTER)


METHODS = {
    "vanilla-nerf": Method(
        [*_FEW_SAMPLES, *_NEAR_AND_FAR, "--optimizers.fields.optimizer.lr", 0.003],
        suffix="_fine", steps=40, rays=64,
    ),
    "mipnerf": Method(
        [*_FEW_SAMPLES, *_NEAR_AND_FAR, "--optimizers.fields.optimizer.lr", 0.003],
        suffix="_fine", steps=40, rays=64,
    ),
    "tensorf": Method(
        [
            "--pipeline.model.init-resolution", 24, "--pipeline.model.final-resolution", 24,
            "--pipeline.model.num-samples", 16, "--pipeline.model.num-uniform-samples", 32, *_NEAR_AND_FAR,
            "--optimizers.fields.optimizer.lr", 0.003,
        ]
    ),
    "nerfacto-big": Method(_NERFACTO, steps=25, trained_as="nerfacto"),
    # Its proposal networks cannot be made smaller.
    "nerfacto-huge": Method(_NERFACTO, steps=25, trained_as="nerfacto"),
    "depth-nerfacto": Method(_NERFACTO, form=scenes.with_depths, rays=256),
    "phototourism": Method(_NERFACTO, ["phototourism-data"], scenes.as_phototourism, rays=256),
    # Its proposal networks cannot be made smaller either.
    "semantic-nerfw": Method(
        _SMALL_NERFACTO, ["sitcoms3d-data", "--downscale-factor", 1], scenes.as_sitcoms
    ),
    "instant-ngp": Method(_NGP),
    "instant-ngp-bounded": Method(_NGP),
    "neus": Method(
        [
            *_SDF, "--pipeline.model.num-samples", 16, "--pipeline.model.num-samples-importance", 16,
            "--pipeline.model.num-samples-outside", 8,
        ],
        ["sdfstudio-data"],
        _sdfstudio,
        steps=30,
    ),
    "neus-facto": Method(
        [
            *_SDF, "--pipeline.model.num-proposal-samples-per-ray", 32, 16,
            "--pipeline.model.num-neus-samples-per-ray", 16,
        ],
        ["sdfstudio-data"],
        _sdfstudio,
        steps=30,
    ),
}  # fmt: skip


def commands(name: str, scene: Path, output: Path, prompt: dict[str, Any]) -> list[object]:
    """Commands that train, segment, and export points to ``output / name / "points"``."""
    method = METHODS[name]
    data = scene if method.form is None else method.form(scene, output / name / "data")
    output = output / name
    rays = ["--pipeline.datamanager.train-num-rays-per-batch", method.rays]
    train = training(name, data, output, *rays, *method.options, *method.data, steps=method.steps)
    small = ["--pipeline.working-size", 24, "--pipeline.resolution", 32, "--pipeline.threshold", THRESHOLD]
    segment = segmenting(output / data.name / (method.trained_as or name) / "T", scene, output, prompt, *small)
    export = exporting(output / data.name / "sa3d" / "S", output / "points", method.suffix)
    return [*train, "--then", *segment, "--then", *export]


def exporting(run: Path, output: Path, suffix: str = "") -> list[object]:
    """Command that writes a hundred points or more of a segmented run."""
    return [
        "ns-export", "pointcloud", "--load-config", run / "config.yml", "--output-dir", output,
        "--num-points", 100, "--num-rays-per-batch", 256, "--normal-method", "open3d", "--remove-outliers", False,
        "--rgb-output-name", f"rgb{suffix}", "--depth-output-name", f"depth{suffix}",
    ]  # fmt: skip


def generating(output: Path) -> list[object]:
    """Commands for generfacto, which has a text prompt instead of images, and numbers as names of views."""
    train = training(
        "generfacto", None, output, "--experiment-name", "made", "--prompt", "a ball",
        "--pipeline.datamanager.train-resolution", 16, "--pipeline.datamanager.num-eval-angles", 12,
        "--pipeline.model.num-proposal-samples-per-ray", 16, 12,
        "--pipeline.model.num-nerf-samples-per-ray", 12, "--optimizers.fields.optimizer.lr", 0.02, steps=12,
    )  # fmt: skip
    disc = np.hypot(*(np.mgrid[:512, :512] - 255.5)) < 140
    Image.fromarray(disc.astype(np.uint8) * 255).save(output / "disc.png")
    segment = [
        "ns-train", "sa3d", "--load-dir", output / "made" / "generfacto" / "T", "--output-dir", output,
        "--experiment-name", "made", "--timestamp", "S", *QUIET[:2], "--pipeline.segmenter", "grabcut",
        "--pipeline.prompt.view", 7, "--pipeline.prompt.mask", output / "disc.png",
        "--pipeline.working-size", 24, "--pipeline.resolution", 32, "--pipeline.threshold", THRESHOLD,
    ]  # fmt: skip
    run = output / "made" / "sa3d" / "S"
    mesh = [
        "ns-export", "tsdf", "--load-config", run / "config.yml", "--output-dir", output / "tsdf", "--resolution", 24,
        "--downscale-factor", 16, "--target-num-faces", 100, "--num-pixels-per-side", 16,
    ]  # fmt: skip
    return [*train, "--then", *segment, "--then", *exporting(run, output / "points"), "--then", *mesh]


@pytest.fixture(scope="module")
def trained(tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a folder for each method. One process runs all commands: nerfstudio takes long to import."""
    output = tmp_path_factory.mktemp("methods")
    arguments: list[object] = []
    for name in METHODS:
        arguments += [*commands(name, tiny_scene, output, tiny_prompt), "--then"]
    (output / "generfacto").mkdir()
    arguments += [*generating(output / "generfacto"), "--then"]
    neus = output / "neus" / "data" / "sa3d" / "S" / "config.yml"
    arguments += [
        "ns-export", "marching-cubes", "--load-config", neus, "--output-dir", output / "neus" / "mesh",
        "--resolution", 512, "--bounding-box-min", -0.4, -0.4, -0.4, "--bounding-box-max", 0.4, 0.4, 0.4,
        "--target-num-faces", 300, "--num-pixels-per-side", 32, "--then",
        "sa3d", "export", "mesh", "--method", "marching-cubes", "--load-config", neus, "--num-points", 200,
        "--output-dir", output / "neus" / "sa3d",
    ]  # fmt: skip
    nerfstudio(*arguments)
    return output


@pytest.mark.parametrize("name", METHODS)
def test_a_barely_trained_nerf_goes_all_the_way(name: str, trained: Path):
    points = np.asarray(open3d.io.read_point_cloud(trained / name / "points" / "point_cloud.ply").points)
    assert len(points) >= 100
    assert np.isfinite(points).all()


def test_what_generfacto_made_is_taken_out_of_its_blob(trained: Path):
    points = np.asarray(open3d.io.read_point_cloud(trained / "generfacto" / "points" / "point_cloud.ply").points)
    assert len(points) >= 100
    # In the sphere in which it is generated, and near its middle, where the mask was drawn.
    assert np.linalg.norm(points, axis=-1).max() < 1.01
    assert np.median(np.linalg.norm(points, axis=-1)) < 0.7
    mesh = open3d.io.read_triangle_mesh(trained / "generfacto" / "tsdf" / "tsdf_mesh.ply")
    assert len(mesh.triangles) > 20


def test_what_guided_generfacto_is_left_behind(trained: Path):
    folder = trained / "generfacto" / "made"
    with_guide, without = (
        next(iter(checkpoints_in(folder / run / "nerfstudio_models").values())) for run in ("generfacto/T", "sa3d/S")
    )
    guide = "_model._diffusion_model.weights"
    assert guide in load_checkpoint(with_guide)["pipeline"]
    assert guide not in load_checkpoint(without)["pipeline"]


def test_marching_cubes_find_the_surface_of_the_object_only(trained: Path):
    mesh = open3d.io.read_triangle_mesh(trained / "neus" / "mesh" / "sdf_marching_cubes_mesh.ply")
    vertices = torch.from_numpy(np.asarray(mesh.vertices)).float()
    assert len(mesh.triangles) > 500
    # Only on the scene's surface, or within it on the boundary of the object's space.
    assert vertices.norm(dim=-1).max() < 1.3 * SDF_RADIUS
    grid = saved_grid(trained / "neus" / "data" / "sa3d" / "S")
    cell = float(grid.cell_positions()[:2].diff(dim=0).norm())
    assert signed_distance_to(grid, vertices, THRESHOLD).max() < 0.1 * cell
    # The ball stands on one side; the scene's surface on the other side is not part of it.
    other_side = vertices @ torch.tensor([0.5, 0.5, 0.0]).sqrt()
    assert other_side.max() < 0.85 * SDF_RADIUS
    texture = np.asarray(open3d.io.read_image(trained / "neus" / "mesh" / "material_0.png"))
    assert texture.std() > 1


def test_sa3d_exports_the_same_mesh(trained: Path):
    grid = saved_grid(trained / "neus" / "data" / "sa3d" / "S")
    mesh = trimesh.load(trained / "neus" / "sa3d" / "object.ply")
    assert isinstance(mesh, trimesh.Trimesh)
    vertices = torch.from_numpy(np.asarray(mesh.vertices)).float()
    assert len(mesh.faces) > 500
    assert vertices.norm(dim=-1).max() < 1.3 * SDF_RADIUS
    cell = float(grid.cell_positions()[:2].diff(dim=0).norm())
    assert signed_distance_to(grid, vertices, THRESHOLD).max() < 0.1 * cell
    assert isinstance(mesh.visual, ColorVisuals)
    assert mesh.visual.vertex_colors[:, :3].std() > 1


def saved_grid(run: Path) -> MaskGrid:
    """Mask grid of a run's only object, from its checkpoint."""
    (checkpoint,) = checkpoints_in(run / "nerfstudio_models").values()
    prefix = "_model.masks.fields.object:object."
    state = {
        key.removeprefix(prefix): value
        for key, value in load_checkpoint(checkpoint)["pipeline"].items()
        if key.startswith(prefix)
    }
    grid = MaskGrid(2)
    grid.load_state_dict(state)
    return grid
