"""Cost of segmenting, relative to bare renders of the same views, in one run.

    python -m benchmarks.speed --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu --output speed.json

Measured are bare renders of all views; a first object with no view cached; each object with no view cached, all objects
one after the other, and one more with all tiles cached, as shares of the bare renders; a second object; a refinement of
the first by a further prompt; the published loop (a render and an autograd step per view); lifting against autograd
through ``grid_sample`` on the same rays; memory; growth with views and with rays; and a profile. The segmenter is the
oracle, which takes no time. With CUDA, the same command measures there.
"""

from __future__ import annotations

import cProfile
import itertools
import json
import math
import platform
import pstats
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import numpy as np
import torch
import tyro
from nerfstudio.cameras.cameras import Cameras
from rich.console import Console
from rich.table import Table
from torch import Tensor

import sa3d_nerfstudio as sa3d
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.gpu_memory import size_of
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmenters.oracle import read_ids
from sa3d_nerfstudio.traces import compressed as packed
from sa3d_nerfstudio.traces.base import RayTrace, ViewTrace, render_probability
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.nerf import NerfTrace, WeightedSamples
from sa3d_nerfstudio.traces.window import Pixels
from sa3d_nerfstudio.views.cache import ViewCache
from sa3d_nerfstudio.views.training_views import TrainingViews

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

LIFTING = (
    "autograd through grid_sample",
    "the same of the packed atoms",
    "render and splat, plain trace",
    "render and splat, packed",
    "splat alone",
    "splat alone, rendered before",
)
"""Ways to lift the mask of a view."""
AGAIN = 5
"""Number of timings of an object whose views have all been rendered."""


@dataclass
class Options:
    """Measure the cost of segmenting."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    objects: tuple[str, str] = ("mug", "moka_pot")
    """The first and the second object."""
    views: int | None = None
    """Number of views beside the prompted one, different ones for each object; all by default."""
    growth: tuple[int, ...] = (10, 20, 48)
    """Numbers of views, for the growth of a second object's time."""
    sizes: tuple[int, ...] = (40, 80, 160, 320)
    """Long sides of images, for the growth of lifting with rays."""
    sample: int = 12
    """Number of views rendered bare, half before and half after the first object; scaled to the visited views."""
    memory_views: int = 12
    """Number of whole views that are rendered to measure their memory."""
    shares: bool = True
    """Measure each object with no view cached, and all objects, as shares of bare renders."""
    rest: bool = True
    """Measure all other figures."""
    loop_views: int = 4
    """Number of views for lifting by autograd and for the published loop, which is scaled to the visited views."""
    working_size: int | None = None
    """Longer side of the images, in pixels; the device's default if not given."""
    cpu_time: bool = False
    """Measure the processor time of all threads of this process instead of wall-clock time: for a CPU that is shared
    with others."""
    output: Path | None = None
    """JSON file to write."""
    plot: Path | None = None
    """PNG file for the plot of growth with views and rays."""
    size_plot: Path | None = None
    """PNG file for the plot of growth with the object's size."""


