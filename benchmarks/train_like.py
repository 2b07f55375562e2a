"""Train a run on another scene with the configuration of an existing run.

    python -m benchmarks.train_like --config ../shared/runs/desk/nerfacto/cpu/config.yml \
        --data ../shared/scenes/toys --output-dir outputs

The new run lies at ``OUTPUT_DIR/NAME_OF_DATA/METHOD/TIME`` with the TIME of the existing run.
"""

from __future__ import annotations

from pathlib import Path

import tyro
import yaml
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.scripts import train

from sa3d_nerfstudio.base_run.patches import lpips_without_download


def main(config: Path, data: Path, output_dir: Path) -> Path:
    """Train the run.

    Args:
        config: config.yml of the existing run; as with nerfstudio itself, reading it runs code that it names.
        data: Folder of the scene.
        output_dir: Folder of the runs.

    Returns:
        Folder of the new run.
    """
    trainer = yaml.load(config.read_text(), Loader=yaml.Loader)
    assert isinstance(trainer, TrainerConfig)
    datamanager = trainer.pipeline.datamanager
    trainer.data = datamanager.data = datamanager.dataparser.data = data  # type: ignore[attr-defined]
    trainer.experiment_name, trainer.output_dir, trainer.vis = data.name, output_dir, "tensorboard"
    trainer.steps_per_save = trainer.max_num_iterations
    # An evaluation costs as much as tens of steps, and is not needed here.
    never = 10 * trainer.max_num_iterations
    trainer.steps_per_eval_batch = trainer.steps_per_eval_image = trainer.steps_per_eval_all_images = never
    with lpips_without_download():
        train.main(trainer)
    return trainer.get_base_dir()


if __name__ == "__main__":
    tyro.cli(main)
