"""Draw the picture in the README: clicks in one photo, and the resulting 3D mask in others.

``python -m tools.teaser RUN DATA OUTPUT`` with the fox of ``../shared``: a nerfacto of 2,000 steps, GrabCut, 12 views.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

import sa3d_nerfstudio as sa3d

PROMPTED = "0021.jpg"
POSITIVE, NEGATIVE = [(106, 138), (101, 198), (109, 244)], [(198, 60), (184, 285), (31, 399)]
OTHERS = ("0012.jpg", "0029.jpg", "0034.jpg", "0081.jpg")
HEIGHT, GAP, OUTLINE = 720, 12, 3


def panel(photo: Image.Image) -> Image.Image:
    """A photo, resized to the height of the picture."""
    return photo.convert("RGB").resize((round(photo.width * HEIGHT / photo.height), HEIGHT), Image.Resampling.LANCZOS)


def with_clicks(photo: Image.Image) -> Image.Image:
    """A photo with the points on the object and beside it."""
    image, scale = panel(photo), HEIGHT / photo.height
    draw = ImageDraw.Draw(image)
    for points, color in ((POSITIVE, (30, 190, 80)), (NEGATIVE, (230, 50, 50))):
        for x, y in points:
            draw.circle(((x + 0.5) * scale, (y + 0.5) * scale), 12, fill=color, outline="white", width=4)
    return image


def with_mask(photo: Image.Image, probability: np.ndarray) -> Image.Image:
    """A photo in which everything but the object is grey, and the object has an outline."""
    image = panel(photo)
    on = cv2.resize(probability, image.size, interpolation=cv2.INTER_CUBIC) > 0.5
    pixels = np.array(image, np.float32)
    muted = 0.45 * pixels.mean(axis=-1, keepdims=True) + 0.15 * pixels + 70
    away = cv2.distanceTransform((~on).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    drawn = np.where(on[..., None], pixels, muted)
    drawn[~on & (away <= OUTLINE)] = (0, 150, 255)
    return Image.fromarray(drawn.clip(0, 255).round().astype(np.uint8))


def main() -> None:
    """Segment the object, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    options = {"segmenter": "grabcut", "num_views": 12, "working_size": 240, "keep_cache": False}
    run = sa3d.load(arguments.run, data=arguments.data, **options)
    run.prompt(PROMPTED, POSITIVE, NEGATIVE)
    print(run.segment().changes)
    views, model = run.pipeline.views, run.pipeline.model
    panels = [with_clicks(Image.open(arguments.data / "images" / PROMPTED))]
    for name in OTHERS:
        trace = views.trace(views.find(name))
        probability = model.render_mask(trace).reshape(trace.height, trace.width)
        panels.append(with_mask(Image.open(arguments.data / "images" / name), probability.cpu().numpy()))
    width = sum(each.width for each in panels) + GAP * (len(panels) - 1)
    picture, left = Image.new("RGB", (width, HEIGHT), "white"), 0
    for each in panels:
        picture.paste(each, (left, 0))
        left += each.width + GAP
    picture.save(arguments.output, quality=88)


if __name__ == "__main__":
    main()
