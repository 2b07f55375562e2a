"""Weights of Segment Anything and MobileSAM: find or download, check and load them."""

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
    """Name of the segmenter that uses it."""
    folder: str
    """Address of its folder."""
    file: str
    sha256: str
    """SHA-256 that it is checked by; the digits in the file's name are not part of it."""

    @property
    def address(self) -> str:
        """Address of the file."""
        return self.folder + self.file


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
# The weights are a file of the repository; at this commit, it has the checksum below.
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
    """Find the checkpoint that the option names, or the environment, or the published one of that size.

    The published one is in torch's folder of downloaded weights (``torch.hub.get_dir()``/checkpoints). If missing, it
    is downloaded, unless ``download`` or the environment variable ``SA3D_NO_DOWNLOAD`` forbids it.

    Args:
        option: Value of ``--pipeline.sam-checkpoint``.
        size: Size of the model; None for no published checkpoint to fall back on.
        download: Whether the published checkpoint may be downloaded.

    Raises:
        MissingWeightsError: The weights are missing and may not be downloaded, or the download failed.
        SA3DError: The file named does not exist, or is a folder.
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
        MissingWeightsError: The download failed.
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
        size: ``vit-h``, ``vit-l`` or ``vit-b`` to require that size; None accepts any.

    Raises:
        SA3DError: The file is no such checkpoint, is damaged, or holds another size.
    """
    state = read_weights(path, size)
    try:
        return build_sam_from_state(state)
    except (KeyError, RuntimeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise weights_error(path, size, error) from error


def read_weights(path: Path, size: str | None = None) -> Mapping[str, Tensor]:
    """Read a checkpoint as data only, and check its size.

    Args:
        path: A state dict as the published ones are.
        size: A key of :data:`OFFICIAL` to require that size; None accepts any that ``segment_anything`` can build.

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
        segmenter = OFFICIAL[published].segmenter
        raise SA3DError(f"{path} holds {segmenter}, not {wanted}: choose --pipeline.segmenter {segmenter}.")
    raise SA3DError(
        f"{path} holds a Segment Anything model {width} wide and {depth} deep, not {wanted}: "
        "choose --pipeline.segmenter sam, which takes any size."
    )


def weights_error(path: Path, size: str | None, error: Exception) -> SA3DError:
    """Error for weights with missing or contradictory tensors."""
    return SA3DError(f"the weights in {path} do not fit together ({one_line(error)}): {_where_to_get(size)}.")


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """State dict of a file, read as data only."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise SA3DError(f"{path} may not be read: change its permissions or name another checkpoint.") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        # torch raises many kinds of exceptions for a cut file, and its messages fill screens.
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
    """Remedy for missing weights, as the second half of a sentence."""
    weights = OFFICIAL[size or "vit-h"]
    return (
        f"fetch {weights.file} from {weights.address} and name it with --pipeline.sam-checkpoint, "
        "or choose --pipeline.segmenter grabcut, which works without weights"
    )


DECODER_HEADS = 8
"""Attention heads of the mask decoder: the only number not in the shapes of the weights; published models agree."""

PUBLISHED = {(1280, 32): "vit-h", (1024, 24): "vit-l", (768, 12): "vit-b", (320, 4): "vit-t"}
"""Published size by width and depth of the image encoder; for ``vit-t``, which is MobileSAM, by width and stages."""


def encoder_size(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and depth of the image encoder; width and stages for MobileSAM's, which is no plain transformer.

    Raises:
        KeyError: These are not the weights of a Segment Anything model.
    """
    if (mobile := state.get("image_encoder.norm_head.weight")) is not None:
        return mobile.shape[0], _count(state, "image_encoder.layers.")
    return state["image_encoder.pos_embed"].shape[-1], _count(state, "image_encoder.blocks.")


def build_sam_from_state(state: Mapping[str, Tensor]) -> Sam:
    """Build the model that the weights belong to, and load them.

    Raises:
        KeyError: A weight is missing that determines the architecture.
        RuntimeError: The weights are not exactly those of that architecture.
        ValueError, ZeroDivisionError, IndexError: Shapes contradict each other.
    """
    # The meta device avoids the allocation of random weights that are then replaced: for vit-h, gigabytes.
    with torch.device("meta"):
        modules = (_image_encoder(state), _prompt_encoder(state), _mask_decoder(state))
    model = Sam(*modules)
    model.load_state_dict(state, strict=True, assign=True)
    return model.float().eval()


def _image_encoder(state: Mapping[str, Tensor]) -> ImageEncoderViT:
    grid, patch = state["image_encoder.pos_embed"].shape[1], state["image_encoder.patch_embed.proj.weight"].shape[-1]
    width, depth = encoder_size(state)
    # A block has 2 n - 1 relative positions, where n is the side of the area that it attends to.
    shapes = [state[f"image_encoder.blocks.{block}.attn.rel_pos_h"].shape for block in range(depth)]
    sides = [(positions + 1) // 2 for positions, _ in shapes]
    return ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=width // shapes[0][1],
        mlp_ratio=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        out_chans=state["image_encoder.neck.0.weight"].shape[0],
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
        use_rel_pos=True,
        window_size=min(sides),
        global_attn_indexes=tuple(block for block, side in enumerate(sides) if side == grid),
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
    """Number of members of a module list."""
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})
