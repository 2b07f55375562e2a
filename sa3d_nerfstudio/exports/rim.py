"""Splats at an object's rim that reach far out of it, and show as spikes once the object is alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from numpy import ndarray
from scipy.spatial import KDTree
from torch import Tensor

from sa3d_nerfstudio.datamanager import Filtered
from sa3d_nerfstudio.errors import one_line
from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.exports.splats import splat_model
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.splat_files.gaussians import Gaussians

REACHES = (12.0, 8.0, 6.0, 4.0, 3.0, 2.0, 1.5)
"""Limits, all of them tried, of a splat's reach beyond the others, in median half lengths of the object's splats."""
DEVIATIONS = 2.0
"""Distance from a splat's centre to its end, in standard deviations."""
VIEWS = 8
"""Number of training views in which the remaining object is measured."""
SIZE = 400
"""Longer side of their images, in pixels, at most."""
GAIN = 1e-4
"""IoU that a cut must gain."""
FEWEST_PIXELS = 30
"""Least number of mask pixels in a view that is measured."""


@dataclass
class CleanRim:
    """Splats that remain of an object, and the measured effect of the cut."""

    keep: Bool[ndarray, " num"]
    """Mask of the run's splats that remain of the object."""
    removed: int
    before: float | None
    """IoU of the object alone with its mask, soft at the edges, mean over the views; None where nothing could be
    rendered."""
    after: float | None
    reason: str = ""
    """Reason why nothing was measured."""


def clean_rim(
    pipeline: SA3DPipeline, item: ExportObject, gaussians: Gaussians, keep: Bool[ndarray, " num"]
) -> CleanRim:
    """Cut the splats of an object that reach out of its mask, if the object alone then fits the mask better.

    A splat's reach is the distance from its farther end to the nearest other splat of the object. Cuts at several
    reaches are tried; for each, the object is rendered alone, and its IoU with its mask is measured. Occluders of the
    object count neither way.

    Args:
        pipeline: A loaded run of Gaussians.
        item: The object.
        gaussians: All splats of the run.
        keep: Mask of the object's splats among them.
    """
    rows = np.flatnonzero(keep)
    reach = reaches(gaussians[rows])
    cut_sizes = sorted({int((reach > limit).sum()) for limit in REACHES} - {0, len(rows)})
    if not cut_sizes:
        return CleanRim(keep, 0, None, None, "no splat reaches out of it")
    reason = _cannot_render(pipeline, keep)
    views = [] if reason else _views(pipeline, item, keep)
    if not views:
        return CleanRim(keep, 0, None, None, reason or "no training view shows it")
    order = np.argsort(-reach, kind="stable")
    before = best = _fit(pipeline, views, keep)
    result = keep
    for count in cut_sizes:
        remaining = keep.copy()
        remaining[rows[order[:count]]] = False
        fit = _fit(pipeline, views, remaining)
        if fit > best + GAIN:
            best, result = fit, remaining
    return CleanRim(result, int(keep.sum() - result.sum()), before, best)


def reaches(gaussians: Gaussians) -> Float[ndarray, " num"]:
    """Reach of each splat beyond the others, in median half lengths of the splats.

    Args:
        gaussians: The splats of one object.
    """
    if len(gaussians) < 3:
        return np.zeros(len(gaussians))
    sizes = np.exp(np.minimum(gaussians.scales, 80)).astype(np.float64)
    longest, rows = sizes.argmax(axis=1), np.arange(len(gaussians))
    length = DEVIATIONS * sizes[rows, longest]
    offsets = length[:, None] * gaussians.axes[rows, :, longest]
    tree: Any = KDTree(gaussians.means)
    reach = np.zeros(len(gaussians))
    for ends in (gaussians.means + offsets, gaussians.means - offsets):
        distance, index = tree.query(ends, k=2)
        reach = np.maximum(reach, np.where(index[:, 0] == rows, distance[:, 1], distance[:, 0]))
    return reach / max(float(np.median(length)), 1e-12)


@dataclass
class _View:
    camera: Any
    mask: Float[Tensor, "height width"]
    counts: Bool[Tensor, "height width"]


def _cannot_render(pipeline: SA3DPipeline, keep: ndarray) -> str:
    """Reason why splats cannot be rendered on this machine; empty if they can be."""
    model = splat_model(pipeline)
    if model.device.type != "cpu":
        return ""
    try:
        model.render_splats(_small_camera(pipeline, 0), torch.from_numpy(keep))
    except (AttributeError, AssertionError, NotImplementedError, RuntimeError) as error:
        # gsplat has kernels for CUDA alone, and raises various errors elsewhere; exports should not fail because of it.
        return f"splats cannot be rendered here ({one_line(error, 80)})"
    return ""


def _small_camera(pipeline: SA3DPipeline, index: int) -> Cameras:
    """A training camera, at a size of at most ``SIZE`` pixels."""
    cameras = cast(Filtered, pipeline.datamanager).training_cameras()
    camera = copy.deepcopy(cameras[index : index + 1]).to(pipeline.device)
    camera.rescale_output_resolution(min(1.0, SIZE / max(int(camera.height.max()), int(camera.width.max()))))
    return camera


def _views(pipeline: SA3DPipeline, item: ExportObject, keep: ndarray) -> list[_View]:
    model, threshold = splat_model(pipeline), pipeline.config.threshold
    cameras = cast(Filtered, pipeline.datamanager).training_cameras()
    views = []
    for index in np.unique(np.linspace(0, len(cameras) - 1, VIEWS).round().astype(int)):
        camera = _small_camera(pipeline, int(index))
        mask = (model.observe(camera, [item.field], threshold).probability > threshold).float()
        if mask.sum() < FEWEST_PIXELS:
            continue
        scene = model.render_splats(camera, torch.ones(len(keep), dtype=torch.bool))
        alone = model.render_splats(camera, torch.from_numpy(keep))
        in_front = (scene["depth"] < 0.97 * alone["depth"])[..., 0] & (alone["accumulation"][..., 0] > 0.05)
        views.append(_View(camera, mask, ~in_front | (mask > 0)))
    return views


def _fit(pipeline: SA3DPipeline, views: list[_View], keep: ndarray) -> float:
    model, fits = splat_model(pipeline), []
    for view in views:
        alpha = model.render_splats(view.camera, torch.from_numpy(keep))["accumulation"][..., 0][view.counts]
        mask = view.mask[view.counts]
        fits.append(float(torch.minimum(alpha, mask).sum() / torch.maximum(alpha, mask).sum().clamp(min=1e-9)))
    return float(np.mean(fits))
