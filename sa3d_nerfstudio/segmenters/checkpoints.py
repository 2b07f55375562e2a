"""Weights of the Segment Anything model: where they are, and loading them safely."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmenters.sam_architecture import PUBLISHED, build_sam_from_state, encoder_size

CHECKPOINT_VARIABLE = "SA3D_SAM_CHECKPOINT"
"""Environment variable that names the checkpoint where no option does."""

OFFICIAL_FILES = {
    "vit-h": "sam_vit_h_4b8939.pth",
    "vit-l": "sam_vit_l_0b3195.pth",
    "vit-b": "sam_vit_b_01ec64.pth",
}
"""The published checkpoint of each size."""

OFFICIAL_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"


def find_checkpoint(option: Path | None, size: str | None = None) -> Path:
    """The checkpoint that the option names, or else the environment.

    Args:
        option: What ``--pipeline.sam-checkpoint`` says.
        size: The size that is wanted; names the file to fetch if there is none.

    Raises:
        SA3DError: Neither names one, or there is no such file.
    """
    source = "--pipeline.sam-checkpoint" if option is not None else CHECKPOINT_VARIABLE
    named = option if option is not None else os.environ.get(CHECKPOINT_VARIABLE)
    if not named:
        raise SA3DError(f"Segment Anything needs its weights: {_where_to_get(size)}")
    path = Path(named).expanduser()
    if path.is_dir():
        raise SA3DError(f"{path} ({source}) is a folder; name the checkpoint file in it")
    if not path.is_file():
        raise SA3DError(f"there is no file {path} ({source}); {_where_to_get(size)}")
    return path


def load_sam(path: Path, size: str | None = None) -> Sam:
    """Load a Segment Anything model, on the CPU and in evaluation mode.

    Args:
        path: A state dict as the published ones are.
        size: ``vit-h``, ``vit-l`` or ``vit-b`` to insist on that size; None takes what is there.

    Raises:
        SA3DError: The file is no such checkpoint, is damaged, or holds another size.
    """
    state = _read_state(path)
    try:
        width, depth = encoder_size(state)
    except (KeyError, IndexError):
        raise SA3DError(f"{path} holds no Segment Anything weights; {_where_to_get(size)}") from None
    found = PUBLISHED.get((width, depth))
    if size is not None and found != size:
        if found is not None:
            raise SA3DError(f"{path} holds sam-{found}, not sam-{size}; choose --pipeline.segmenter sam-{found}")
        raise SA3DError(
            f"{path} holds a Segment Anything model {width} wide and {depth} deep, not sam-{size}; "
            "choose --pipeline.segmenter sam, which takes any size"
        )
    try:
        return build_sam_from_state(state)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SA3DError(f"the weights in {path} do not fit together ({reason}); {_where_to_get(size)}") from error


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file, read as data only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise SA3DError(f"{path} may not be read; change its permissions or name another checkpoint") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # torch tells a cut file by many exceptions, and its messages fill screens.
        raise SA3DError(
            f"{path} ({path.stat().st_size} bytes) is damaged, cut short, or no checkpoint of weights; fetch it again"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SA3DError(
            f"{path} holds no Segment Anything weights, but something else; name another with --pipeline.sam-checkpoint"
        )
    return state


def _where_to_get(size: str | None) -> str:
    """What to do without weights, as the second half of a sentence."""
    file = OFFICIAL_FILES[size or "vit-h"]
    return (
        f"fetch {file} from {OFFICIAL_ADDRESS}{file} and name it with --pipeline.sam-checkpoint, "
        "or choose --pipeline.segmenter grabcut, which works without weights"
    )
