"""The demo: make a scene, train nerfacto, segment one object from one click, export it, score it.

Each heavy stage runs as a separate command, the same that a user would type, with its output in a log file.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sa3d_nerfstudio.demo.options import DemoConfig
from sa3d_nerfstudio.demo.scene import write_scene
from sa3d_nerfstudio.demo.stages import Stages, counted_share, training_share
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say


def _nerfstudio(script: str) -> list[str]:
    """Start of a nerfstudio command in this process's environment, whether or not its scripts are on the path."""
    return [sys.executable, "-m", f"nerfstudio.scripts.{script}"]


def find_prompt(scene: Path, name: str) -> dict[str, Any]:
    """Entry of an object in prompts.json.

    Raises:
        SA3DError: There is no such object.
    """
    prompts = json.loads((scene / "prompts.json").read_text())["objects"]
    for prompt in prompts:
        if prompt["name"] == name:
            return prompt
    raise SA3DError(f"there is no object {name!r}: choose one of {', '.join(prompt['name'] for prompt in prompts)}.")


def run_demo(config: DemoConfig, console: Console | None = None) -> float:
    """Run all stages, and print the paths of their results and the object's IoU with the truth.

    Args:
        config: Options of the demo.
        console: Console to print to; the terminal by default.

    Returns:
        Mean IoU over the views that were not trained on.

    Raises:
        SA3DError: A stage failed.
    """
    console = console or Console()
    started = time.monotonic()
    folder = config.output_dir
    scene, runs, export = folder / "scene", folder / "outputs", folder / "export"
    timestamp = time.strftime("%Y-%m-%d_%H%M%S")
    base_run, sa3d_run = (runs / "scene" / method / timestamp for method in ("nerfacto", "sa3d"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    stages = Stages(console, folder / "logs", number=5)

    with stages.stage("make a scene") as advance:
        write_scene(scene, config.scene, lambda done, total: advance(done / total))
    prompt = find_prompt(scene, config.object)
    view, (x, y) = Path(prompt["frame"]).name, prompt["points"][0]

    train = [sys.executable, "-m", "sa3d_nerfstudio.demo.train", "--data", scene, "--output-dir", runs]
    stages.run("train nerfacto", [*train, "--timestamp", timestamp, "--steps", str(config.steps)], training_share)

    segment = [*_nerfstudio("train"), "sa3d", "--load-dir", base_run, "--vis", "tensorboard"]
    segment += ["--output-dir", runs, "--experiment-name", "scene", "--timestamp", timestamp]
    segment += ["--machine.device-type", device, "--pipeline.segmenter", config.segmenter]
    if config.sam_checkpoint is not None:
        segment += ["--pipeline.sam-checkpoint", config.sam_checkpoint]
    if config.segmenter == "oracle":
        segment += ["--pipeline.oracle-instances", scene / "instances"]
    segment += ["--pipeline.object-name", config.object, "--pipeline.prompt.view", view]
    stages.run(f"segment the {config.object}", [*segment, "--pipeline.prompt.points", str(x), str(y)])

    cloud = [*_nerfstudio("exporter"), "pointcloud", "--load-config", sa3d_run / "config.yml"]
    cloud += ["--output-dir", export, "--num-points", str(config.num_points), "--normal-method", "open3d"]
    # On a CPU, nerfstudio's batches of 32768 rays are bound by memory.
    cloud += ["--num-rays-per-batch", "4096"]
    stages.run("export its point cloud", cloud)

    score = [sys.executable, "-m", "sa3d_nerfstudio.demo.score", "--config", sa3d_run / "config.yml"]
    score += ["--scene", scene, "--name", config.object, "--output-dir", folder]
    stages.run("score it in unseen views", score, counted_share)

    scores = json.loads((folder / "scores.json").read_text())
    table = Table("unseen view", "IoU", "pixels", title=f"{config.object}, one click at {x} {y} in {view}")
    for row in scores["per_frame"]:
        table.add_row(row["frame"], f"{row['iou']:.3f}", str(row["pixels"]))
    table.add_row("mean", f"{scores['mean_iou']:.3f}", "", style="bold")
    console.print(table)
    for label, path in {
        "overview": folder / "overview.png",
        "point cloud": export / "point_cloud.ply",
        "masks": folder / "masks",
        "run": sa3d_run / "config.yml",
        "logs": folder / "logs",
    }.items():
        say(f"{label:<12}{path}", console)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    say(
        f"The {config.object}, segmented from one click with {config.segmenter}, has a mean IoU of "
        f"{scores['mean_iou']:.3f} with the truth in {scores['frames']} unseen views ({minutes} min {seconds} s).",
        console,
    )
    return scores["mean_iou"]
