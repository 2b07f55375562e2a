"""2D accuracy of a segmenter on the base model's render, and on the captured photo of the same view.

    python -m benchmarks.image_source ../shared/scenes/desk ../shared/runs/desk/nerfacto/cpu

Each object is prompted in the view that prompts.json names, by each kind of prompt; both images have the same size, and
the rendered depth. The table holds the IoU with the true mask.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import cast

import numpy as np

import sa3d_nerfstudio as sa3d
from benchmarks.segmenters import ious
from sa3d_nerfstudio.datamanager import Filtered
from sa3d_nerfstudio.prompts.images import draw_polyline, points_of_stroke
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.segmenters.oracle import read_ids, resize_nearest
from sa3d_nerfstudio.views.photos import Photos

SOURCES = ("render", "photo")


def prompts_of(entry: dict, height: int, width: int) -> dict[str, Prompt]:
    """Prompts of an object from its entry in prompts.json, by kind."""
    on = points_of_stroke(draw_polyline(entry["scribble"], height, width), positive=True)
    off = points_of_stroke(draw_polyline(entry["background_scribble"], height, width), positive=False)
    return {
        "point": Prompt.from_points(height, width, entry["points"][:1]),
        "points": Prompt.from_points(height, width, entry["points"], entry["negative_points"]),
        "box": Prompt.from_points(height, width, box=entry["box"]),
        "scribble": Prompt.from_points(height, width, on, off),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--segmenter", default="grabcut")
    parser.add_argument("--sam-checkpoint", type=Path)
    parser.add_argument("--working-size", type=int, default=160)
    args = parser.parse_args()

    options = {name: getattr(args, name) for name in ("segmenter", "sam_checkpoint", "working_size")}
    pipeline = sa3d.load(args.run, **options).pipeline
    views, photo = pipeline.views, cast(Filtered, pipeline.datamanager).training_photo
    segmenter = pipeline.make_segmenter()
    rows: dict[tuple[str, str], list[float]] = {}
    entries = json.loads((args.scene / "prompts.json").read_text())["objects"]
    for entry in entries:
        stem = Path(entry["frame"]).stem
        view = views.find(Path(entry["frame"]).name)
        for source in SOURCES:
            views.photos = Photos(photo) if source == "photo" else None
            session = pipeline.session(entry["name"], segmenter)
            trace = views.trace(view)
            ids = read_ids(args.scene / "instances" / f"{stem}.png")
            truth = resize_nearest(ids, trace.height, trace.width) == entry["id"]
            for kind, prompt in prompts_of(entry, *views.image_size(view)).items():
                try:
                    answer: Candidates = session.prompt(view, prompt)
                    score = float(ious(answer, truth)[int(answer.scores.argmax())])
                except sa3d.SA3DError:
                    score = 0.0  # the segmenter returned no mask
                rows.setdefault((kind, source), []).append(score)
    columns = list(rows)
    print("| object | " + " | ".join(f"{kind}, {source}" for kind, source in columns) + " |")
    print("|---|" + "---|" * len(columns))
    for index, entry in enumerate(entries):
        print(f"| {entry['name']} | " + " | ".join(f"{rows[column][index]:.2f}" for column in columns) + " |")
    print("| **mean** | " + " | ".join(f"**{np.mean(rows[column]):.3f}**" for column in columns) + " |")


if __name__ == "__main__":
    main()
