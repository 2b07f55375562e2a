"""Kill ``ns-train sa3d`` at random moments, and check its saved files. A separate script, because it forks.

``python tests/kills.py RUN SCENE OUTPUT KILLS`` prints the saved objects before and after each kill, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sa3d_nerfstudio import overview
from sa3d_nerfstudio.base_run.checkpoint import load_checkpoint
from sa3d_nerfstudio.base_run.find import find_run
from sa3d_nerfstudio.pipeline import SA3DPipeline, SA3DPipelineConfig
from sa3d_nerfstudio.prompts.config import PromptConfig
from sa3d_nerfstudio.trainer import SA3DTrainer, SA3DTrainerConfig, default_config

OBJECTS = ("ball", "crate", "tin")

POLL = 0.005
"""Seconds between two checks of a run's folder."""


def configured(run: Path, scene: Path, output: Path) -> SA3DTrainerConfig:
    """Configuration of ``ns-train sa3d --timestamp K --pipeline.prompt.file …``."""
    config = default_config()
    config.load_dir, config.output_dir, config.timestamp, config.vis = run, output, "K", "tensorboard"
    config.pipeline.prompt = PromptConfig(file=scene / "three.json", kinds=("points",))
    config.pipeline.segmenter, config.pipeline.oracle_instances = "oracle", scene / "instances"
    config.pipeline.working_size, config.pipeline.resolution = 16, 24
    config.set_timestamp()
    return config


def train(run: Path, scene: Path, output: Path) -> None:
    """Segment as ``ns-train`` does."""
    trainer = SA3DTrainer(configured(run, scene, output))
    trainer.setup()
    trainer.train()


def warm_up(run: Path, scene: Path, output: Path) -> None:
    """Build the pipeline and trace all views once, without writing files; forked processes inherit the pipeline."""
    torch.set_num_threads(1)
    overview.VIEWS = 1  # overviews take the longest of all, and are not tested here
    trainer = SA3DTrainer(configured(run, scene, output))
    trainer.setup()
    pipeline = trainer.pipeline
    for view in range(len(pipeline.views)):
        pipeline.views.trace(view)

    def setup(self: SA3DPipelineConfig, **_: Any) -> SA3DPipeline:
        pipeline.config = self
        return pipeline

    SA3DPipelineConfig.setup = setup  # type: ignore[method-assign]


def in_child(run: Path, scene: Path, output: Path) -> int:
    """Start :func:`train` in a forked process, and return its process id."""
    child = os.fork()
    if child == 0:
        log = os.open(output.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            train(run, scene, output)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Evidence of each object saved in a run's folder; fails unless the saved files are complete."""
    if not (folder / "config.yml").exists():
        return {}
    names = os.listdir(folder / "nerfstudio_models")
    # nerfstudio's commands choose a checkpoint this way (nerfstudio/utils/eval_utils.py).
    step = max(int(name[name.find("-") + 1 : name.find(".")]) for name in names)
    assert (folder / "nerfstudio_models" / f"step-{step:09d}.ckpt").is_file(), names
    state = load_checkpoint(find_run(folder).checkpoint_path)["pipeline"]
    extra: dict[str, Any] = state["_model.masks._extra_state"]
    assert set(extra["finished"]) == set(extra["names"])
    return {name: state[f"_model.masks.fields.object:{name}.hit"].clone() for name in extra["names"]}


def saves(child: int, folder: Path) -> Iterator[int]:
    """Yield the number of saves so far of a running process, at each check until it ends by itself."""
    count, last = 0, _saved_last(folder)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        now = _saved_last(folder)
        count, last = count + (now != last), now
        yield count
        time.sleep(POLL)


def _saved_last(folder: Path) -> int:
    """Time of a run's last save in nanoseconds, or 0: its config.yml is the last file that a save needs."""
    config = folder / "config.yml"
    return config.stat().st_mtime_ns if config.exists() else 0


def kill(child: int, folder: Path, after_saves: int, wait: float) -> None:
    """Kill a process ``wait`` seconds after a number of saves, and wait for its end."""
    for count in saves(child, folder):
        if count >= after_saves:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return


def main() -> None:
    """Kill runs, let the last one finish, and print the report."""
    run, source, base = (Path(word) for word in sys.argv[1:4])
    scene, output = base / "scene", base / "killed"
    shutil.copytree(source, scene)
    prompts = json.loads((scene / "prompts.json").read_text())["objects"]
    (scene / "three.json").write_text(json.dumps({"objects": [item for item in prompts if item["name"] in OBJECTS]}))
    config = run / "config.yml"
    assert config.is_file()
    output.mkdir()
    complete_output = base / "whole"
    warm_up(run, scene, complete_output)
    folder = Path(source.name) / "sa3d" / "K"
    start, save_times = time.monotonic(), [0.0]
    for count in saves(in_child(run, scene, complete_output), complete_output / folder):
        if count == len(save_times):
            save_times.append(time.monotonic() - start)
    assert len(save_times) > len(OBJECTS), (base / "log.txt").read_text()[-2000:]
    gap = (save_times[len(OBJECTS)] - save_times[0]) / len(OBJECTS)
    reference = saved(complete_output / folder)
    assert set(reference) == set(OBJECTS)
    rng = random.Random(0)
    kills = []
    # Runs differ in speed, so kills are timed from saves. The first kills come immediately after zero, one and two
    # saved objects, so that each state occurs; the others are random, and the last leaves a half-done run to resume.
    last = int(sys.argv[4]) - 1
    planned = {0: (0, 0.0), 1: (1, 0.0), 2: (1, 0.0), last: (1, 0.0)}
    for number in range(last + 1):
        before = saved(output / folder)
        if len(before) == len(OBJECTS) or number == last:
            shutil.rmtree(output)
            output.mkdir()
            before = {}
        child = in_child(run, scene, output)
        random_moment = (rng.randint(0, len(OBJECTS) - len(before)), gap * rng.uniform(0.0, 1.0))
        kill(child, output / folder, *planned.get(number, random_moment))
        after = saved(output / folder)
        assert set(before) <= set(after)
        assert all(torch.equal(after[name], reference[name]) for name in after)
        leftovers = [path.name for path in output.rglob("saving-0.*")]
        kills.append({"before": sorted(before), "after": sorted(after), "leftovers": leftovers})
    (base / "log.txt").unlink()
    assert os.waitpid(in_child(run, scene, output), 0)[1] == 0
    after = saved(output / folder)
    assert all(torch.equal(after[name], reference[name]) for name in OBJECTS)
    left = [path.name for path in output.rglob("saving-0.*")]
    print(json.dumps({"kills": kills, "left": left, "log": (base / "log.txt").read_text(), "seconds_per_object": gap}))


if __name__ == "__main__":
    main()
