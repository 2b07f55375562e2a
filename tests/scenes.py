"""Scenes for tests: the demo's own, as small as a test can bear."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from sa3d_nerfstudio.demo.scene import SceneConfig

TINY = SceneConfig(train_views=10, test_views=2, width=32, height=24, supersample=2, surface_points=500)
"""Ten views to train on and two to test on, of 32 x 24 pixels."""

RGB = ("red", "green", "blue")


def with_points(scene: Path, folder: Path) -> Path:
    """The same scene with a cloud of points on its surfaces, as COLMAP would give: splatfacto starts from them.

    Args:
        scene: Folder of a scene.
        folder: Where to put the new one.
    """
    shutil.copytree(scene, folder)
    objects = [np.load(path)[:150] for path in sorted((scene / "points").glob("*.npy")) if "_seen" not in path.stem]
    rng = np.random.default_rng(0)
    floor = np.concatenate([rng.uniform(-0.7, 0.7, (600, 2)), np.zeros((600, 1))], axis=-1)
    points = np.concatenate([*objects, floor])
    header = ["ply", "format ascii 1.0", f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {name}" for name in RGB] + ["end_header"]
    rows = [f"{x:.5f} {y:.5f} {z:.5f} 150 150 150" for x, y, z in points]
    (folder / "points.ply").write_text("\n".join([*header, *rows]) + "\n")
    transforms = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps({**transforms, "ply_file_path": "points.ply"}))
    return folder
