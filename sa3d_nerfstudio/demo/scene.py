"""Write the demo's scene: images, exact object numbers, cameras, true objects and prompts.

The folder has the form of the benchmark's scenes, so that the same tools read both:

- ``images/frame_NNNN.png``: train frames first, then test frames.
- ``instances/frame_NNNN.png``: the object's id at each pixel's centre, 0 = background.
- ``transforms.json``: nerfstudio's format; metres, z up; camera to world, OpenGL axes.
- ``objects.json``: id, name, axis-aligned box and surface samples (``points/NAME.npy``; ``NAME_seen.npy`` counts the
  train views that see each).
- ``prompts.json``: for each object, the train frame to prompt in, with points, a box and scribbles.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from PIL import Image

from sa3d_nerfstudio.demo import layout, prompts
from sa3d_nerfstudio.demo.options import SceneConfig
from sa3d_nerfstudio.demo.solids import Solid
from sa3d_nerfstudio.demo.tracer import Camera, first_hits, render, trace
from sa3d_nerfstudio.errors import SA3DError


@dataclass(frozen=True)
class View:
    """One rendered view."""

    file: str
    camera: Camera
    ids: UInt8[ndarray, "height width"]
    distance: Float[ndarray, "height width"]


def cameras(config: SceneConfig) -> list[Camera]:
    """Cameras of the scene, training cameras first."""
    poses = layout.poses(config.train_views, config.test_views, config.seed)
    return [Camera(pose, config.width, config.height, layout.FOCAL * config.width) for pose in poses]


def write_scene(
    folder: Path, config: SceneConfig | None = None, progress: Callable[[int, int], None] | None = None
) -> list[View]:
    """Render the scene and write it. The same configuration gives the same files.

    Args:
        folder: Folder of the scene; created if it is missing.
        config: Capture of the scene; by default a :class:`SceneConfig` with its defaults.
        progress: Called after each view with the numbers of finished views and of all views.

    Returns:
        The views, including the exact distances, which no file holds.

    Raises:
        SA3DError: No training view shows some object, because the images are too small or too few.
    """
    config = config or SceneConfig()
    for name in ("images", "instances", "points"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    solids, room = layout.solids(), layout.room()
    views: list[View] = []
    all_cameras = cameras(config)
    for number, camera in enumerate(all_cameras):
        rgb, ids, distance = render(camera, solids, room, config.supersample)
        view = View(f"images/frame_{number:04d}.png", camera, ids, distance)
        Image.fromarray(rgb).save(folder / view.file)
        Image.fromarray(ids).save(folder / _instances(view))
        views.append(view)
        if progress is not None:
            progress(number + 1, len(all_cameras))
    train, test = views[: config.train_views], views[config.train_views :]
    _write_json(folder / "transforms.json", _transforms(train, test))
    _write_json(folder / "objects.json", _objects(folder, solids, train, test, config))
    _write_json(folder / "prompts.json", _prompts(folder.name, solids, train))
    return views


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n")


def _instances(view: View) -> str:
    return view.file.replace("images/", "instances/")


def _transforms(train: Sequence[View], test: Sequence[View]) -> dict[str, Any]:
    """Cameras and split, as nerfstudio reads them."""
    camera = train[0].camera
    return {
        "camera_model": "OPENCV",
        "fl_x": camera.focal,
        "fl_y": camera.focal,
        "cx": camera.width / 2,
        "cy": camera.height / 2,
        "w": camera.width,
        "h": camera.height,
        "k1": 0.0,
        "k2": 0.0,
        "p1": 0.0,
        "p2": 0.0,
        "frames": [{"file_path": view.file, "transform_matrix": view.camera.pose.tolist()} for view in (*train, *test)],
        "train_filenames": [view.file for view in train],
        "val_filenames": [view.file for view in test],
        "test_filenames": [view.file for view in test],
    }


def times_seen(points: Float[ndarray, "num 3"], solids: Sequence[Solid], views: Sequence[View]) -> Int[ndarray, " num"]:
    """Number of views in which each point is visible: inside the image and not occluded."""
    seen = np.zeros(len(points), dtype=np.int64)
    for view in views:
        position = view.camera.pose[:3, 3]
        xy, depth = view.camera.project(points)
        inside = (depth > 0) & (xy >= 0).all(1) & (xy < [view.camera.width, view.camera.height]).all(1)
        distance = np.linalg.norm(points - position, axis=-1)
        directions = (points - position) / distance[:, None]
        nearest = first_hits(np.broadcast_to(position, points.shape), directions, solids)[1]
        # Tolerance for rounding: a micrometre.
        seen += inside & (nearest > distance - 1e-6)
    return seen


def _objects(
    folder: Path, solids: Sequence[Solid], train: Sequence[View], test: Sequence[View], config: SceneConfig
) -> dict[str, Any]:
    """Content of objects.json; also writes the surface samples of the objects."""
    rng = np.random.default_rng(config.seed)
    entries = []
    for number, solid in enumerate(solids, start=1):
        points = solid.sample_surface(config.surface_points, rng)
        seen = times_seen(points, solids, train)
        np.save(folder / "points" / f"{solid.name}.npy", points.astype(np.float32))
        np.save(folder / "points" / f"{solid.name}_seen.npy", seen)
        low, high = solid.bounds
        entries.append(
            {
                "id": number,
                "name": solid.name,
                "aabb_min": low.tolist(),
                "aabb_max": high.tolist(),
                "center": list(solid.center),
                "points": f"points/{solid.name}.npy",
                "points_seen": f"points/{solid.name}_seen.npy",
                "seen_fraction": float((seen > 0).mean()),
                "tags": list(solid.tags),
                "mean_px": float(np.mean([(view.ids == number).sum() for view in (*train, *test)])),
            }
        )
    return {
        "scene": folder.name,
        "capture": "360",
        "units": "metres, z up, same frame as transform_matrix",
        "background_id": 0,
        "objects": entries,
    }


def _prompts(scene: str, solids: Sequence[Solid], train: Sequence[View]) -> dict[str, Any]:
    """Content of prompts.json: for each object, the train view that shows it best, and a user's prompts in it."""
    entries = []
    for number, solid in enumerate(solids, start=1):
        scores = [_suitability(view, solid, number) for view in train]
        best = int(np.argmax(scores))
        if scores[best] <= 0:
            raise SA3DError(f"no training view shows the object {solid.name}: use larger images or more views.")
        view, mask = train[best], train[best].ids == number
        negative, negative_on = prompts.negative_point(view.ids, number)
        entries.append(
            {
                "name": solid.name,
                "id": number,
                "frame": view.file,
                "mask": _instances(view),
                "train_index": best,
                "visible_fraction": round(_visible_fraction(view, solid, number), 4),
                "pixels": int(mask.sum()),
                "inradius_px": round(float(prompts.interior_distance(mask).max()), 2),
                "touches_border": _touches_border(mask),
                "points": prompts.interior_points(mask, 3),
                "negative_points": [negative],
                "negative_on": solids[negative_on - 1].name if negative_on else "background",
                "box": prompts.bounding_box(mask),
                "scribble": prompts.scribble(mask),
                "background_scribble": prompts.background_scribble(mask),
                "tags": list(solid.tags),
            }
        )
    lowest_scores = [
        min(_suitability(view, solid, number) for number, solid in enumerate(solids, start=1)) for view in train
    ]
    return {
        "scene": scene,
        "pixel_convention": "x = column, y = row, origin top-left, integer pixel indices",
        "image_size": [train[0].camera.width, train[0].camera.height],
        "common_frame": train[int(np.argmax(lowest_scores))].file,
        "objects": entries,
    }


def _touches_border(mask: ndarray) -> bool:
    return bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())


def _visible_fraction(view: View, solid: Solid, number: int) -> float:
    """Share of the object's pixels in a view that no other object covers."""
    unoccluded_pixels = trace(*view.camera.rays(), [solid], layout.room())[0].sum()
    return float((view.ids == number).sum() / unoccluded_pixels) if unoccluded_pixels else 0.0


def _suitability(view: View, solid: Solid, number: int) -> float:
    """Suitability of a view for prompting an object: highest where it is large, whole, and away from the border."""
    mask = view.ids == number
    radius = float(prompts.interior_distance(mask).max())
    return radius * _visible_fraction(view, solid, number) * (0.5 if _touches_border(mask) else 1.0)
