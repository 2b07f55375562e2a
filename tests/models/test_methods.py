"""splatfacto, its larger kind, and nerfacto: trained by ns-train, segmented, rendered and exported, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import plyfile
import pytest

from tests.scenes import with_points
from tests.subprocesses import nerfstudio, run_nerfstudio, segmenting, training

pytestmark = pytest.mark.slow

SPLAT_METHODS: dict[str, tuple[int, float]] = {"splatfacto": (60, 0.1), "splatfacto-big": (100, 0.2)}
"""Number of steps, and learning rate of opacities: those of the larger kind start at 0.01 instead of 0.1."""


def share_in_object(points: np.ndarray, scene: Path, name: str) -> float:
    """Share of points within an object's box, widened by half of its size, since the models are barely trained."""
    objects = json.loads((scene / "objects.json").read_text())["objects"]
    box = next(entry for entry in objects if entry["name"] == name)
    low, high = np.array(box["aabb_min"]), np.array(box["aabb_max"])
    slack = 0.5 * (high - low).max()
    return float(((points >= low - slack) & (points <= high + slack)).all(-1).mean())


def to_scene(points: np.ndarray, run: Path) -> np.ndarray:
    """Transform points from nerfstudio's frame back to the data set's."""
    transform = json.loads((run / "dataparser_transforms.json").read_text())
    matrix, scale = np.array(transform["transform"]), transform["scale"]
    return (points / scale - matrix[:, 3]) @ matrix[:, :3]


@pytest.fixture(scope="module")
def trained_splats(
    tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, str]]:
    """Segmented run and output of its segmentation, by method; the run's folder "exported" holds its splats."""
    folder = tmp_path_factory.mktemp("splats")
    scene = with_points(tiny_scene, folder / "scene")
    arguments: list[object] = []
    runs = {method: folder / method / scene.name / "sa3d" / "S" for method in SPLAT_METHODS}
    for method, run in runs.items():
        train = training(
            method, scene, folder / method, "--pipeline.model.num-downscales", 0, "--pipeline.model.use-absgrad", False,
            "--optimizers.opacities.optimizer.lr", SPLAT_METHODS[method][1],
            "--optimizers.features-dc.optimizer.lr", 0.05, steps=SPLAT_METHODS[method][0],
        )  # fmt: skip
        # Runs of the larger kind bear the name of the smaller one.
        base = folder / method / scene.name / "splatfacto" / "T"
        segment = segmenting(base, scene, folder / method, tiny_prompt)
        export = ["ns-export", "gaussian-splat", "--load-config", run / "config.yml", "--output-dir", run / "exported"]
        arguments += [*train, "--then", *segment, "--then", *export, "--then"]
    printed = nerfstudio(*arguments[:-1])
    outputs = printed.split("views used")
    assert len(outputs) == 1 + len(runs)
    return {method: (run, output) for (method, run), output in zip(runs.items(), outputs[1:], strict=True)}


@pytest.fixture(scope="module")
def splats(trained_splats: dict[str, tuple[Path, str]]) -> Path:
    """Folder of the segmented run of splatfacto."""
    return trained_splats["splatfacto"][0]


@pytest.mark.parametrize("method", SPLAT_METHODS)
def test_splats_are_segmented_and_only_the_object_is_exported(
    method: str, trained_splats: dict[str, tuple[Path, str]], tiny_scene: Path, tiny_prompt: dict[str, Any]
):
    folder, printed = trained_splats[method]
    assert printed.split("\n")[0].strip() == "10 of 10"
    assert "ns-export gaussian-splat" in printed
    points = np.asarray(open3d.io.read_point_cloud(folder / "exported" / "splat.ply").points)
    # The ball began as 150 of the 1500 points.
    assert 100 < len(points) < 250
    assert share_in_object(to_scene(points, folder), tiny_scene, tiny_prompt["name"]) > 0.9


def test_splatfacto_renders_whole_and_object(splats: Path, tmp_path: Path):
    nerfstudio(
        "ns-render", "dataset", "--load-config", splats / "config.yml", "--output-path", tmp_path,
        "--split", "test", "--rendered-output-names", "rgb", "object_rgb", "mask", "--image-format", "png",
    )  # fmt: skip
    images = sorted(path.relative_to(tmp_path / "test").parts[0] for path in tmp_path.rglob("*.png"))
    assert images == ["mask", "mask", "object_rgb", "object_rgb", "rgb", "rgb"]
    object_image, scene_image = (
        open3d.io.read_image(next((tmp_path / "test" / name).rglob("*.png"))) for name in images[2::2]
    )
    assert (np.asarray(object_image) == 255).all(-1).mean() > 0.4
    assert (np.asarray(scene_image) == 255).all(-1).mean() < 0.2


