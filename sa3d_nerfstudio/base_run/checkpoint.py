"""Read nerfstudio's checkpoints as data only, and check the weights in them."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.errors import SA3DError, one_line

_NUMBER_TYPES = (np.float64, np.float32, np.int64, np.int32, np.bool_)
_NAMES_OF_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # by numpy 1, by numpy 2
_CHECKPOINT_NAME = re.compile(r"step-(\d{9,})\.ckpt")  # nerfstudio's step-%09d.ckpt


def quiet_nerfstudio() -> None:
    """Silence two warnings of nerfstudio, of ray generation and of ``GradScaler``, which users cannot act on."""
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
    warnings.filterwarnings("ignore", message=r"`torch\.cuda\.amp\.GradScaler", module="nerfstudio")


def allow_nerfstudio_checkpoints() -> None:
    """Let ``torch.load(weights_only=True)`` accept the numpy numbers in nerfstudio's checkpoints.

    This holds for the whole process, so that ns-export, ns-viewer, ns-render, ns-eval and ns-train work as well once
    nerfstudio has imported its plugins. On torch < 2.4 it does nothing, as the list of accepted types cannot be
    extended there (and nerfstudio's own tools do not need it).
    """
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)
    if add_safe_globals is None:
        return
    scalar = np.float64(0).__reduce__()[0]  # the function's module differs between numpy 1 and 2
    add_safe_globals([scalar, np.dtype, *(type(np.dtype(number)) for number in _NUMBER_TYPES)])
    if _torch_version() >= (2, 6):  # aliases came with 2.6; they let numpy 1 read files of numpy 2, and the reverse
        add_safe_globals([(scalar, name) for name in _NAMES_OF_SCALAR])


def load_checkpoint(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a nerfstudio checkpoint, weights only.

    The file's checksums are verified first, since torch ignores them. On the CPU the tensors are memory-mapped, so that
    optimiser states (two thirds of a checkpoint) are not read: copy tensors that must outlive the file, and replace the
    file instead of writing into it.

    Args:
        path: A ``step-*.ckpt`` file.
        map_location: Device of the tensors.

    Returns:
        The checkpoint: at least "step" (int) and "pipeline" (name -> tensor).

    Raises:
        SA3DError: The file is missing, truncated, damaged, or not a nerfstudio checkpoint.
    """
    if not path.is_file():
        raise SA3DError(f"there is no checkpoint {path}{_remedy(path)}.")
    try:
        damage = _damage(path)
    except Exception as error:  # a damaged zip directory can raise nearly anything
        damage = one_line(error)
    if damage is not None:
        raise SA3DError(f"the checkpoint {path} is incomplete or damaged ({damage}){_remedy(path)}.")

    allow_nerfstudio_checkpoints()
    mmap = torch.device(map_location).type == "cpu"
    try:
        checkpoint = torch.load(str(path), map_location=map_location, weights_only=True, mmap=mmap)
    except Exception as error:  # a foreign file can make the unpickler raise any error
        raise SA3DError(
            f"the checkpoint {path} cannot be read as plain weights ({one_line(error)}){_remedy(path)}."
        ) from error
    if not _is_nerfstudio_checkpoint(checkpoint):
        raise SA3DError(
            f"{path} is not a nerfstudio checkpoint: it has no step and pipeline weights, "
            "so give --load-dir the nerfstudio_models folder of a trained run."
        )
    return checkpoint


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """The ``step-*.ckpt`` files of a folder by step, oldest first; other files are ignored."""
    checkpoints = {}
    for path in folder.iterdir():
        match = _CHECKPOINT_NAME.fullmatch(path.name)
        if match and path.is_file():
            checkpoints[int(match[1])] = path
    return dict(sorted(checkpoints.items()))


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _damage(path: Path) -> str | None:
    """Fault of the file's zip container, or None. Raises as ``zipfile`` does."""
    if path.stat().st_size == 0:
        return "the file is empty"
    with zipfile.ZipFile(path) as archive:
        if not any(record.CRC for record in archive.infolist()):
            return None  # written with torch.serialization.set_crc32_options(False): nothing to compare with
        record = archive.testzip()
    return None if record is None else f"checksum of {record!r}"


def _is_nerfstudio_checkpoint(checkpoint: object) -> bool:
    if not isinstance(checkpoint, dict):
        return False
    step, pipeline = checkpoint.get("step"), checkpoint.get("pipeline")
    return isinstance(step, int) and isinstance(pipeline, Mapping) and all(isinstance(name, str) for name in pipeline)


def _remedy(path: Path) -> str:
    """Remedy for an unusable checkpoint, as the end of a sentence."""
    steps = (
        [step for step, checkpoint in checkpoints_in(path.parent).items() if checkpoint != path]
        if path.parent.is_dir()
        else []
    )
    if steps:
        return f": pick another one with --load-step {' or '.join(str(step) for step in steps[-3:])}"
    return ": train the base model again or copy its nerfstudio_models folder anew"


def check_finite(model: Model, most_splats: float = 0.01) -> None:
    """Refuse NaN and infinite weights.

    Args:
        model: The base model.
        most_splats: Largest share of splats that may be NaN or infinite: training leaves some, which nerfstudio's
            exporter drops.

    Raises:
        SA3DError: Weights are NaN or infinite, so that renders are useless.
    """
    splats = dict(model.gauss_params) if isinstance(model, SplatfactoModel) else {}
    if splats:
        bad = torch.stack([~torch.isfinite(value.flatten(1)).all(-1) for value in splats.values()]).any(0)
        share = float(bad.float().mean()) if len(bad) else 0.0
        if share > most_splats:
            raise SA3DError(
                f"{100 * share:.0f} % of the base model's splats are NaN or infinite, for its training has gone wrong: "
                "pick an earlier checkpoint with --load-step, or train it again."
            )
        return
    for name, value in model.named_parameters():
        if not name.startswith(("masks.", "lpips.")) and not bool(torch.isfinite(value).all()):
            raise SA3DError(
                f"the base model's weights ({name}) are NaN or infinite, for its training has gone wrong: "
                "pick an earlier checkpoint with --load-step, or train it again."
            )