class Clock:
    """Timer, with seconds by name; on CUDA, it waits for the device before and after the work."""

    def __init__(self, device: torch.device, counter: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.counter = counter
        self.seconds: dict[str, float] = {}

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        """Do the work, store its seconds under the name, and return its result."""
        results = []
        self.seconds[name] = self.once(lambda: results.append(work()))
        return results[0]

    def often(self, work: Callable[[], Any]) -> float:
        """Median seconds of the work, the first time not counted."""
        return self.often_each([work])[0]

    def often_each(self, ways: Sequence[Callable[[], Any]], count: int = 9) -> list[float]:
        """Median seconds of several ways, in turns so that other load affects all alike; the first turn not counted."""
        seconds = [[self.once(way) for way in ways] for _ in range(count + 1)]
        return [median(times) for times in zip(*seconds[1:], strict=True)]

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of the work."""
        self._wait()
        start = self.counter()
        work()
        self._wait()
        return self.counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def autograd_step(trace: RayTrace, field: MaskField, image: Tensor) -> None:
    """Forward and backward through ``grid_sample``: the same two renders and two sums as in lifting."""
    values = field.cells().detach().clone().requires_grad_(True)
    trace.render(field, values).backward(image)


def lift_step(trace: RayTrace, field: MaskField, image: Tensor) -> None:
    """The same two renders and two sums by the trace's render and splat, with nothing cached of earlier calls."""
    packed.forget()
    trace.render(field, field.cells())
    trace.backproject(field, image)


def splat_step(trace: RayTrace, field: MaskField, image: Tensor) -> None:
    """The two sums alone, with nothing cached of earlier calls."""
    packed.forget()
    trace.backproject(field, image)


def as_samples(trace: CompressedTrace) -> NerfTrace:
    """Atoms of a packed trace as samples, for ``grid_sample``."""
    everything, rays = slice(None), trace.height * trace.width
    distances, weights = trace._decoded(trace.distances), trace._weights(everything)
    positions = trace.rays.origins_of(everything) + trace.rays.directions_of(everything) * distances[..., None]
    ray = torch.arange(rays, device=weights.device).expand_as(weights).reshape(-1)
    return NerfTrace(WeightedSamples(positions.reshape(-1, 3), weights.reshape(-1), ray, trace.accumulation))


class RayCount:
    """Count of the rays that a model traces."""

    def __init__(self, model: MaskOutputs) -> None:
        self.rays = 0
        trace = model.compressed_view

        def counted(camera: Cameras, *args: Any, pixels: Pixels | None = None, **options: Any) -> ViewTrace:
            num_rays = int(camera.height.max()) * int(camera.width.max())
            self.rays += num_rays if pixels is None else len(pixels.indices)
            return trace(camera, *args, **options, **({} if pixels is None else {"pixels": pixels}))

        model.compressed_view = counted  # type: ignore[method-assign]


class Speed:
    """Measurements on one scene with one run."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.run = sa3d.load(
            options.run,
            segmenter="oracle",
            oracle_instances=options.scene / "instances",
            # One size for all objects, so that times can be compared.
            working_size=options.working_size or (1008 if torch.cuda.is_available() else 160),
            num_views=options.views,
            keep_cache=False,
        )
        self.pipeline = self.run.pipeline
        self.views = self.pipeline.views
        entries = json.loads((options.scene / "prompts.json").read_text())["objects"]
        self.prompts = {entry["name"]: entry for entry in entries}
        counter = time.process_time if options.cpu_time else time.perf_counter
        self.clock = Clock(self.pipeline.device, counter)
        self.counted = RayCount(self.pipeline.model)

    def session(self, name: str) -> SegmentationSession:
        """Session with one click on an object."""
        session = self.pipeline.session(name)
        self.click(session, name, 1)
        return session

    def click(self, session: SegmentationSession, name: str, count: int) -> None:
        """Prompt an object's view with the first ``count`` of its points."""
        entry = self.prompts[name]
        view = self.views.find(Path(entry["frame"]).name)
        session.prompt(view, Prompt.from_points(*self.views.image_size(view), entry["points"][:count]))

    def segment(self, name: str) -> SegmentationSession:
        """Segment an object by one click in all views."""
        session = self.session(name)
        session.run()
        return session

    def refine(self, session: SegmentationSession, name: str) -> None:
        """Prompt the object with further points, and segment all views again."""
        self.click(session, name, 3)
        session.run()

    @torch.no_grad()
    def bare(self, views: Iterable[int]) -> None:
        """Render views as nerfstudio does, without any of this package."""
        model = self.pipeline.model
        for view in views:
            camera = self.views.camera(view)
            if not isinstance(model, MaskedModel):
                model.get_outputs_for_camera(camera)
                continue
            rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
            for start in range(0, len(rays), model.config.eval_num_rays_per_chunk):
                chunk = rays[start : start + model.config.eval_num_rays_per_chunk].to(model.device)
                model._base_outputs(chunk if model.collider is None else model.collider(chunk))

    def forget(self) -> None:
        """Drop all cached traces and embeddings of views."""
        self.views.cache = ViewCache(self.views.cache.budget)
        self.pipeline._embeddings = None

    def shares(self) -> dict[str, Any]:
        """Cost of objects, as shares of bare renders of the same views, in time and in rays.

        A view is rendered bare before and after each object, because the speed of a shared machine changes.
        """
        whole_rays = sum(math.prod(self.views.frame(view).size) for view in range(len(self.views)))
        ratios: dict[str, dict[str, float]] = {"seconds": {}, "rays": {}}
        areas, cycle = {}, itertools.cycle(range(0, len(self.views), max(len(self.views) // 12, 1)))

        def bare_view() -> float:
            return self.clock.once(lambda: self.bare([next(cycle)]))

        def measure(name: str, work: Callable[[], SegmentationSession]) -> SegmentationSession:
            bare, before = bare_view(), self.counted.rays
            session = self.clock.time("share", work)
            ratios["rays"][name] = (self.counted.rays - before) / whole_rays
            bare = (bare + bare_view()) / 2 * len(self.views)
            ratios["seconds"][name] = self.clock.seconds.pop("share") / bare
            print(f"{name}: {ratios['seconds'][name]:.4f} of bare renders, {ratios['rays'][name]:.4f} of their rays")
            return session

        for name in self.prompts:
            self.forget()
            session = measure(name, partial(self.segment, name))
            areas[name] = min(float(item.mask.float().mean()) for item in session.prompted.values())
        self.forget()
        for name in self.prompts:
            measure(f"then {name}", partial(self.segment, name))
        # An object takes about a fiftieth of the bare renders, so a single timing would vary with the machine's load.
        again = [f"again {number}" for number in range(1, AGAIN + 1)]
        for name in again:
            measure(name, partial(self.segment, self.options.objects[1]))
        smallest, result = min(areas, key=lambda name: areas[name]), {}
        for unit, suffix in (("seconds", ""), ("rays", " of rays")):
            values = ratios[unit]
            result |= {
                f"first_share{suffix}": sum(values[name] for name in self.prompts) / len(self.prompts),
                f"smallest_share{suffix}": values[smallest],
                f"all_share{suffix}": sum(values[f"then {name}"] for name in self.prompts),
                f"second_share{suffix}": median(values[name] for name in again),
            }
        sizes = {name: self.size_of(name) for name in self.prompts}
        return result | {"smallest": smallest, "shares": ratios, "sizes": sizes}

    def size_of(self, name: str) -> float:
        """Share of the images that an object covers, on average over the views that show it."""
        folder = self.options.scene / "instances"
        masks = [read_ids(folder / f"{path.stem}.png") == self.prompts[name]["id"] for path in self.views.filenames]
        return float(np.mean([mask.mean() for mask in masks if mask.any()]))

    def measure(self) -> dict[str, Any]:
        """All figures that the options request."""
        if self.options.rest:
            return self.everything()
        self.bare([0])
        return {"seconds": {}, **self.shares()}

    def everything(self) -> dict[str, Any]:
        """Shares, if requested, and all other figures."""
        options, clock, (first, second) = self.options, self.clock, self.options.objects
        sample = [round(i * len(self.views) / options.sample) for i in range(options.sample)]
        self.bare(sample[:1])
        clock.time("bare", lambda: self.bare(sample[::2]))
        session = clock.time("first", lambda: self.segment(first))
        bare = clock.seconds["bare"]
        clock.time("bare", lambda: self.bare(sample[1::2]))
        visited = [view for view in session.report.last() if isinstance(view, int)]
        clock.seconds["bare"] = (bare + clock.seconds["bare"]) / len(sample) * len(visited)
        result: dict[str, Any] = {"views": len(visited), "parts": {"first": dict(session.report.seconds)}}
        result |= self.shares() if options.shares else {}
        second_session = clock.time("second", lambda: self.segment(second))
        result["parts"]["second"] = dict(second_session.report.seconds)
        result["passes"] = len(second_session.report.changes) + 1
        clock.time("refinement", lambda: self.refine(session, first))
        result["profile"] = profiled(lambda: self.segment(second))
        result["growth with views"] = self.growth_with_views(second, len(visited))
        if isinstance(self.views.trace(visited[0]), CompressedTrace):
            result |= self.lifting(second_session, visited)
            result["growth with rays"] = self.growth_with_rays(visited[0], second_session.grid)
        cache = self.views.cache
        result["memory of views"] = self.memory_with_views(visited)
        result["memory"] = {
            "cache, MB": cache.num_bytes / 1e6,
            "budget, MB": cache.budget / 1e6,
            "peak of the process, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }
        if clock.device.type == "cuda":
            result["memory"]["peak of the GPU, MB"] = torch.cuda.max_memory_allocated() / 1e6
        result["seconds"] = clock.seconds
        return result

    def lifting(self, session: SegmentationSession, visited: list[int]) -> dict[str, Any]:
        """Times of the published loop, and of lifting by autograd and by traces, on the same rays."""
        field, clock = session.grid, self.clock
        assert isinstance(field, MaskGrid)
        sample = visited[:: max(1, len(visited) // self.options.loop_views)][: self.options.loop_views]
        loop, milliseconds = 0.0, dict.fromkeys(LIFTING, 0.0)
        for view in sample:
            trace = self.views.trace(view)
            mask = (render_probability(trace, field)[0] > 0.5).float()
            image = torch.stack([mask, torch.ones_like(mask)], dim=-1)

            def step(view: int = view, image: Tensor = image) -> RayTrace:
                plain = self.pipeline.model.trace_view(self.views.camera(view))
                autograd_step(plain, field, image)
                return plain

            plain = clock.time("loop", step)
            loop += clock.seconds.pop("loop") / len(sample)
            assert isinstance(trace, CompressedTrace)
            atoms = as_samples(trace)
            ways: list[Callable[[], Any]] = [
                partial(autograd_step, plain, field, image),
                partial(autograd_step, atoms, field, image),
                partial(lift_step, plain, field, image),
                partial(lift_step, trace, field, image),
                partial(splat_step, trace, field, image),
                partial(trace.backproject, field, image),
            ]
            for name, seconds in zip(LIFTING, clock.often_each(ways), strict=True):
                milliseconds[name] += 1e3 * seconds / len(sample)
        clock.seconds["published loop"] = loop * len(visited)
        trace = self.views.trace(visited[0])
        assert isinstance(trace, CompressedTrace)
        return {"lifting, ms a view": milliseconds, "bytes a ray": trace.num_bytes / (trace.height * trace.width)}

    def growth_with_views(self, name: str, most: int) -> dict[int, float]:
        """Seconds of a further object by the number of views."""
        config, seconds = self.pipeline.config, {}
        for count in [count for count in self.options.growth if count <= most]:
            config.num_views = count - 1
            self.clock.time("growth", lambda: self.segment(name))
            seconds[count] = self.clock.seconds.pop("growth")
        config.num_views = self.options.views
        return seconds

    def memory_with_views(self, visited: list[int]) -> dict[str, dict[int, float]]:
        """MB of views in memory by their number, within the run's budget and within half of the need of all views."""
        traces = [self.views.trace(view) for view in visited[: self.options.memory_views]]
        megabytes: dict[str, dict[int, float]] = {}
        half = sum(size_of(trace) for trace in traces) // 2
        for name, budget in (("the run's budget", self.views.cache.budget), ("half of what all need", half)):
            cache, megabytes[name] = ViewCache(budget), {}
            for count, trace in enumerate(traces, start=1):
                cache.put(str(count), trace)
                megabytes[name][count] = cache.num_bytes / 1e6
        return megabytes

    def growth_with_rays(self, view: int, field: MaskField) -> dict[int, dict[str, float]]:
        """Seconds of a render and of lifting, and bytes per ray, by the number of rays of a view."""
        table = {}
        for size in self.options.sizes:
            views = TrainingViews(self.pipeline.model, self.views.cameras, self.views.filenames, size)
            trace = self.clock.time("growth", lambda views=views: views.trace(view))
            assert isinstance(trace, CompressedTrace)
            rays = trace.height * trace.width
            mask = (render_probability(trace, field)[0] > 0.5).float()
            image = torch.stack([mask, torch.ones_like(mask)], dim=-1)
            lifting = self.clock.often(lambda trace=trace, image=image: lift_step(trace, field, image))
            table[rays] = {"render": self.clock.seconds.pop("growth"), "lift": lifting, "bytes": trace.num_bytes / rays}
        return table


def profiled(work: Callable[[], Any], most: int = 10) -> list[tuple[str, float]]:
    """Functions that take most time, without the functions that they call, as shares of the total."""
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile)
    total = stats.total_tt  # type: ignore[attr-defined]
    rows = [(name, row[2]) for name, row in stats.stats.items()]  # type: ignore[attr-defined]
    rows.sort(key=lambda row: -row[1])
    return [(f"{Path(file).name}:{function}", seconds / total) for (file, _, function), seconds in rows[:most]]


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the growth with views and with rays."""
    figure, ((left, right), (held, size)) = plt.subplots(2, 2, figsize=(8, 6), dpi=100)
    views = result["growth with views"]
    left.plot(list(views), list(views.values()), "o-")
    left.set(xlabel="views", ylabel="seconds", title="a further object", xlim=(0, None), ylim=(0, None))
    rays = result["growth with rays"]
    right.loglog(list(rays), [row["render"] for row in rays.values()], "o-", label="render")
    right.loglog(list(rays), [row["lift"] for row in rays.values()], "s-", label="lift")
    right.set(xlabel="rays of a view", ylabel="seconds", title="one view")
    right.legend()
    for name, megabytes in result["memory of views"].items():
        held.plot(list(megabytes), list(megabytes.values()), label=name)
    held.set(xlabel="views", ylabel="MB in memory", title="views kept", xlim=(0, None), ylim=(0, None))
    held.legend()
    size.loglog(list(rays), [count * row["bytes"] / 1e6 for count, row in rays.items()], "o-")
    size.set(xlabel="rays of a view", ylabel="MB", title="one view kept")
    for axes in (right, size):
        axes.xaxis.set_minor_formatter(NullFormatter())
    figure.tight_layout()
    figure.savefig(path)


def draw_sizes(result: dict[str, Any], path: Path) -> None:
    """Draw the growth with the size of the object: a point for each object, and a line for the cost of whole views."""
    figure, axes = plt.subplots(figsize=(6, 4), dpi=100)
    sizes, shares = result["sizes"], result["shares"]
    for unit, marker in (("rays", "o"), ("seconds", "s")):
        axes.plot([100 * sizes[name] for name in sizes], [shares[unit][name] for name in sizes], marker, label=unit)
    axes.axhline(1, color="gray", linewidth=1, label="all rays of all views")
    for name, size in sizes.items():
        top = max(shares["rays"][name], shares["seconds"][name])
        axes.annotate(name, (100 * size, top), (2, 6), textcoords="offset points", rotation=60, fontsize=8)
    axes.set(xlabel="percent of the image that the object covers", ylabel="share of bare renders of all views")
    axes.set(title="an object from nothing", xlim=(0, 110 * max(sizes.values())), ylim=(0, 1.1))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.88))
    figure.tight_layout()
    figure.savefig(path)


def main(options: Options) -> None:
    """Measure, print tables, and write JSON and the plots."""
    result = Speed(options).measure()
    seconds, console = result["seconds"], Console(width=110)
    table = Table("", "seconds", "of bare renders")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / seconds['bare']:.4f}")
    console.print(table)
    console.print({name: value for name, value in result.items() if name != "seconds"})
    result |= {"command": sys.argv, "versions": {"torch": torch.__version__, "python": platform.python_version()}}
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot is not None and "growth with rays" in result:
        draw(result, options.plot)
    if options.size_plot is not None and "sizes" in result:
        draw_sizes(result, options.size_plot)


if __name__ == "__main__":
    main(tyro.cli(Options))
