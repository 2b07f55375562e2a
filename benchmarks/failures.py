"""Pictures of the worst masks: missing pixels in blue, excess pixels in red."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float

MARGIN = 0.35
"""Margin shown around the object, as a share of its width and height."""
COLUMNS = 4
MISSING = (0.1, 0.35, 1.0)
EXCESS = (1.0, 0.1, 0.1)


@dataclass
class Failure:
    """An object's mask in the test view where its IoU is lowest."""

    title: str
    iou: float
    rgb: Float[np.ndarray, "height width 3"]
    predicted: Bool[np.ndarray, "height width"]
    truth: Bool[np.ndarray, "height width"]


def draw(failures: list[Failure], path: Path, count: int = 8) -> None:
    """Write a sheet of the worst masks as a PNG.

    Args:
        failures: Masks to choose from.
        path: PNG file.
        count: Number of masks to show, the worst first.
    """
    worst = sorted(failures, key=lambda failure: failure.iou)[:count]
    rows = -(-len(worst) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(2.6 * COLUMNS, 2.5 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, failure in zip(axes.flat, worst, strict=False):
        axis.imshow(_crop(failure), interpolation="nearest")
        axis.set_title(f"{failure.title}\nIoU {failure.iou:.2f}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _crop(failure: Failure) -> Float[np.ndarray, "rows columns 3"]:
    image = failure.rgb.copy()
    for wrong, color in ((failure.truth & ~failure.predicted, MISSING), (failure.predicted & ~failure.truth, EXCESS)):
        image[wrong] = 0.35 * image[wrong] + 0.65 * np.array(color)
    y, x = np.nonzero(failure.truth)
    rows, columns = np.ptp(y) + 1, np.ptp(x) + 1
    low = np.maximum([y.min() - MARGIN * rows, x.min() - MARGIN * columns], 0).astype(int)
    high = np.ceil([y.max() + 1 + MARGIN * rows, x.max() + 1 + MARGIN * columns]).astype(int)
    return image[low[0] : high[0], low[1] : high[1]].clip(0, 1)
