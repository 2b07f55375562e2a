"""Methods trained for a moment by ns-train, then segmented and exported: real commands, start to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import pytest

from tests.commands import run, succeed
from tests.scenes import with_points

pytestmark = pytest.mark.slow
STAND_INS = Path(__file__).with_name("stand_ins.py")
QUIET = ["--vis", "tensorboard", "--logging.local-writer.max-log-size", "0", "--machine.device-type", "cpu"]
NO_EVALUATION = [f"--steps-per-eval-{what}=9999" for what in ("batch", "image", "all-images")]


def nerfstudio(command: str, *words: object) -> str:
    """A command of nerfstudio, with stand-ins for the CUDA libraries where there is no CUDA."""
    return succeed(sys.executable, STAND_INS, command, *words)


def train(method: str, scene: Path, output: Path, steps: int, *options: object) -> Path:
    """Train a method, and return the run's folder."""
    nerfstudio(
        "ns-train", method, "--data", scene, "--output-dir", output, "--timestamp", "T", *QUIET, *NO_EVALUATION,
        "--max-num-iterations", steps, "--steps-per-save", 9999, *options,
    )  # fmt: skip
    return output / scene.name / method / "T"


def segment(base: Path, scene: Path, output: Path, prompt: dict[str, Any], *options: object) -> tuple[Path, str]:
    """Segment by one click with the oracle; return the run's folder and what was printed."""
    printed = nerfstudio(
        "ns-train", "sa3d", "--load-dir", base, "--output-dir", output, "--timestamp", "S", *QUIET[:2],
        "--pipeline.prompt.view", Path(prompt["frame"]).name, "--pipeline.prompt.points", *prompt["points"][0],
        "--pipeline.segmenter", "oracle", "--pipeline.oracle-instances", scene / "instances", *options,
    )  # fmt: skip
    return output / scene.name / "sa3d" / "S", printed


def share_in_object(points: np.ndarray, scene: Path, name: str) -> float:
    """Which share of points lies within an object's box, widened by half of its size: the models are barely trained."""
    objects = json.loads((scene / "objects.json").read_text())["objects"]
    box = next(entry for entry in objects if entry["name"] == name)
    low, high = np.array(box["aabb_min"]), np.array(box["aabb_max"])
    slack = 0.5 * (high - low).max()
    return float(((points >= low - slack) & (points <= high + slack)).all(-1).mean())


def to_scene(points: np.ndarray, run: Path) -> np.ndarray:
    """From nerfstudio's frame back to the data set's."""
    transform = json.loads((run / "dataparser_transforms.json").read_text())
    matrix, scale = np.array(transform["transform"]), transform["scale"]
    return (points / scale - matrix[:, 3]) @ matrix[:, :3]


@pytest.fixture(scope="module")
def splats(tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A segmented splatfacto run, and what the segmentation printed."""
    folder = tmp_path_factory.mktemp("splats")
    scene = with_points(tiny_scene, folder / "scene")
    base = train(
        "splatfacto", scene, folder, 60, "--pipeline.model.num-downscales", 0, "--pipeline.model.use-absgrad", False,
        "--optimizers.opacities.optimizer.lr", 0.1, "--optimizers.features-dc.optimizer.lr", 0.05,
    )  # fmt: skip
    return segment(base, scene, folder, tiny_prompt)


def test_splatfacto_is_segmented_and_only_its_object_exported(
    splats: tuple[Path, str], tiny_scene: Path, tiny_prompt: dict[str, Any], tmp_path: Path
):
    folder, printed = splats
    assert "views used          10 of 10" in printed
    assert "ns-export gaussian-splat" in printed
    nerfstudio("ns-export", "gaussian-splat", "--load-config", folder / "config.yml", "--output-dir", tmp_path)
    points = np.asarray(open3d.io.read_point_cloud(tmp_path / "splat.ply").points)
    # The ball began as 150 points of the 1500.
    assert 100 < len(points) < 250
    assert share_in_object(to_scene(points, folder), tiny_scene, tiny_prompt["name"]) > 0.9


def test_splatfacto_renders_whole_and_object(splats: tuple[Path, str], tmp_path: Path):
    nerfstudio(
        "ns-render", "dataset", "--load-config", splats[0] / "config.yml", "--output-path", tmp_path,
        "--split", "test", "--rendered-output-names", "rgb", "object_rgb", "mask", "--image-format", "png",
    )  # fmt: skip
    images = sorted(path.relative_to(tmp_path / "test").parts[0] for path in tmp_path.rglob("*.png"))
    assert images == ["mask", "mask", "object_rgb", "object_rgb", "rgb", "rgb"]
    alone, whole = (open3d.io.read_image(next((tmp_path / "test" / name).rglob("*.png"))) for name in images[2::2])
    assert (np.asarray(alone) == 255).all(-1).mean() > 0.7
    assert (np.asarray(whole) == 255).all(-1).mean() < 0.2


def test_splatfacto_without_an_object_is_not_exported(splats: tuple[Path, str], tmp_path: Path):
    """A threshold that no splat reaches: the mask is empty."""
    config = tmp_path / "config.yml"
    config.write_text((splats[0] / "config.yml").read_text().replace("threshold: 0.5", "threshold: 1.0"))
    text = config.read_text()
    assert "threshold: 1.0" in text
    done = run(
        sys.executable, STAND_INS, "ns-export", "gaussian-splat", "--load-config", config, "--output-dir", tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: this run has no object to export")
