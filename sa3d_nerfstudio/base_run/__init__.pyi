from .checkpoint import allow_nerfstudio_checkpoints, check_finite, checkpoints_in, load_checkpoint
from .find import BaseRun, find_run, locate_dataset
from .patches import lpips_without_download, without_guidance

__all__ = [
    "BaseRun",
    "allow_nerfstudio_checkpoints",
    "check_finite",
    "checkpoints_in",
    "find_run",
    "load_checkpoint",
    "locate_dataset",
    "lpips_without_download",
    "without_guidance",
]
