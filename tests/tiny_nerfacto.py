"""A nerfacto run of the tiny scene, made in seconds: nerfstudio's trainer saves it with stored weights.

``python -m tests.tiny_nerfacto SCENE OUTPUT`` writes the run; with ``--train`` it learns the weights anew, by ns-train,
and writes them to :data:`WEIGHTS`. Training in each test run would take minutes, and give a different field each time.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.scripts import train as ns_train
from safetensors.torch import load_file, save_file

from sa3d_nerfstudio.base_run.checkpoint import checkpoints_in, load_checkpoint
from sa3d_nerfstudio.base_run.patches import lpips_without_download
from sa3d_nerfstudio.demo.train import small_nerfacto

WEIGHTS = Path(__file__).parent / "data" / "tiny_nerfacto.safetensors"
"""Weights of the tables and networks, in half precision; learnt by this file with ``--train``."""
STEPS = 2000
"""Training steps of the stored weights."""
PREFIX = "_model."


def tiny_nerfacto(scene: Path, output: Path, steps: int = STEPS) -> TrainerConfig:
    """The demo's nerfacto with smaller tables.

    Args:
        scene: Folder of the tiny scene.
        output: Folder of all runs; this one goes to ``output / scene.name / "nerfacto" / "T"``.
        steps: Training steps.
    """
    config = small_nerfacto(scene, output, "T", steps)
    model = config.pipeline.model
    assert isinstance(model, NerfactoModelConfig)
    model.num_levels = 6
    model.log2_hashmap_size = 13
    model.max_res = 128
    model.proposal_net_args_list = [
        {**arguments, "log2_hashmap_size": 11} for arguments in model.proposal_net_args_list
    ]
    return config


def trainer_of(config: TrainerConfig) -> Any:
    """Set up nerfstudio's trainer as ns-train does, and load the stored weights into its model."""
    config.pipeline.datamanager.data = config.data  # type: ignore[attr-defined]
    with lpips_without_download():
        trainer: Any = config.setup(local_rank=0, world_size=1)
        config.save_config()
        trainer.setup()
    load_weights(trainer.pipeline.model)
    return trainer


def write(scene: Path, output: Path) -> None:
    """Write the run as ns-train would after its last step.

    Args:
        scene: Folder of the tiny scene.
        output: Folder of all runs.
    """
    trainer = trainer_of(tiny_nerfacto(scene, output))
    parsed = trainer.pipeline.datamanager.train_dataparser_outputs
    parsed.save_dataparser_transform(trainer.base_dir / "dataparser_transforms.json")
    trainer.save_checkpoint(STEPS - 1)


def load_weights(model: Any) -> None:
    """Load the stored weights into a model of this shape; the camera optimiser's parameters stay as they are."""
    weights = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    learnt = {id(parameter) for group in model.get_param_groups().values() for parameter in group}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in learnt}
    lacking = names.intersection(missing) - {"camera_optimizer.pose_adjustment"}
    assert not lacking and not unexpected, (lacking, unexpected)


def train(scene: Path, output: Path) -> None:
    """Learn the weights, and write them to :data:`WEIGHTS`."""
    with lpips_without_download():
        ns_train.main(tiny_nerfacto(scene, output))
    (path,) = checkpoints_in(output / scene.name / "nerfacto" / "T" / "nerfstudio_models").values()
    state = load_checkpoint(path)["pipeline"]
    save_file(
        {
            name.removeprefix(PREFIX): value.half().contiguous()
            for name, value in state.items()
            if name.startswith(PREFIX) and value.is_floating_point() and "lpips" not in name
        },
        WEIGHTS,
    )


if __name__ == "__main__":
    (train if "--train" in sys.argv else write)(Path(sys.argv[1]), Path(sys.argv[2]))
