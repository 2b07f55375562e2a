"""Time of each part of the work, for a first and for a second object.

    python -m benchmarks.parts --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu --every 3

The seconds of a part exclude those of the parts that it calls. Functions that a checkout lacks are left out, so this
file also runs on a checkout from before views were packed and cached (copy it there).
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.prompts.prompt import Prompt

REST = "the rest"
PARTS = {
    "the model renders": ["model:MaskedModel.trace", "splat_model:MaskedSplatModel.trace_view"],
    "views are packed": [
        *("views:atoms_of", "views:camera_rays", "views:pixel_angle", "views:concatenate"),
        *("traces.packed:CompressedTrace.pack", "traces.nerf:WeightedSamples.pruned"),
    ],
    "segmenter": ["segmenters.oracle:OracleSegmenter.embed", "segmenters.oracle:OracleSegmenter.predict"],
    "masks are rendered": ["segmentation.lifting:EvidenceLifting.render"],
    "masks are lifted": ["segmentation.lifting:EvidenceLifting.add"],
    "masks are explained": [
        *("segmentation.likelihood:MaskLikelihood.__init__", "segmentation.likelihood:MaskLikelihood.fit"),
    ],
    "prompts are chosen": ["segmentation.session:self_prompt", "segmentation.session:agreement"],
    "masks are checked by depth": ["segmentation.mask_lifter:in_one_piece", "segmentation.mask_lifter:sees_past"],
    "surfaces and their spacing": ["segmentation.mask_lifter:pixel_spacing", "segmentation.mask_lifter:surface_of"],
}  # fmt: skip


@dataclass
class Options:
    """Measure the time of each part of the work."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    objects: tuple[str, str] = ("mug", "moka_pot")
    """The first and the second object."""
    every: int = 1
    """Use every n-th view, beside the prompted ones."""
    working_size: int = 160
    """Longer side of the images, in pixels."""
    output: Path | None = None
    """JSON file to write."""


class Watch:
    """Timer of the parts within its context; on CUDA, it waits for the device before each reading."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = [REST]
        self._since = 0.0

    def _turn(self) -> None:
        """Add the time since the last reading to the part that runs."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._now[-1]] += now - self._since
        self._since = now

    def watched(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts for a part."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._now.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self._now.pop()

        return timed

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Time all parts that this version has, by wrapping their functions."""
        changed = []
        for part, targets in PARTS.items():
            for target in targets:
                module, _, path = target.partition(":")
                *holders, name = path.split(".")
                try:
                    holder: Any = import_module(f"sa3d_nerfstudio.{module}")
                    for attribute in holders:
                        holder = getattr(holder, attribute)
                    function = getattr(holder, name)
                    original = holder.__dict__[name]
                except (ImportError, AttributeError):
                    continue
                bound = isinstance(original, classmethod)
                setattr(holder, name, (staticmethod if bound else lambda item: item)(self.watched(part, function)))
                changed.append((holder, name, original))
        self.seconds.clear()
        self._turn()
        self.seconds.clear()
        try:
            yield
        finally:
            self._turn()
            for holder, name, original in changed:
                setattr(holder, name, original)


def main(options: Options) -> None:
    """Measure, print a table, and write JSON."""
    run = sa3d.load(
        options.run,
        segmenter="oracle",
        oracle_instances=options.scene / "instances",
        working_size=options.working_size,
    )
    pipeline, views = run.pipeline, run.pipeline.views
    if hasattr(views, "cache"):
        views.cache.disk = None
    entries = json.loads((options.scene / "prompts.json").read_text())["objects"]
    prompts = {entry["name"]: entry for entry in entries}
    frames = {name: views.find(Path(prompts[name]["frame"]).name) for name in options.objects}
    indices = sorted({*range(0, len(views), options.every), *frames.values()})
    views.cameras = views.cameras[torch.tensor(indices)]
    views.filenames = [views.filenames[view] for view in indices]
    with torch.no_grad():
        pipeline.model.eval()
        pipeline.model.get_outputs_for_camera(views.camera(0))
    watch, costs = Watch(pipeline.device), {}
    for which, name in zip(("first", "second"), options.objects, strict=True):
        entry, session = prompts[name], pipeline.session(name)
        view = views.find(Path(entry["frame"]).name)
        with watch():
            session.prompt(view, Prompt.from_points(*views.image_size(view), entry["points"][:1]))
            session.run()
        costs[which] = dict(watch.seconds)
    total = {which: sum(seconds.values()) for which, seconds in costs.items()}
    table = Table(f"{len(indices)} views", *(f"{which}, s" for which in costs), *(f"{which}, %" for which in costs))
    for part in (*PARTS, REST):
        seconds = [costs[which].get(part, 0.0) for which in costs]
        shares = [100 * costs[which].get(part, 0.0) / total["first"] for which in costs]
        table.add_row(part, *(f"{item:.3f}" for item in seconds), *(f"{item:.2f}" for item in shares))
    table.add_row(
        "all", *(f"{item:.3f}" for item in total.values()), *(f"{100 * t / total['first']:.2f}" for t in total.values())
    )
    Console(width=100).print(table)
    if options.output is not None:
        options.output.write_text(json.dumps({"views": len(indices), **costs}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
