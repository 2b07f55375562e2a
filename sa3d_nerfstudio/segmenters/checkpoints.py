"""Weights of the Segment Anything model: where they are, and loading them safely."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from segment_anything.modeling import Sam
from torch import Tensor

from sa3d_nerfstudio.errors import MissingWeightsError, SA3DError, one_line
from sa3d_nerfstudio.segmenters.download import fetch
from sa3d_nerfstudio.segmenters.sam_architecture import PUBLISHED, build_sam_from_state, encoder_size

CHECKPOINT_VARIABLE = "SA3D_SAM_CHECKPOINT"
"""Environment variable that names the checkpoint where no option does."""

NO_DOWNLOAD_VARIABLE = "SA3D_NO_DOWNLOAD"
"""Environment variable that forbids downloads, unless it is empty or 0."""


@dataclass(frozen=True)
class PublishedWeights:
    """A published checkpoint."""

    segmenter: str
    """The segmenter that takes it."""
    folder: str
    """Address of the folder that it lies in."""
    file: str
    sha256: str
    """What it is checked by; digits in the file's name are no part of it."""

    @property
    def address(self) -> str:
        """Where it is fetched from."""
        return self.folder + self.file


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
# The weights are a file of the repository; at this commit it is the one with this checksum.
_MOBILE_SAM = (
    "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/"
)

OFFICIAL = {
    size: PublishedWeights(*weights)
    for size, *weights in (
        (
            "vit-h", "sam-vit-h", _SAM, "sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        (
            "vit-l", "sam-vit-l", _SAM, "sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        (
            "vit-b", "sam-vit-b", _SAM, "sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        (
            "vit-t", "mobile-sam", _MOBILE_SAM, "mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        ),
    )
}  # fmt: skip
"""The published checkpoint of each size: the three of Segment Anything, and ``vit-t``, which is MobileSAM."""


def find_checkpoint(option: Path | None, size: str | None = None, download: bool = True) -> Path:
    """The checkpoint that the option names, or the environment, or the published one of that size.

    The published one lies where torch keeps downloaded weights (``torch.hub.get_dir()``/checkpoints), and is brought
    there if it may be: neither ``download`` nor the environment variable ``SA3D_NO_DOWNLOAD`` forbids it.

    Args:
        option: What ``--pipeline.sam-checkpoint`` says.
        size: The size that is wanted; with None there is no published checkpoint to fall back on.
        download: Whether it may be downloaded.

    Raises:
        MissingWeightsError: It is not there and may not be downloaded, or the download failed.
        SA3DError: There is no such file as is named.
    """
    source = "--pipeline.sam-checkpoint" if option is not None else CHECKPOINT_VARIABLE
    named = option if option is not None else os.environ.get(CHECKPOINT_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if path.is_dir():
            raise SA3DError(f"{path} ({source}) is a folder: name the checkpoint file in it.")
        if not path.is_file():
            raise SA3DError(f"there is no file {path} ({source}): {_where_to_get(size)}.")
        return path
    cached = None if size is None else Path(torch.hub.get_dir()) / "checkpoints" / OFFICIAL[size].file
    if cached is not None and cached.is_file():
        return cached
    if size is None or cached is None or not download or downloads_are_forbidden():
        wanted = "Segment Anything" if size is None else OFFICIAL[size].segmenter
        raise MissingWeightsError(f"{wanted} needs its weights: {_where_to_get(size)}.")
    _download(size, cached)
    return cached


def downloads_are_forbidden() -> bool:
    """Whether the environment variable ``SA3D_NO_DOWNLOAD`` forbids downloads."""
    return os.environ.get(NO_DOWNLOAD_VARIABLE, "0") not in ("", "0")


def _download(size: str, destination: Path) -> None:
    """Fetch the published checkpoint of a size under a progress bar.

    Raises:
        MissingWeightsError: It could not be had.
    """
    weights = OFFICIAL[size]
    console = Console(stderr=True)
    console.print(
        f"Fetching the weights of {weights.segmenter} to {destination}, this once.", highlight=False, soft_wrap=True
    )
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=None)
        try:
            fetch(
                weights.address,
                destination,
                weights.sha256,
                lambda here, total: progress.update(task, completed=here, total=total),
            )
        except SA3DError as error:
            raise MissingWeightsError(f"{str(error).rstrip('.')}, or {_where_to_get(size)}.") from error


def load_sam(path: Path, size: str | None = None) -> Sam:
    """Load a Segment Anything model, on the CPU and in evaluation mode.

    Args:
        path: A state dict as the published ones are.
        size: ``vit-h``, ``vit-l`` or ``vit-b`` to insist on that size; None takes what is there.

    Raises:
        SA3DError: The file is no such checkpoint, is damaged, or holds another size.
    """
    state = read_weights(path, size)
    try:
        return build_sam_from_state(state)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise misfit(path, size, error) from error


def read_weights(path: Path, size: str | None = None) -> Mapping[str, Tensor]:
    """Read a checkpoint as data only, and see whether it is what is wanted.

    Args:
        path: A state dict as the published ones are.
        size: A key of :data:`OFFICIAL` to insist on that size; None takes any that ``segment_anything`` can build.

    Raises:
        SA3DError: The file is no such checkpoint, is damaged, or holds another size.
    """
    state = _read_state(path)
    try:
        width, depth = encoder_size(state)
    except (KeyError, IndexError):
        raise SA3DError(f"{path} holds no Segment Anything weights: {_where_to_get(size)}.") from None
    found = PUBLISHED.get((width, depth))
    if size == found or (size is None and found != "vit-t"):
        return state
    wanted = "Segment Anything" if size is None else OFFICIAL[size].segmenter
    if found is not None:
        held = OFFICIAL[found].segmenter
        raise SA3DError(f"{path} holds {held}, not {wanted}: choose --pipeline.segmenter {held}.")
    raise SA3DError(
        f"{path} holds a Segment Anything model {width} wide and {depth} deep, not {wanted}: "
        "choose --pipeline.segmenter sam, which takes any size."
    )


def misfit(path: Path, size: str | None, error: Exception) -> SA3DError:
    """What to say of weights that lack something, or contradict each other."""
    return SA3DError(f"the weights in {path} do not fit together ({one_line(error)}): {_where_to_get(size)}.")


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """The state dict in a file, read as data only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise SA3DError(f"{path} may not be read: change its permissions or name another checkpoint.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # torch tells a cut file by many exceptions, and its messages fill screens.
        raise SA3DError(
            f"{path} ({path.stat().st_size} bytes) is damaged, cut short, or no checkpoint of weights: fetch it again."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SA3DError(
            f"{path} holds no Segment Anything weights but something else: "
            "name another file with --pipeline.sam-checkpoint."
        )
    return state


def _where_to_get(size: str | None) -> str:
    """What to do without weights, as the second half of a sentence."""
    weights = OFFICIAL[size or "vit-h"]
    return (
        f"fetch {weights.file} from {weights.address} and name it with --pipeline.sam-checkpoint, "
        "or choose --pipeline.segmenter grabcut, which works without weights"
    )
