"""The architecture of a Segment Anything model, read off the shapes of its weights.

``segment_anything`` builds three fixed sizes; a state dict of any size tells its own, so one way of building serves the
published models, models that were made of them, and the small ones of the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor

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
