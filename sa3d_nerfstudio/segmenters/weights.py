"""Weights of Segment Anything and MobileSAM: where they are, and the networks that they fit."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

from sa3d_nerfstudio.errors import MissingWeightsError, SA3DError, one_line
from sa3d_nerfstudio.segmenters.download import fetch
from sa3d_nerfstudio.terminal import say

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
    say(f"Fetching the weights of {weights.segmenter} to {destination}, this once.", console)
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
    published = PUBLISHED.get((width, depth))
    if size == published or (size is None and published != "vit-t"):
        return state
    wanted = "Segment Anything" if size is None else OFFICIAL[size].segmenter
    if published is not None:
        held = OFFICIAL[published].segmenter
        raise SA3DError(f"{path} holds {held}, not {wanted}: choose --pipeline.segmenter {held}.")
    raise SA3DError(
        f"{path} holds a Segment Anything model {width} wide and {depth} deep, not {wanted}: "
        "choose --pipeline.segmenter sam, which takes any size."
    )


def misfit(path: Path, size: str | None, error: Exception) -> SA3DError:
    """The sentence on weights with missing or contradictory tensors."""
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


DECODER_HEADS = 8
"""Attention heads of the mask decoder: the one number that leaves no trace in the weights; published models agree."""

PUBLISHED = {(1280, 32): "vit-h", (1024, 24): "vit-l", (768, 12): "vit-b", (320, 4): "vit-t"}
"""Width and depth of the image encoder of each published size; of ``vit-t``, which is MobileSAM, width and stages."""


def encoder_size(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and depth of the image encoder; of MobileSAM's, which is no plain transformer, width and stages.

    Raises:
        KeyError: These are not the weights of a Segment Anything model.
    """
    if (mobile := state.get("image_encoder.norm_head.weight")) is not None:
        return mobile.shape[0], _count(state, "image_encoder.layers.")
    return state["image_encoder.pos_embed"].shape[-1], _count(state, "image_encoder.blocks.")


def build_sam_from_state(state: Mapping[str, Tensor]) -> Sam:
    """Build the model that these weights belong to, holding them.

    Raises:
        KeyError: A weight is missing that tells the architecture.
        RuntimeError: The weights are not exactly those of that architecture.
        ValueError, ZeroDivisionError, IndexError: Shapes contradict each other.
    """
    # On the meta device nothing is allocated and drawn at random only to be overwritten: for vit-h, gigabytes.
    with torch.device("meta"):
        parts = (_image_encoder(state), _prompt_encoder(state), _mask_decoder(state))
    model = Sam(*parts)
    model.load_state_dict(state, strict=True, assign=True)
    return model.float().eval()


def _image_encoder(state: Mapping[str, Tensor]) -> ImageEncoderViT:
    grid, patch = state["image_encoder.pos_embed"].shape[1], state["image_encoder.patch_embed.proj.weight"].shape[-1]
    width, depth = encoder_size(state)
    # Relative positions of a block range over 2 n - 1 places, where n is the side of what it attends to.
    relative = [state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape for block in range(depth)]
    attended = [(places + 1) // 2 for places, _ in relative]
    return ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // relative[0][1],
        mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        out_chans=state["image_encoder.neck.0.weight"].shape[0],
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        use_rel_pos=True,
        window_size=min(attended),
        global_attn_indexes=tuple(block for block, side in enumerate(attended) if side == grid),
    )


def _prompt_encoder(state: Mapping[str, Tensor]) -> PromptEncoder:
    grid, patch = state["image_encoder.pos_embed"].shape[1], state["image_encoder.patch_embed.proj.weight"].shape[-1]
    return PromptEncoder(
        embed_dim=state["prompt_encoder.no_mask_embed.weight"].shape[1],
        image_embedding_size=(grid, grid),
        input_image_size=(grid * patch, grid * patch),
        mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
    )


def _mask_decoder(state: Mapping[str, Tensor]) -> MaskDecoder:
    masks, width = state["mask_decoder.mask_tokens.weight"].shape
    return MaskDecoder(
        num_multimask_outputs=masks - 1,
        transformer=TwoWayTransformer(
            depth=_count(state, "mask_decoder.transformer.layers."),
            embedding_dim=width,
            mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
            num_heads=DECODER_HEADS,
        ),
        transformer_dim=width,
        iou_head_depth=_count(state, "mask_decoder.iou_prediction_head.layers."),
        iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    )


def _count(names: Iterable[str], prefix: str) -> int:
    """How many numbered members a module list has."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
