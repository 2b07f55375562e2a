"""A very small Grounding DINO with random weights, in a folder as the transformers package saves it."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("a", "red", "green", "mug", "plate", "teddy", "bear")


def save_tiny_dino(folder: Path, seed: int = 0, wider: float = 0.0) -> Path:
    """Save model, image processor and tokenizer to a folder: half a megabyte of weights, 12 queries.

    Args:
        folder: Folder to save to.
        seed: Seed of the weights.
        wider: Added to the bias of each layer's head for width and height, because random weights leave the boxes as
            small as the grid that they start from.
    """
    from transformers import (
        BertConfig,
        BertTokenizer,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
    )

    # The model has the ids of BERT's special tokens and the full stop built in.
    tokens = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    tokens |= {1030 + number: word for number, word in enumerate(WORDS)}
    vocabulary = [tokens.get(number, f"[unused{number}]") for number in range(1030 + len(WORDS))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder, model_max_length=256)
    config = GroundingDinoConfig(
        backbone_config={
            "model_type": "swin", "image_size": 64, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1],
            "window_size": 4, "out_indices": [2, 3, 4],
        },
        text_config=BertConfig(
            vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16,
        ),
        num_queries=12, encoder_layers=1, decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=2, decoder_attention_heads=2, d_model=32, init_std=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GroundingDinoForObjectDetection(config)
        for name, bias in model.named_parameters():
            if ".bbox_embed." in f".{name}" and name.endswith(".layers.2.bias"):
                bias.data[2:] += wider
    model.save_pretrained(folder)
    image_processor = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(image_processor, tokenizer).save_pretrained(folder)
    return folder
