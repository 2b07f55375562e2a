"""Reading splat files of any kind, their upward direction, and checks of their cameras."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.splat_files.cameras import SplatCamera
from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.occupancy import dense_part
from sa3d_nerfstudio.splat_files.ply import Opacity, is_compressed, is_z_up, read_ply
from sa3d_nerfstudio.splat_files.splat_transform import READS, convert
from sa3d_nerfstudio.splat_files.virtual_cameras import in_image

AXES = {"x": 0, "y": 1, "z": 2}
FLAT = 0.5
"""A Gaussian is flat if its thinnest axis is shorter than this share of the next one."""
FEWEST_SEEN = 0.05
"""Least share of the dense part that cameras in the same frame see."""


def read_splats(path: Path, opacity: Opacity | None = None, skip_invalid: bool = False) -> tuple[Gaussians, int]:
    """Read a splat file of any kind; all but plain PLY through ``splat-transform``.

    Args:
        path: The file.
        opacity: See :func:`~sa3d_nerfstudio.splat_files.ply.read_ply`.
        skip_invalid: See there, too.

    Returns:
        The Gaussians, and how many were left out.

    Raises:
        SA3DError: The file does not exist, is of no known kind, or is damaged; or ``splat-transform`` is not installed.
    """
    if not path.is_file():
        raise SA3DError(f"there is no splat file {path}: check the path.")
    if path.suffix.lower() == ".ply" and not is_compressed(path):
        return read_ply(path, opacity, skip_invalid)
    if path.suffix.lower() not in (".ply", *READS) and path.name != "meta.json":
        raise SA3DError(f"{path} is no splat file of a known kind: give a .ply, {', '.join(READS)}.")
    with tempfile.TemporaryDirectory(prefix="sa3d-") as folder:
        plain = Path(folder) / "splats.ply"
        convert(path, plain)
        # Quantised formats hold finite numbers, and their converted opacities are logits by default.
        return read_ply(plain, opacity or "logit", skip_invalid)


def up_of(path: Path, gaussians: Gaussians, cameras: list[SplatCamera], up: str) -> Float[ndarray, "3"]:
    """Upward direction of a scene.

    Args:
        path: Its file.
        gaussians: The Gaussians in the file.
        cameras: Cameras that came with it, if any.
        up: An axis, such as "z" or "-y"; or "auto": z by nerfstudio's comment in a PLY, else the mean over the
            cameras, else z or -y, which trainers of Gaussians use, whichever is normal to more area of flat Gaussians.
    """
    if up != "auto":
        direction = np.zeros(3)
        direction[AXES[up.removeprefix("-")]] = -1 if up.startswith("-") else 1
        return direction
    if path.suffix.lower() == ".ply" and is_z_up(path):
        return np.array([0.0, 0.0, 1.0])
    if cameras:
        mean = np.mean([camera.pose[:3, 1] for camera in cameras], axis=0)
        if np.linalg.norm(mean) > 0.1:
            return mean / np.linalg.norm(mean)
    dense = gaussians[dense_part(gaussians)]
    sizes = np.exp(np.minimum(dense.scales, 80)).astype(np.float64)
    order, rows = np.argsort(sizes, axis=1), np.arange(len(dense))
    thin, middle, longest = (sizes[rows, order[:, index]] for index in range(3))
    normals = np.abs(dense.axes[rows, :, order[:, 0]])
    areas = np.minimum(middle * longest, np.quantile(middle * longest, 0.99)) * (thin < FLAT * middle)
    flat_areas = (areas[:, None] * (normals > 0.9)).sum(axis=0)
    return np.array([0.0, 0.0, 1.0]) if flat_areas[2] > flat_areas[1] else np.array([0.0, -1.0, 0.0])


def check_cameras(path: Path, cameras: list[SplatCamera], gaussians: Gaussians) -> float:
    """Check that cameras are in the frame of the splats.

    Returns:
        Share of the dense part that is in the image of at least one camera.

    Raises:
        SA3DError: The cameras see next to nothing of the splats.
    """
    rows = dense_part(gaussians)[:: max(len(gaussians) // 5000, 1)]
    points = gaussians.means[rows].astype(np.float64)
    seen = np.zeros(len(points), bool)
    for camera in cameras:
        seen |= in_image(camera.pose, points, (camera.fx + camera.fy) / 2, camera.width, camera.height)
    if seen.mean() < FEWEST_SEEN:
        raise SA3DError(
            f"the cameras in {path} see {100 * seen.mean():.0f} % of the splats, so that they are of another frame: "
            "leave out --cameras, or put the dataparser_transforms.json of the run that the splats come from beside it."
        )
    return float(seen.mean())
