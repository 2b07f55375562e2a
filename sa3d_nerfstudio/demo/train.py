"""Train a small nerfacto on the demo's scene, as ``ns-train nerfacto`` would, on a CPU and without network.

This is a separate module because nerfacto's data manager starts processes that import the main module again, and
because building nerfacto would otherwise download the network of a metric that the demo never computes.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import tyro
from nerfstudio.configs.method_configs import method_configs
from nerfstudio.data.datamanagers.parallel_datamanager import ParallelDataManagerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModelConfig
from nerfstudio.scripts import train as ns_train

from sa3d_nerfstudio.base_run.patches import lpips_without_download


def small_nerfacto(data: Path, output_dir: Path, timestamp: str, steps: int) -> TrainerConfig:
    """nerfacto's configuration, reduced for a small scene and for minutes of training on a CPU.

    Args:
        data: Folder of the scene.
        output_dir: Folder of all runs; this run is saved in ``output_dir/NAME_OF_DATA/nerfacto/timestamp``.
        timestamp: Name of the run.
        steps: Number of training steps.
    """
    config = copy.deepcopy(method_configs["nerfacto"])
    assert isinstance(config, TrainerConfig)
    config.data = data
    config.output_dir = output_dir
    config.timestamp = timestamp
    config.max_num_iterations = steps
    config.vis = "tensorboard"
    config.machine.device_type = "cuda" if torch.cuda.is_available() else "cpu"
    config.mixed_precision = False
    config.steps_per_save = steps
    # The demo scores the run afterwards; an evaluation during training costs as much as tens of steps.
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10 * steps
    # Plain lines for the log file, instead of a table that moves the cursor.
    config.logging.local_writer.max_log_size = 0

    data_manager = config.pipeline.datamanager
    # The parallel data manager stays: ns-viewer and ns-export expect nerfacto's when they read the run.
    assert isinstance(data_manager, ParallelDataManagerConfig)
    # One process suffices for small batches. nerfstudio's main branch names the option differently; its default is 4.
    workers = "num_processes" if hasattr(data_manager, "num_processes") else "dataloader_num_workers"
    setattr(data_manager, workers, 1)
    data_manager.train_num_rays_per_batch = 512

    model = config.pipeline.model
    assert isinstance(model, NerfactoModelConfig)
    model.implementation = "torch"
    model.num_levels = 8
    model.log2_hashmap_size = 16
    model.max_res = 256
    model.hidden_dim = model.hidden_dim_color = 32
    model.num_proposal_samples_per_ray = (64, 32)
    model.num_nerf_samples_per_ray = 24
    model.proposal_net_args_list = [
        {**arguments, "log2_hashmap_size": 15} for arguments in model.proposal_net_args_list
    ]
    # The room ends every ray. Without a far plane, floor and walls settle at infinity: so few views allow it.
    model.near_plane, model.far_plane = 0.5, 5.0
    model.proposal_initial_sampler = "uniform"
    model.average_init_density = 0.1
    # The defaults of these two are meant for the first part of a run of 30,000 steps.
    model.proposal_weights_anneal_max_num_iters = max(1, steps // 4)
    model.proposal_warmup = steps
    # Poses are exact and the lighting is the same in every view, so no corrections are learnt.
    model.camera_optimizer.mode = "off"
    model.use_appearance_embedding = False
    for name in ("fields", "proposal_networks"):
        config.optimizers[name]["scheduler"] = ExponentialDecaySchedulerConfig(lr_final=1e-3, max_steps=steps)
    return config


def train(data: Path, output_dir: Path, timestamp: str, steps: int) -> None:
    """Train and save the run.

    Args:
        data: Folder of the scene.
        output_dir: Folder of all runs.
        timestamp: Name of the run.
        steps: Number of training steps.
    """
    with lpips_without_download():
        ns_train.main(small_nerfacto(data, output_dir, timestamp, steps))


if __name__ == "__main__":
    tyro.cli(train)
