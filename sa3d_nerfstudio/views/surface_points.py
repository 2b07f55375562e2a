"""Surface points of an object in the views that show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.files import to_bytes, write_ply
from sa3d_nerfstudio.traces.base import render_probability
from sa3d_nerfstudio.views.training_views import TrainingViews

ENOUGH_VIEWS = 8
"""Number of rendered views that show an object from all around (as many segment it nearly as well as all)."""


def views_to_show(views: TrainingViews) -> list[int]:
    """Views rendered already, at least in part, if there are enough: a render takes seconds on a CPU. Else all."""
    rendered = [view for view in range(len(views)) if views.is_partly_rendered(view)]
    return rendered if len(rendered) >= ENOUGH_VIEWS else list(range(len(views)))


def view_points(
    views: TrainingViews, chosen: Sequence[int], grid: MaskField, threshold: float
) -> Iterator[tuple[Float[Tensor, "num 3"], Float[Tensor, "num 3"]]]:
    """World positions and colours, in [0, 1], of the pixels on an object in chosen views, view by view."""
    for view in chosen:
        trace = views.object_trace(view, grid, threshold)
        if trace is None:
            continue
        on = render_probability(trace, grid)[0] > threshold
        yield trace.surface_points()[on].cpu(), trace.rgb.reshape(-1, 3)[on].cpu()


def write_view_points(path: Path, points: Float[Tensor, "num 3"], colors: Float[Tensor, "num 3"]) -> None:
    """Write points as a binary PLY with 8 bit colours."""
    columns = dict(zip("xyz", points.numpy().astype(np.float32).T, strict=True))
    colored = dict(zip(("red", "green", "blue"), to_bytes(colors[None])[0].T, strict=True))
    write_ply(path, {**columns, **colored})
