"""Nothing lost on the way: what of a job is finished already, and where its result goes when a disk is full."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from nerfstudio.utils.rich_utils import CONSOLE

from sa3d_nerfstudio.base_run.find import BaseRun, find_run
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.config import ObjectPrompts

if TYPE_CHECKING:
    from sa3d_nerfstudio.pipeline import SA3DPipelineConfig
    from sa3d_nerfstudio.trainer import SA3DTrainer

_NO_PART_OF_A_JOB = frozenset(
    {"_target", "datamanager", "model", "base", "prompt", "object_name", "object_background", "save_base", "redo"}
    | {"cache_gb", "keep_cache", "cache_dir", "sam_download", "encode_batch"}
)


def job_digest(prompts: ObjectPrompts, config: SA3DPipelineConfig) -> str:
    """What an object is made from, its prompts and all settings, as a checksum: the same again gives the same object.

    Args:
        given: The object's prompts.
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
    """The sa3d run that lies where a new one is to be written, if it is of the same base.

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
    """Print what of a run that is continued is done again, and what is not.

    Args:
        kept: Names of the objects that are left as they are.
        to_do: Of those that will be segmented.
        there: Of those that the run holds.
    """
    lines = {
        "kept": (kept, "finished before, with the same prompts (--pipeline.redo True does them again)"),
        "redone": ([name for name in to_do if name in there], "not finished before, or prompted in another way"),
        "to do": ([name for name in to_do if name not in there], "not in the run that is continued"),
    }
    for word, (names, why) in lines.items():
        if names:
            CONSOLE.print(f"{word:11} {', '.join(names)}: {why}", highlight=False, soft_wrap=True, markup=False)


def save_somehow(trainer: SA3DTrainer, write: Callable[[], None]) -> None:
    """Write a run; if that fails, write it without the base weights; if that fails too, write that elsewhere.

    Args:
        trainer: Whose run it is. Its configuration says afterwards what has been written, and where.
        write: Writes all of it, as the configuration says.

    Raises:
        SA3DError: It is not where it should be; the message says where it is.
    """
    try:
        return write()
    except SA3DError as error:
        first = error
    config = trainer.config
    if config.pipeline.save_base:
        config.pipeline.save_base = False
        try:
            write()
        except SA3DError as error:
            first = error
        else:
            CONSOLE.print(
                f"note        saved without the base weights, for which there was no room: leave {_base(trainer)} "
                "where it is",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
            return None
    config.output_dir = Path(tempfile.mkdtemp(prefix="sa3d-"))
    trainer.base_dir, trainer.checkpoint_dir = config.get_base_dir(), config.get_checkpoint_dir()
    write()
    reason = str(first).split(": make room", maxsplit=1)[0]
    raise SA3DError(f"{reason}: make room there; the objects are safe for now in {trainer.base_dir}.") from first


def _base(trainer: SA3DTrainer) -> Path:
    assert trainer.config.pipeline.base is not None
    return trainer.config.pipeline.base.checkpoint
