"""Which objects of a run are finished, and what a continued run still has to do."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from sa3d_nerfstudio.base_run.find import BaseRun, find_run
from sa3d_nerfstudio.pipeline import SA3DPipelineConfig
from sa3d_nerfstudio.prompts.config import ObjectPrompts
from sa3d_nerfstudio.terminal import say

_NO_PART_OF_A_JOB = frozenset(
    {"_target", "datamanager", "model", "base", "prompt", "object_name", "object_background", "save_base", "redo"}
    | {"cache_gb", "keep_cache", "cache_dir", "sam_download", "encode_batch"}
)


def job_digest(prompts: ObjectPrompts, config: SA3DPipelineConfig) -> str:
    """Checksum of an object's prompts and of all settings: equal ones give equal objects.

    Args:
        prompts: The object's prompts.
        config: The settings.
    """
    settings = {
        field.name: str(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _NO_PART_OF_A_JOB
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for view in sorted(prompts.views):
        prompt = prompts.views[view]
        for name, value in [("view", view), *vars(prompt).items()]:
            plain = value.tolist() if isinstance(value, torch.Tensor) else value
            digest.update(json.dumps([name, plain]).encode())
    return digest.hexdigest()


def unfinished_run(folder: Path, base_checkpoint: Path) -> BaseRun | None:
    """The sa3d run in the folder of a new one, if both have the same base run.

    Args:
        folder: Where the new run will be.
        base_checkpoint: What it segments.
    """
    if not (folder / "config.yml").is_file():
        return None
    run = find_run(folder)
    base = getattr(run.config.pipeline, "base", None)
    return run if run.is_sa3d and base is not None and base.checkpoint == base_checkpoint else None


def print_progress_so_far(kept: Sequence[str], to_do: Sequence[str], there: Sequence[str]) -> None:
    """Print which objects of a continued run are kept, redone, or new.

    Args:
        kept: Names of finished objects.
        to_do: Names of the objects to segment.
        there: Names of the objects in the run.
    """
    lines = {
        "kept": (kept, "finished before, with the same prompts (--pipeline.redo True does them again)"),
        "redone": ([name for name in to_do if name in there], "not finished before, or prompted in another way"),
        "to do": ([name for name in to_do if name not in there], "not in the run that is continued"),
    }
    for word, (names, why) in lines.items():
        if names:
            say(f"{word:11} {', '.join(names)}: {why}")
