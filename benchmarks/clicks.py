"""Seconds of one CPU core that a click takes: embedding an image once, and predicting for each prompt in it.

    python -m benchmarks.clicks ../shared/scenes/desk

The networks have random weights: that changes what they answer, and not how long it takes. Their sizes are those of
the published sam-vit-b, MobileSAM, sam2.1-hiera-tiny and grounding-dino-tiny.
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
"""Of how many predictions the median is told."""


def random_sam() -> SamSegmenter:
    """SAM of the size vit-b."""
    return SamSegmenter(sam_model_registry["vit_b"]())


def random_mobile_sam() -> SamSegmenter:
    """MobileSAM, of which there is one size."""
    from mobile_sam import sam_model_registry as registry

    return SamSegmenter(cast(Sam, registry["vit_t"]()))


def random_sam2() -> Sam2Segmenter:
    """SAM 2 of the size hiera-tiny, which is what the transformers package builds by default."""
    import transformers
    from transformers import Sam2Config, Sam2Model, Sam2Processor

    # Before transformers 5, it had another name.
    name = "Sam2ImageProcessor" if hasattr(transformers, "Sam2ImageProcessor") else "Sam2ImageProcessorFast"
    images = getattr(transformers, name)
    return Sam2Segmenter(Sam2Model(Sam2Config()).eval().requires_grad_(False), Sam2Processor(images()))


def seconds(action: Callable[[], Any]) -> float:
    """How long one core computes; what else runs on the machine counts little."""
    start = time.process_time()
    action()
    return time.process_time() - start


def detection_seconds(height: int, width: int) -> float:
    """How long a Grounding DINO of the size tiny looks for four words in an image scaled as it was trained."""
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
    made: dict[str, Callable[[], Segmenter]] = {
        "grabcut": lambda: make_segmenter("grabcut", options),
        "oracle": lambda: make_segmenter("oracle", options),
        "sam-vit-b, random weights": random_sam,
        "mobile-sam, random weights": random_mobile_sam,
        "sam2 (hiera-tiny), random weights": random_sam2,
    }
    print(f"| segmenter | embed {image.width} x {image.height}, s | predict, s |\n|---|---|---|")
    for name, make in made.items():
        segmenter = make()
        embedding = segmenter.embed(image)
        embed = seconds(lambda: segmenter.embed(image))  # noqa: B023
        each = [seconds(lambda: segmenter.predict(embedding, prompt)) for _ in range(CLICKS)]  # noqa: B023
        print(f"| {name} | {embed:.3f} | {median(each):.3f} |", flush=True)
    found = detection_seconds(image.height, image.width)
    print(f"\nWords: {found:.1f} s for a grounding-dino-tiny with random weights.")


if __name__ == "__main__":
    main()
