"""Very small SAM 2, SAM 3 and SAM-HQ models with random weights, in folders as the transformers package saves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from sa3d_nerfstudio.segmenters.huggingface import SAM_3
from sa3d_nerfstudio.segmenters.pretrained import transformers_available

HAS_SAM3 = transformers_available(SAM_3.since)
"""Whether the installed transformers package has SAM 3."""
SIDE = 256
"""Pixels along each side of the square input of the encoders."""
PROMPTS = {"hidden_size": 32, "image_size": SIDE, "mask_input_channels": 8}
Model = TypeVar("Model", bound=Any)
DECODER = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}


def save_tiny_sam2(folder: Path, seed: int = 0) -> Path:
    """Save a SAM 2 with four stages and five blocks."""
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
    # Before transformers 5, the image processor had another name.
    name = "Sam2ImageProcessor" if hasattr(transformers, "Sam2ImageProcessor") else "Sam2ImageProcessorFast"
    image_processor = getattr(transformers, name)
    Sam2Processor(image_processor(size=size, mask_size=size)).save_pretrained(folder)
    return folder


def _sam3_vision() -> dict[str, Any]:
    """Vision configuration of SAM 3: two blocks, one windowed and one global, on a grid of 16 x 16 patches."""
    backbone = {
        "model_type": "sam3_vit_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": SIDE, "patch_size": 16, "window_size": 8, "global_attn_indexes": [1],
        "pretrain_image_size": 128,
    }  # fmt: skip
    sizes = [[SIDE // 4] * 2, [SIDE // 8] * 2, [SIDE // 16] * 2]
    return {"backbone_config": backbone, "fpn_hidden_size": 32, "backbone_feature_sizes": sizes}


def save_tiny_sam3(folder: Path, seed: int = 0) -> Path:
    """Save SAM 3's tracker, which takes points, boxes and masks."""
    from transformers import Sam3ImageProcessor, Sam3TrackerConfig, Sam3TrackerModel, Sam3TrackerProcessor

    prompts = {**PROMPTS, "patch_size": 16}
    config = Sam3TrackerConfig(vision_config=_sam3_vision(), prompt_encoder_config=prompts, mask_decoder_config=DECODER)
    _random(lambda: Sam3TrackerModel(config), seed).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam3TrackerProcessor(Sam3ImageProcessor(size=size, mask_size=size)).save_pretrained(folder)
    return folder


def save_tiny_sam3_concepts(folder: Path, seed: int = 0) -> Path:
    """Save SAM 3's detector, which takes text, with twelve queries and a tokenizer of letters."""
    from transformers import CLIPTokenizer, Sam3Config, Sam3ImageProcessor, Sam3Model, Sam3Processor

    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32)
    layers = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = Sam3Config(
        vision_config=_sam3_vision(),
        text_config={
            "model_type": "clip_text_model", "vocab_size": len(tokens), "hidden_size": 32, "intermediate_size": 32,
            "projection_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
        },
        geometry_encoder_config={**layers, "num_layers": 1},
        detr_encoder_config={**layers, "num_layers": 1},
        detr_decoder_config={**layers, "num_layers": 2, "num_queries": 12},
        mask_decoder_config={"hidden_size": 32, "num_attention_heads": 2},
    )  # fmt: skip
    _random(lambda: Sam3Model(config), seed).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    Sam3Processor(Sam3ImageProcessor(size=size, mask_size=size), tokenizer).save_pretrained(folder)
    return folder


def save_tiny_sam_hq(folder: Path, seed: int = 0) -> Path:
    """Save a SAM-HQ with two blocks, one windowed and one global."""
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
    """Build a model with random weights, large enough for the masks to depend on the prompts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
    return model
