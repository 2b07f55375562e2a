"""Accuracy of a mask grid by the size of its cells, relative to the spacing of the rays that fill it.

    python -m benchmarks.cell_size

True masks of exact balls in 12 views are lifted into grids of several resolutions, and rendered in 7 unseen views of
twice the size. Printed for each ball: its mean IoU, and the size of a cell over the distance of neighbouring rays.
"""

from __future__ import annotations

import torch

from sa3d_nerfstudio.fields.mask_grid import MARGIN, RIM_WIDTH, MaskGrid
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from tests.analytic import BALLS, BallViews

DISTANCE = 3.0
RESOLUTIONS = (12, 16, 24, 32, 48, 64, 96, 128)


def iou(ball: int, height: int, width: int, resolution: int) -> tuple[float, float]:
    """Mean IoU of a ball in unseen views, and the cell size in units of the spacing of rays."""
    views, unseen = BallViews(12, height, width, DISTANCE), BallViews(7, 2 * height, 2 * width, 2.5)
    x, y, z, radius = BALLS[ball - 1].tolist()
    grid = MaskGrid(resolution)
    grid.place(torch.tensor([x, y, z]), torch.full((3,), radius * (1 + MARGIN)))
    lifting = EvidenceLifting(grid)
    for view in range(len(views)):
        lifting.add(views.trace(view), (views.ids(view) == ball).reshape(-1))
    scores = []
    for view in range(len(unseen)):
        mask, truth = lifting.render(unseen.trace(view))[0] > 0.5, unseen.ids(view).reshape(-1) == ball
        scores.append(float((mask & truth).sum() / (mask | truth).sum()))
    cell = 2 * radius * (1 + MARGIN) * (1 + RIM_WIDTH) / (resolution - 1)
    return sum(scores) / len(scores), cell / (DISTANCE / width)


def main() -> None:
    """Print a row for each image size and grid resolution."""
    for height, width in ((24, 32), (48, 64), (96, 128)):
        for resolution in RESOLUTIONS:
            rows = [iou(ball, height, width, resolution) for ball in range(1, len(BALLS) + 1)]
            text = "  ".join(f"{score:.3f} ({cell:.2f})" for score, cell in rows)
            print(f"{width} x {height}, {resolution:3d} cells: {text}")


if __name__ == "__main__":
    main()
