"""Kills ``ns-train sa3d`` at random moments, and looks at what it leaves. A script of its own, for it forks.

``python tests/kills.py RUN SCENE OUTPUT KILLS`` prints what was found after each kill, as JSON.
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
"""Seconds between two looks at a run's folder."""


def configured(run: Path, scene: Path, output: Path) -> SA3DTrainerConfig:
    """As by ``ns-train sa3d --timestamp K --pipeline.prompt.file …``."""
    config = default_config()
    config.load_dir, config.output_dir, config.timestamp, config.vis = run, output, "K", "tensorboard"
    config.pipeline.prompt = PromptConfig(file=scene / "three.json", kinds=("points",))
    config.pipeline.segmenter, config.pipeline.oracle_instances = "oracle", scene / "instances"
    config.pipeline.working_size, config.pipeline.resolution = 16, 24
    config.set_timestamp()
    return config


def train(run: Path, scene: Path, output: Path) -> None:
    """What ``ns-train`` does."""
    trainer = SA3DTrainer(configured(run, scene, output))
    trainer.setup()
    trainer.train()


def warm_up(run: Path, scene: Path, output: Path) -> None:
    """Build the pipeline and render all views once, which writes nothing; processes that are forked take it along."""
    torch.set_num_threads(1)
    overview.VIEWS = 1  # they take the longest of all, and say nothing here
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
    """Start it in a process of its own, whose id is returned."""
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
    """The evidence of each object that can be read from a run's folder; all that is there must be readable."""
    if not (folder / "config.yml").exists():
        return {}
    names = os.listdir(folder / "nerfstudio_models")
    # How nerfstudio's own commands choose a checkpoint (nerfstudio/utils/eval_utils.py).
    step = max(int(name[name.find("-") + 1 : name.find(".")]) for name in names)
    assert (folder / "nerfstudio_models" / f"step-{step:09d}.ckpt").is_file(), names
    state = load_checkpoint(find_run(folder).checkpoint_path)["pipeline"]
    extra: dict[str, Any] = state["_model.masks._extra_state"]
    assert set(extra["finished"]) == set(extra["names"])
    return {name: state[f"_model.masks.fields.object:{name}.hit"].clone() for name in extra["names"]}


def saves(child: int, folder: Path) -> Iterator[int]:
    """How many times a running process has saved so far, again and again until it has ended by itself."""
    count, last = 0, _saved_last(folder)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        now = _saved_last(folder)
        count, last = count + (now != last), now
        yield count
        time.sleep(POLL)


def _saved_last(folder: Path) -> int:
    """When a run saved for the last time: its config.yml is what it writes last of all."""
    config = folder / "config.yml"
    return config.stat().st_mtime_ns if config.exists() else 0


def kill(child: int, folder: Path, after_saves: int, wait: float) -> None:
    """Kill a process some seconds after its n-th save, and wait for its end."""
    for count in saves(child, folder):
        if count >= after_saves:
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return


def main() -> None:
    """Kill it so many times."""
    run, source, base = (Path(word) for word in sys.argv[1:4])
    scene, output = base / "scene", base / "killed"
    shutil.copytree(source, scene)
    prompts = json.loads((scene / "prompts.json").read_text())["objects"]
    (scene / "three.json").write_text(json.dumps({"objects": [item for item in prompts if item["name"] in OBJECTS]}))
    config = run / "config.yml"
    assert config.is_file()
    output.mkdir()
    whole = base / "whole"
    warm_up(run, scene, whole)
    folder = Path(source.name) / "sa3d" / "K"
    start, moments_saved = time.monotonic(), [0.0]
    for count in saves(in_child(run, scene, whole), whole / folder):
        if count == len(moments_saved):
            moments_saved.append(time.monotonic() - start)
    assert len(moments_saved) > len(OBJECTS), (base / "log.txt").read_text()[-2000:]
    gap = (moments_saved[len(OBJECTS)] - moments_saved[0]) / len(OBJECTS)
    reference = saved(whole / folder)
    assert set(reference) == set(OBJECTS)
    rng = random.Random(0)
    found = []
    # How fast a run is differs from one to the next, so moments count from what it has saved. The first kills come at
    # once after nothing, one and two objects, so that each state is met; the others come whenever, and the last leaves
    # a half-done run to be ended.
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
        found.append({"before": sorted(before), "after": sorted(after), "leftovers": leftovers})
    (base / "log.txt").unlink()
    assert os.waitpid(in_child(run, scene, output), 0)[1] == 0
    after = saved(output / folder)
    assert all(torch.equal(after[name], reference[name]) for name in OBJECTS)
    left = [path.name for path in output.rglob("saving-0.*")]
    print(json.dumps({"kills": found, "left": left, "log": (base / "log.txt").read_text(), "seconds_per_object": gap}))


if __name__ == "__main__":
    main()