def test_splatfacto_is_exported_by_sa3d(splats: Path, tiny_scene: Path, tiny_prompt: dict, tmp_path: Path):
    folder, name = splats, tiny_prompt["name"]
    config = ["--load-config", folder / "config.yml"]
    nerfstudio(
        "sa3d", "export", "splats", *config, "--output-dir", tmp_path / "splats", "--no-clean-rim",
        "--then", "sa3d", "export", "points", *config, "--output-dir", tmp_path / "points", "--save-world-frame",
        "--then", "sa3d", "masks", *config, "--output-dir", tmp_path / "masks", "--split", "all",
        "--then", "sa3d", "turntable", *config, "--output-path", tmp_path / "t.mp4", "--frames", 2, "--size", 32, 32,
    )  # fmt: skip
    # The same splats that nerfstudio's command writes, under the same names.
    ours, theirs = (
        plyfile.PlyData.read(str(path))["vertex"].data
        for path in (tmp_path / "splats" / "object.ply", folder / "exported" / "splat.ply")
    )
    assert ours.dtype == theirs.dtype
    assert ours.tobytes() == theirs.tobytes()
    points = np.asarray(open3d.io.read_point_cloud(tmp_path / "points" / "object.ply").points)
    assert len(points) > 100
    assert share_in_object(points, tiny_scene, name) > 0.9
    objects = json.loads((tiny_scene / "objects.json").read_text())["objects"]
    number = next(entry["id"] for entry in objects if entry["name"] == name)
    for path in sorted((tmp_path / "masks" / "masks").iterdir()):
        mask = np.asarray(open3d.io.read_image(path)) > 0
        truth = np.asarray(open3d.io.read_image(tiny_scene / "instances" / path.name)) == number
        assert (mask & truth).sum() > 0.4 * (mask | truth).sum()
    # The masks come with a data set without lens distortion, as for any other method.
    frames = json.loads((tmp_path / "masks" / "transforms.json").read_text())["frames"]
    assert all(Path(tmp_path / "masks" / frame["mask_path"]).is_file() for frame in frames)
    assert (tmp_path / "t.mp4").stat().st_size > 500


def test_splatfacto_without_an_object_is_not_exported(splats: Path, tmp_path: Path):
    """With a threshold that no splat reaches, the mask is empty."""
    config = tmp_path / "config.yml"
    config.write_text((splats / "config.yml").read_text().replace("threshold: 0.5", "threshold: 1.0"))
    text = config.read_text()
    assert "threshold: 1.0" in text
    process = run_nerfstudio("ns-export", "gaussian-splat", "--load-config", config, "--output-dir", tmp_path)
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith("error: this run has no object to export")


def test_nerfacto_is_exported_as_meshes(
    tiny_segmented: tuple[Path, str], tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path: Path
):
    nerf = tiny_segmented[0]
    config = ["--load-config", nerf / "config.yml"]
    # The object's box, because nerfstudio's TSDF takes space that no camera sees for solid.
    truth = json.loads((tiny_scene / "objects.json").read_text())["objects"]
    box = next(entry for entry in truth if entry["name"] == tiny_prompt["name"])
    transform = json.loads((nerf / "dataparser_transforms.json").read_text())
    center = (np.array(box["aabb_min"]) + np.array(box["aabb_max"])) / 2
    center = (np.array(transform["transform"]) @ [*center, 1]) * transform["scale"]
    half = 0.9 * (np.array(box["aabb_max"]) - np.array(box["aabb_min"])).max() * transform["scale"]
    bounds = ["--bounding-box-min", *(center - half), "--bounding-box-max", *(center + half)]
    nerfstudio(
        "ns-export", "tsdf", *config, "--output-dir", tmp_path / "tsdf", *bounds, "--resolution", 32,
        "--downscale-factor", 1, "--target-num-faces", 200, "--num-pixels-per-side", 32,
        "--then", "ns-export", "poisson", *config, "--output-dir", tmp_path / "poisson", "--num-points", 1000,
        "--num-rays-per-batch", 512, "--normal-method", "open3d", "--save-point-cloud", True,
        "--target-num-faces", 200, "--num-pixels-per-side", 32,
    )  # fmt: skip
    for name in ("tsdf/tsdf_mesh.ply", "poisson/poisson_mesh.ply"):
        mesh = open3d.io.read_triangle_mesh(tmp_path / name)
        assert len(mesh.triangles) > 50, name
        assert share_in_object(to_scene(np.asarray(mesh.vertices), nerf), tiny_scene, tiny_prompt["name"]) > 0.8, name
        texture = np.asarray(open3d.io.read_image((tmp_path / name).parent / "material_0.png"))
        assert texture.std() > 1, name
    tsdf = open3d.io.read_triangle_mesh(tmp_path / "tsdf/tsdf_mesh.ply")
    size = np.ptp(to_scene(np.asarray(tsdf.vertices), nerf), axis=0)
    # Smaller than the box, which it would fill if the space around the object had stayed solid.
    assert (size < 1.6 * (np.array(box["aabb_max"]) - np.array(box["aabb_min"]))).all()
