"""Time and memory of ``sa3d import`` on a large generated scene: a room with a table, flat Gaussians on all surfaces.

python -m benchmarks.import_splats --count 6000000
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.ply import write_ply


@dataclass
class ImportSplats:
    """Write a PLY of many Gaussians, import it, and print the time and memory of the import."""

    count: int = 6_000_000
    """Number of Gaussians."""
    degree: int = 3
    """Degree of their spherical harmonics."""
    folder: Path | None = None
    """Folder for the files, which are removed again; by default that of temporary files."""

    def main(self) -> None:
        """Write the PLY, import it, and print the figures."""
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="import-"))
        try:
            write_ply(folder / "scene.ply", room(self.count, self.degree))
            size = (folder / "scene.ply").stat().st_size
            command = [sys.executable, "-m", "sa3d_nerfstudio.commands", "import", folder / "scene.ply"]
            start = time.monotonic()
            subprocess.run([*map(str, command), "--output-dir", str(folder / "outputs")], check=True)
            seconds = time.monotonic() - start
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            print(
                f"{self.count} splats, {size / 1e9:.2f} GB: {seconds:.1f} s, of which {usage.ru_utime:.1f} s computing "
                f"and {usage.ru_stime:.1f} s in the system, and {usage.ru_maxrss / 1e6:.2f} GB at most"
            )
        finally:
            shutil.rmtree(folder)


def room(count: int, degree: int) -> Gaussians:
    """Gaussians spread at random over the faces of a room of 6 x 5 x 3 and of a block in it."""
    rng = np.random.default_rng(0)
    boxes = np.array([[[0, 0, 0], [6, 5, 3]], [[2, 1.5, 0], [4, 3, 0.8]]], np.float32)
    sides = boxes[:, 1] - boxes[:, 0]
    areas = np.stack([sides[:, 1] * sides[:, 2], sides[:, 0] * sides[:, 2], sides[:, 0] * sides[:, 1]], axis=1)
    faces = rng.choice(6, size=count, p=(areas / areas.sum()).ravel())
    box, axis = boxes[faces // 3], faces % 3
    means = (box[:, 0] + rng.random((count, 3), dtype=np.float32) * (box[:, 1] - box[:, 0])).astype(np.float32)
    rows, side = np.arange(count), rng.integers(0, 2, count)
    means[rows, axis] = box[rows, side, axis]
    scales = np.full((count, 3), np.log(0.006), np.float32)
    scales[rows, axis] = np.log(0.001)
    quats = np.zeros((count, 4), np.float32)
    quats[:, 0] = 1
    features_rest = rng.standard_normal((count, (degree + 1) ** 2 - 1, 3), dtype=np.float32)
    features_rest *= 0.05
    opacities = rng.uniform(-2, 5, count).astype(np.float32)
    return Gaussians(means, scales, quats, opacities, rng.random((count, 3), dtype=np.float32), features_rest)


if __name__ == "__main__":
    tyro.cli(ImportSplats).main()
