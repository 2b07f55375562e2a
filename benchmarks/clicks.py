"""Seconds of one CPU core per click: embedding the image once, and predicting for each prompt.

    python -m benchmarks.clicks ../shared/scenes/desk

The networks have random weights, which change their answers but not their time. Their sizes are those of the
published sam-vit-b, MobileSAM, sam2.1-hiera-tiny and grounding-dino-tiny.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, cast

import cv2
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam

from benchmarks.segmenters import load_image
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterOptions
from sa3d_nerfstudio.segmenters.huggingface import Sam2Segmenter
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.segmenters.sam import SamSegmenter

CLICKS = 5
"""Number of predictions whose median time is printed."""


def random_sam() -> SamSegmenter:
    """SAM of size vit-b, with random weights."""
    return SamSegmenter(sam_model_registry["vit_b"]())


def random_mobile_sam() -> SamSegmenter:
    """MobileSAM, which has one size, with random weights."""
    from mobile_sam import sam_model_registry as registry

    return SamSegmenter(cast(Sam, registry["vit_t"]()))


def random_sam2() -> Sam2Segmenter:
    """SAM 2 of size hiera-tiny, the default of the transformers package, with random weights."""
    import transformers
    from transformers import Sam2Config, Sam2Model, Sam2Processor

    # Before transformers 5, the class had another name.
    name = "Sam2ImageProcessor" if hasattr(transformers, "Sam2ImageProcessor") else "Sam2ImageProcessorFast"
    processor = getattr(transformers, name)
    return Sam2Segmenter(Sam2Model(Sam2Config()).eval().requires_grad_(False), Sam2Processor(processor()))


def seconds(action: Callable[[], Any]) -> float:
    """Processor seconds of an action; other load on the machine adds little to them."""
    start = time.process_time()
    action()
    return time.process_time() - start


def detection_seconds(height: int, width: int) -> float:
    """Processor seconds in which Grounding DINO tiny looks for four words in an image, scaled as in its training."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    model = GroundingDinoForObjectDetection(GroundingDinoConfig()).eval()
    scale = 800 / min(height, width)
    pixels = torch.rand(1, 3, round(height * scale), round(width * scale))
    words = torch.tensor([[101, 1037, 2417, 14757, 1012, 102]])
    with torch.no_grad():
        return seconds(lambda: model(pixel_values=pixels, input_ids=words, attention_mask=torch.ones_like(words)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="folder of a scene with prompts.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)

    entry = json.loads((args.scene / "prompts.json").read_text())["objects"][0]
    image = load_image(args.scene, Path(entry["frame"]).stem, None)
    assert image is not None
    prompt = Prompt.from_points(image.height, image.width, entry["points"], entry["negative_points"])
    options = SegmenterOptions(oracle_instances=args.scene / "instances")
    constructors: dict[str, Callable[[], Segmenter]] = {
        "grabcut": lambda: make_segmenter("grabcut", options),
        "oracle": lambda: make_segmenter("oracle", options),
        "sam-vit-b, random weights": random_sam,
        "mobile-sam, random weights": random_mobile_sam,
        "sam2 (hiera-tiny), random weights": random_sam2,
    }
    print(f"| segmenter | embed {image.width} x {image.height}, s | predict, s |\n|---|---|---|")
    for name, make in constructors.items():
        segmenter = make()
        embedding = segmenter.embed(image)
        embed = seconds(lambda: segmenter.embed(image))  # noqa: B023
        times = [seconds(lambda: segmenter.predict(embedding, prompt)) for _ in range(CLICKS)]  # noqa: B023
        print(f"| {name} | {embed:.3f} | {median(times):.3f} |", flush=True)
    detection = detection_seconds(image.height, image.width)
    print(f"\nWords: {detection:.1f} s for a grounding-dino-tiny with random weights.")


if __name__ == "__main__":
    main()
