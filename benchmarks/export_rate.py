"""Points per second of ``ns-export pointcloud``: of a small object, and of the whole scene around it.

    python -m benchmarks.export_rate --run ../shared/runs/desk/nerfacto/cpu --scene ../shared/scenes/desk

The object is segmented by one click with the oracle. nerfstudio's ``generate_point_cloud`` then makes points of the
base run and of the segmented run, in turns, in one process and with the same number of rays per batch. Without the ray
filter, the object's points are made from rays through all pixels of every image.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from nerfstudio.exporter.exporter_utils import generate_point_cloud

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.pipeline import SA3DPipeline


def points_per_second(pipeline: SA3DPipeline, num_points: int, rays_per_batch: int) -> float:
    """Points per second of nerfstudio's exporter, the search for pixels that show the object included."""
    manager: Any = pipeline.datamanager
    manager.reset_ray_filter()
    manager.train_pixel_sampler.num_rays_per_batch = rays_per_batch
    start = time.perf_counter()
    cloud = generate_point_cloud(pipeline, num_points, remove_outliers=False)
    return len(cloud.points) / (time.perf_counter() - start)


def main() -> None:
    """Print a row of the README's table for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a trained run")
    parser.add_argument("--scene", type=Path, required=True, help="its data set, with instances/ and prompts.json")
    parser.add_argument("--object", default="domino", help="name of the object in prompts.json")
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--rays", type=int, default=4096, help="in a batch (ns-export's --num-rays-per-batch)")
    parser.add_argument("--repeat", type=int, default=3, help="of which the best counts")
    parser.add_argument("--working-size", type=int, default=80)
    parser.add_argument("--without-filter", action="store_true", help="measure the object without the filter as well")
    arguments = parser.parse_args()

    options: dict[str, Any] = {"data": arguments.scene, "device": "cuda" if torch.cuda.is_available() else "cpu"}
    base = sa3d.load(arguments.run, **options)
    segmented = sa3d.load(
        arguments.run, segmenter="oracle", oracle_instances=arguments.scene / "instances",
        working_size=arguments.working_size, **options,
    )  # fmt: skip
    prompts = json.loads((arguments.scene / "prompts.json").read_text())["objects"]
    prompt = next(entry for entry in prompts if entry["name"] == arguments.object)
    segmented.prompt(Path(prompt["frame"]).name, points=prompt["points"][:1])
    segmented.segment()

    manager: Any = base.pipeline.datamanager
    manager.ray_filter = None
    cases = {"whole scene": base.pipeline, arguments.object: segmented.pipeline}
    rates: dict[str, float] = {}
    for _ in range(arguments.repeat):
        for name, pipeline in cases.items():
            rate = points_per_second(pipeline, arguments.points, arguments.rays)
            rates[name] = max(rate, rates.get(name, 0.0))
    if arguments.without_filter:
        manager = segmented.pipeline.datamanager
        manager.ray_filter = None
        name = f"{arguments.object}, rays through all of every image"
        rates[name] = points_per_second(segmented.pipeline, arguments.points // 20, arguments.rays)
    for name, rate in rates.items():
        print(f"| {name} | {rate:.0f} | {rate / rates['whole scene']:.2f} |")


if __name__ == "__main__":
    main()
