"""Segment Anything models with random weights: a very small one, and MobileSAM in its only size."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def tiny_sam(seed: int = 0) -> Sam:
    """Two encoder blocks (windowed, global), images of 256 pixels, 32 channels: half a megabyte of weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam(
            ImageEncoderViT(
                img_size=256,
                embed_dim=32,
                depth=2,
                num_heads=2,
                out_chans=32,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),  # type: ignore[arg-type]
                use_rel_pos=True,
                window_size=7,
                global_attn_indexes=(1,),
            ),
            PromptEncoder(embed_dim=32, image_embedding_size=(16, 16), input_image_size=(256, 256), mask_in_chans=8),
            MaskDecoder(
                transformer_dim=32,
                transformer=TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=8),
                iou_head_hidden_dim=32,
            ),
        )
    return model.eval()


def save_tiny_sam(path: Path, seed: int = 0) -> Path:
    """Save :func:`tiny_sam` as the published checkpoints are: a plain state dict."""
    torch.save(tiny_sam(seed).state_dict(), path)
    return path


def save_mobile_sam(path: Path, seed: int = 0) -> Path:
    """Save random weights of MobileSAM in its only size: 40 MB."""
    from mobile_sam import sam_model_registry

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = sam_model_registry["vit_t"]()
        for name, weight in model.named_parameters():
            # Zero in a new model, and so without effect.
            if name.endswith("attention_biases"):
                torch.nn.init.normal_(weight)
    torch.save(model.state_dict(), path)
    return path
