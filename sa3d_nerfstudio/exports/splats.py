"""The splats of objects, of the scene without them, or of the whole scene."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.exports.dataset import DataSetFiles
from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.models.splats import MaskedSplatModel
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.splat_files.gaussians import SH_C0, Gaussians
from sa3d_nerfstudio.splat_files.ply import Z_UP, write_ply
from sa3d_nerfstudio.splat_files.source import ImportSource
from sa3d_nerfstudio.splat_files.splat_transform import convert, find_splat_transform

Format = Literal["ply", "compressed.ply", "spz", "sog", "glb", "html"]
"""Formats of splat files, by their suffixes."""

UP_IN_FILES = np.array([0.0, -1.0, 0.0])
"""Upward direction in a 3DGS PLY, by the convention of viewers of such files."""


@dataclass
class SceneSplats:
    """All splats of a run."""

    gaussians: Gaussians
    """Gaussians in the frame of the model."""
    valid: Bool[ndarray, " num"]
    """Mask of the Gaussians whose values are finite; training leaves a few others."""
    up: Float[ndarray, "3"]
    """Upward direction."""
    comments: list[str] = field(default_factory=list)
    """Lines for the header of a PLY of the Gaussians."""

    @classmethod
    def of(cls, pipeline: SA3DPipeline) -> SceneSplats:
        """The splats of a run.

        Raises:
            SA3DError: The run is not one of Gaussians.
        """
        model = splat_model(pipeline)
        source = ImportSource.of(DataSetFiles.of(pipeline).content)
        gaussians = _gaussians(model, None if source is None else source.sh_degree)
        columns = [getattr(gaussians, name).reshape(len(gaussians), -1) for name in gaussians.__dataclass_fields__]
        valid = np.logical_and.reduce([np.isfinite(values).all(axis=1) for values in columns])
        up = np.array([0.0, 0.0, 1.0]) if source is None else np.array(source.up)
        return cls(gaussians, valid, up, [Z_UP] if up[2] > 0.999 else [])


def splat_model(pipeline: SA3DPipeline) -> MaskedSplatModel:
    """The model of a run of Gaussians.

    Raises:
        SA3DError: The run is not one of Gaussians.
    """
    if not isinstance(pipeline.model, MaskedSplatModel):
        raise SA3DError("this run has no splats, for it is none of Gaussians: use sa3d export points or mesh.")
    return pipeline.model


def object_ids(pipeline: SA3DPipeline, objects: Sequence[ExportObject]) -> Int[ndarray, " num"]:
    """For each splat the id of its object, the more probable one of several, or 0."""
    threshold = pipeline.config.threshold
    best = torch.zeros(len(splat_model(pipeline).gauss_params["means"]))
    ids = torch.zeros(len(best), dtype=torch.int32)
    for item in objects:
        mask: Any = item.field
        selected = mask.selected(threshold).cpu()
        probability = mask.probability().cpu().clamp(min=1e-6)
        better = selected & (probability > best)
        ids[better], best[better] = item.id, probability[better]
    return ids.numpy()


def centered(gaussians: Gaussians, up: Float[ndarray, "3"]) -> Gaussians:
    """The Gaussians centred on their box, and upright by the convention of viewers of splat files (y downwards).

    Args:
        gaussians: Gaussians of an object.
        up: Upward direction in their frame.
    """
    frame = _turn(up, UP_IN_FILES)
    turned = gaussians.means.astype(np.float64) @ frame.T
    middle = (turned.min(axis=0) + turned.max(axis=0)) / 2
    return gaussians.moved(frame, (frame.T @ middle).astype(np.float32))


def write_splats(
    path: Path,
    gaussians: Gaussians,
    labels: Int[ndarray, " num"] | None = None,
    comments: Sequence[str] = (),
) -> None:
    """Write splats in the format of the file's suffix.

    Args:
        path: The file; its suffix is one of ``Format``.
        gaussians: The splats to write.
        labels: ``object_id`` of each splat; only PLY holds them.
        comments: Lines for the header of a PLY.

    Raises:
        SA3DError: There are no splats, the file cannot be written, or ``splat-transform`` is not installed.
    """
    if not len(gaussians):
        raise SA3DError(f"{path} would hold no splats: choose another --object.")
    if path.suffix == ".ply" and not path.name.endswith(".compressed.ply"):
        write_ply(path, gaussians, None if labels is None else {"object_id": labels}, comments)
        return
    with tempfile.TemporaryDirectory(prefix="sa3d-") as folder:
        plain = Path(folder) / "splats.ply"
        write_ply(plain, gaussians)
        convert(plain, path)


def check_format(form: Format) -> None:
    """Check, before work begins, that a format can be written.

    Raises:
        SA3DError: The format needs a program that is not installed.
    """
    assert form in get_args(Format)
    if form != "ply":
        find_splat_transform()


def _gaussians(model: MaskedSplatModel, sh_degree: int | None) -> Gaussians:
    values = {name: value.detach().cpu().float().numpy() for name, value in model.gauss_params.items()}
    degree, dc = model.config.sh_degree, values["features_dc"]
    if degree == 0:
        # At this degree, splatfacto stores logits of colours.
        dc = ((1 / (1 + np.exp(-dc)) - 0.5) / SH_C0).astype(np.float32)
    exported_degree = degree if sh_degree is None else sh_degree
    rest = values["features_rest"][:, : (exported_degree + 1) ** 2 - 1]
    return Gaussians(values["means"], values["scales"], values["quats"], values["opacities"][:, 0], dc, rest)


def _turn(start: ndarray, end: ndarray) -> Float[ndarray, "3 3"]:
    """The smallest rotation from one unit vector to another."""
    start = np.asarray(start, np.float64) / np.linalg.norm(start)
    axis, cosine = np.cross(start, end), float(start @ end)
    if cosine < -1 + 1e-9:
        side = np.cross(start, np.eye(3)[np.argmin(np.abs(start))])
        side /= np.linalg.norm(side)
        return 2 * np.outer(side, side) - np.eye(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + cross + cross @ cross / (1 + cosine)
