"""Real, random and very small SAM 2 and SAM-HQ models, in folders as the transformers package saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

SIDE = 256
"""Of the square that both encoders see."""
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "mask_input_channels": 8}
Model = TypeVar("Model", bound=Any)
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def save_tiny_sam2(folder: Path, seed: int = 0) -> Path:
    """SAM 2 with four stages, five blocks."""
    import transformers
    from transformers import Sam2Config, Sam2Model, Sam2Processor

    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": 8, "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1], "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 1, 1], "window_size_per_stage": [8, 4, 4, 4],
        "global_attention_blocks": [3],
    }  # fmt: skip
    sizes = [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2]
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8], "backbone_feature_sizes": sizes,
        "fpn_hidden_size": 32,
    }  # fmt: skip
    config = Sam2Config(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=DECODER)
    _random(lambda: Sam2Model(config), seed).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    # Before transformers 5, it had another name.
    name = "Sam2ImageProcessor" if hasattr(transformers, "Sam2ImageProcessor") else "Sam2ImageProcessorFast"
    images = getattr(transformers, name)
    Sam2Processor(images(size=size, mask_size=size)).save_pretrained(folder)
    return folder


def save_tiny_sam_hq(folder: Path, seed: int = 0) -> Path:
    """SAM-HQ with two blocks, one windowed and one global."""
    from transformers import SamHQConfig, SamHQModel, SamHQProcessor, SamImageProcessor

    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": SIDE, "output_channels": 32,
        "global_attn_indexes": [1], "window_size": 7, "num_pos_feats": 16, "initializer_range": 0.02,
    }  # fmt: skip
    decoder = {**DECODER, "vit_dim": 32}
    config = SamHQConfig(vision_config=vision, prompt_encoder_config=PROMPTS, mask_decoder_config=decoder)
    config.initializer_range = 0.5
    _random(lambda: SamHQModel(config), seed).save_pretrained(folder)
    size, padded = {"longest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    SamHQProcessor(SamImageProcessor(size=size, pad_size=padded)).save_pretrained(folder)
    return folder


def _random(build: Callable[[], Model], seed: int) -> Model:
    """A model whose weights are large enough for prompts to make a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
    return model
