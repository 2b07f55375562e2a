"""Speed-up by several processes: one and two in turns on the CPU, one thread each, and a model for more.

    python -m benchmarks.distributed --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu \
        --output distributed.json --plot benchmarks/distributed.png

Two processes segment one object with no view cached: in turns the first alone, and both together. Wall-clock time
includes other load on the machine, so the time of the longest way is measured as well: processor times between the
points where ranks wait for each other, added up along the ranks that are waited for. It is the wall-clock time if each
process had a core to itself.

Then all objects are segmented by one process and by both, and scored in unseen views. Last, the model simulates the
time of an object with no view cached, for 1 to 64 ranks and 100 to 10,000 views, from measured times of views and sums.
"""

from __future__ import annotations

import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any, TypeVar

import matplotlib
import torch
import tyro

from benchmarks.scene import SceneUnderTest
from sa3d_nerfstudio.distributed.launch import joined
from sa3d_nerfstudio.distributed.ranks import ProcessRanks, Ranks
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmenters.base import SegmenterImage, SegmenterOptions
from sa3d_nerfstudio.segmenters.registry import make_segmenter
from sa3d_nerfstudio.views.cache import ViewCache

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Value = TypeVar("Value")
RANKS = (1, 2, 4, 8, 16, 32, 64)
VIEWS = (100, 1000, 10_000)


@dataclass
class Options:
    """Measure the speed-up by several processes."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    object: str = "mug"
    """Name of the timed object."""
    turns: int = 2
    """Number of turns, each of which times one process and then all."""
    processes: int = 2
    """Number of processes."""
    objects: tuple[str, ...] = ()
    """Names of the scored objects; all by default."""
    accuracy: bool = True
    """Score the objects."""
    views: int | None = None
    """Number of views beside the prompted one; all by default."""
    working_size: int = 160
    """Longer side of the images, in pixels."""
    embed_seconds: float | None = None
    """Seconds to embed a view, for the model; by default as measured with GrabCut."""
    bandwidth: float = 1.1e9
    """Bytes a second between ranks, for the model: Ethernet of 10 Gbit/s."""
    latency: float = 1e-4
    """Seconds per message between ranks, for the model."""
    output: Path | None = None
    """JSON file to write."""
    plot: Path | None = None
    """PNG file for the plot of the model's times and speed-ups."""
    worker: Path | None = None
    """Set by this command for the processes that it starts: JSON file for the measurements of the first."""


class TimedRanks(ProcessRanks):
    """Ranks that record each point where they wait for each other, and the processor time since the previous point."""

    @classmethod
    def of(cls, ranks: ProcessRanks) -> TimedRanks:
        """Timed ranks that share the state of others."""
        timed = cls.__new__(cls)
        timed.__dict__ = ranks.__dict__
        timed.reset()
        return timed

    def reset(self) -> None:
        """Clear the record, and restart the processor time."""
        self.events: list[tuple[str, float]] = []
        """Kind of each meeting point, and the processor seconds before it."""
        self._left = time.process_time()

    def share(self, compute: Callable[[], Value]) -> Value:
        """Share rank 0's value, and record the processor time before, including that of computing the value."""
        value = compute() if self.is_first else None
        return self._met("share", lambda: super(TimedRanks, self).share(lambda: value))  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Gather values, and record the processor time before."""
        return self._met("gather", lambda: super(TimedRanks, self).gather(value))

    def collect(self, value: Value) -> list[Value]:
        """Collect values on rank 0, and record the processor time before."""
        return self._met("collect", lambda: super(TimedRanks, self).collect(value))

    def begin(self, value: Any, *tensors: torch.Tensor) -> Callable[[], Any]:
        """Begin an exchange, and record the processor times before its beginning and before its end."""
        self._met("begin", lambda: None)
        end = super().begin(value, *tensors)
        return lambda: self._met("end", end)

    def _met(self, kind: str, meet: Callable[[], Value]) -> Value:
        self.events.append((kind, time.process_time() - self._left))
        value = meet()
        self._left = time.process_time()
        return value


def longest_way(events: Sequence[Sequence[tuple[str, float]]]) -> float:
    """Seconds until the last rank ends, if each has a core to itself.

    Args:
        events: For each rank, the kinds of its meeting points, and the processor seconds before each.
    """
    now = [0.0] * len(events)
    begun: list[list[float]] = []
    for meetings in zip(*events, strict=True):
        now = [time + seconds for time, (_, seconds) in zip(now, meetings, strict=True)]
        (kind,) = {kind for kind, _ in meetings}
        if kind == "gather":
            now = [max(now)] * len(now)
        elif kind == "share":
            now = [max(time, now[0]) for time in now]
        elif kind == "collect":
            now[0] = max(now)
        elif kind == "begin":
            begun.append(now)
        else:
            now = [max(time, *begun[0]) for time in now]
            begun.pop(0)
    return max(now)


@dataclass
class Timed:
    """Figures of one object, segmented with no view cached."""

    seconds: float
    """Wall-clock seconds."""
    longest_way: float
    """Processor seconds of the longest way; see :func:`longest_way`."""
    passes: int
    sent: dict[str, float] = field(default_factory=dict)
    """Bytes of the tensors that a rank sends, by pass, relative to the bytes of a grid."""
    waited: float = 0.0
    """Seconds that rank 0 spent in waiting and summing."""


@dataclass
class Parts:
    """Inputs of the model; times are processor seconds of one core."""

    prompt: float
    """Prompting: a render of the whole prompted view."""
    first_visits: list[float]
    """Each visit in the first pass, its renders included."""
    later_visits: list[float]
    """Each visit in a later pass."""
    passes: int
    fit_views: float
    """One step of the fit, per view."""
    fit_steps: int
    embed: float
    """Embedding of one view."""
    sum_bytes: int
    """Bytes of one sum: two grids."""
    sum_seconds: float
    """Wall-clock seconds of one sum by the processes on this machine."""


class Bench:
    """The scene, loaded in one of the processes."""

    def __init__(self, options: Options, ranks: Ranks) -> None:
        self.options = options
        self.ranks = ranks
        self.scene = SceneUnderTest(
            options.scene,
            options.run,
            most_tests=None if options.accuracy and ranks.is_first else 0,
            trace_all=False,
            segmenter="oracle",
            working_size=options.working_size,
            num_views=options.views,
            keep_cache=False,
        )
        self.pipeline = self.scene.pipeline

    def session(self, name: str, ranks: Ranks) -> SegmentationSession:
        """Session with one click on an object."""
        session = self.pipeline.session(name, ranks=ranks)
        session.prompt(*self.scene.prompt(name, "point"))
        return session

    def forget(self) -> None:
        """Drop all cached traces and embeddings of views."""
        self.pipeline.views.cache = ViewCache(self.pipeline.views.cache.budget)
        self.pipeline._embeddings = None

    def alone(self) -> Timed:
        """Segment the object with no view cached, in this process alone."""
        self.forget()
        begun, work = time.perf_counter(), time.process_time()
        session = self.session(self.options.object, Ranks())
        session.run()
        passes = len(session.report.changes) + 1
        return Timed(time.perf_counter() - begun, time.process_time() - work, passes)

    def together(self, ranks: TimedRanks) -> Timed:
        """Segment the object with no view cached, in all processes."""
        self.forget()
        ranks.gather(None)
        ranks.reset()
        begun, sent, waited = time.perf_counter(), ranks.bytes_sent, ranks.seconds
        session = self.session(self.options.object, ranks)
        by_pass: dict[str, float] = {}
        for record in session.steps():
            by_pass[f"pass {record.number_of_pass}"] = ranks.bytes_sent - sent
        by_pass["fit"] = ranks.bytes_sent - sent
        ranks.gather(None)
        seconds = time.perf_counter() - begun
        events, sums = list(ranks.events), ranks.seconds - waited
        longest = longest_way(ranks.gather(events))
        grid_bytes, before, grids = 4 * session.grid.num_cells, 0.0, {}
        for name, total in by_pass.items():
            grids[name], before = (total - before) / grid_bytes, total
        return Timed(seconds, longest, len(session.report.changes) + 1, grids, sums)

    def parts(self, ranks: TimedRanks) -> Parts | None:
        """Measure the inputs of the model on rank 0, the sums on all ranks; None on other ranks."""
        cells = torch.tensor(self.pipeline.config.resolution**3)
        sums = []
        for _ in range(6):
            hit, seen = torch.rand(int(cells)), torch.rand(int(cells))
            ranks.gather(None)
            begun = time.perf_counter()
            ranks.sum(hit, seen)
            sums.append(time.perf_counter() - begun)
        parts = self._own_parts(2 * 4 * int(cells), median(sums[1:])) if ranks.is_first else None
        ranks.gather(None)
        return parts

    def _own_parts(self, sum_bytes: int, sum_seconds: float) -> Parts:
        self.forget()
        begun = time.process_time()
        session = self.session(self.options.object, Ranks())
        prompt = time.process_time() - begun
        visits: dict[int, list[float]] = {}
        begun = time.process_time()
        for record in session.steps():
            if record.state != "prompt":
                visits.setdefault(record.number_of_pass, []).append(time.process_time() - begun)
            begun = time.process_time()
        fit, report = time.process_time() - begun, session.report
        assert report.likelihood is not None
        later = [seconds for number, times in visits.items() if number > 1 for seconds in times]
        steps = report.likelihood.steps + len(report.likelihood.held_out)
        embed = self.options.embed_seconds
        return Parts(
            prompt,
            visits[1],
            later,
            len(visits),
            fit / max(steps, 1) / len(visits[1]),
            steps,
            self._embedding() if embed is None else embed,
            sum_bytes,
            sum_seconds,
        )

    def _embedding(self) -> float:
        segmenter = make_segmenter("grabcut", SegmenterOptions(device=self.pipeline.device))
        views, times = self.pipeline.views, []
        for view in range(4):
            trace = views.trace(view)
            image = SegmenterImage(views.picture(view), views.name(view), trace.depth[..., 0])
            begun = time.process_time()
            segmenter.embed(image)
            times.append(time.process_time() - begun)
        return median(times)

    def scores(self, ranks: Ranks) -> dict[str, float]:
        """Segment each object, and return its mean IoU in unseen views on rank 0."""
        ious = {}
        for entry in self.scene.entries:
            name = entry["name"]
            if self.options.objects and name not in self.options.objects:
                continue
            session = self.session(name, ranks)
            session.run()
            if self.ranks.is_first:
                ious[name] = self.scene.score(EvidenceLifting(session.grid), entry["id"]).iou
        return ious


def work(options: Options) -> None:
    """Measure in one of the processes; the first writes the results."""
    assert options.worker is not None
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        assert isinstance(ranks, ProcessRanks)
        timed = TimedRanks.of(ranks)
        bench = Bench(options, timed)
        result: dict[str, Any] = {"one": [], "several": []}
        # Work that only the first renders do is not timed.
        bench.pipeline.views.trace(0)
        for _ in range(options.turns):
            if timed.is_first:
                result["one"].append(asdict(bench.alone()))
            timed.gather(None)
            result["several"].append(asdict(bench.together(timed)))
        parts = bench.parts(timed)
        result["parts"] = None if parts is None else asdict(parts)
        if options.accuracy:
            bench.forget()
            result["scores of one"] = bench.scores(Ranks()) if timed.is_first else {}
            timed.gather(None)
            result["scores of several"] = bench.scores(timed)
        if timed.is_first:
            options.worker.write_text(json.dumps(result))


def start(options: Options, folder: Path) -> dict[str, Any]:
    """Start the processes, and return the measurements of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = folder / f"distributed-{os.getpid()}.json"
    processes = []
    for rank in range(options.processes):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments = ["-W", "ignore", "-m", "benchmarks.distributed", *sys.argv[1:], "--worker", str(path)]
        processes.append(subprocess.Popen([sys.executable, *arguments], env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the processes ended with {codes}")
    result = json.loads(path.read_text())
    path.unlink()
    return result


def predicted(parts: Parts, ranks: int, views: int, options: Options, seed: int = 0) -> float:
    """Seconds of an object with no view cached, by the model.

    Times of visits are drawn from the measured ones with replacement. In the first pass, a rank begins a round when all
    ranks have ended the round before the last; a later pass takes as long as its busiest rank. A sum goes around a
    ring: each of N ranks sends 2 (N - 1) / N times the bytes, in 2 (N - 1) messages. Each rank renders a share of the
    prompted view, and the first embeds it.
    """
    rng = random.Random(seed)
    rounds = math.ceil(views / ranks)

    def summed(num_bytes: float) -> float:
        if ranks == 1:
            return 0.0
        return 2 * (ranks - 1) / ranks * num_bytes / options.bandwidth + 2 * (ranks - 1) * options.latency

    first = rng.choices(parts.first_visits, k=views)
    total = parts.prompt / ranks + parts.embed + summed(parts.sum_bytes)
    now, before = [0.0] * ranks, 0.0
    for start_of_round in range(0, views, ranks):
        costs = first[start_of_round : start_of_round + ranks]
        last = max(now)
        now = [max(time, before) + cost + parts.embed for time, cost in zip(now, costs, strict=False)]
        now += [last] * (ranks - len(now))
        before = last + summed(parts.sum_bytes)
    total += max(now)
    for _ in range(parts.passes - 1):
        later = rng.choices(parts.later_visits, k=views)
        total += max(sum(later[rank::ranks]) for rank in range(min(ranks, views))) + summed(parts.sum_bytes)
    return total + parts.fit_steps * (rounds * parts.fit_views + summed(parts.sum_bytes / 2))


def draw(path: Path, table: dict[int, list[float]]) -> None:
    """Draw time and speed-up over the number of ranks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for index, (views, seconds) in enumerate(table.items()):
        color = ("#0969da", "#1a7f37", "#bc4c00")[index % 3]
        left.plot(RANKS, [duration / 60 for duration in seconds], "o-", color=color, markersize=4)
        left.annotate(f"{views:,} views", (RANKS[0], seconds[0] / 60), xytext=(6, 4), textcoords="offset points")
        gains = [seconds[0] / duration for duration in seconds]
        right.plot(RANKS, gains, "o-", color=color, label=f"{views:,} views", markersize=4)
    right.plot(RANKS, RANKS, "--", color="#8c959f", label="ideal")
    left.set(xlabel="ranks", ylabel="minutes for an object from nothing", xscale="log", yscale="log")
    right.set(xlabel="ranks", ylabel="times as fast as one", xscale="log", yscale="log")
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xticks(RANKS, [str(rank) for rank in RANKS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    right.set_yticks(RANKS, [str(rank) for rank in RANKS])
    figure.savefig(path, dpi=130)


def report(result: dict[str, Any], options: Options) -> dict[str, Any]:
    """Print the measurements and the predictions of the model, and return both."""
    one, several = result["one"], result["several"]
    for name in ("seconds", "longest_way"):
        alone, together = [item[name] for item in one], [item[name] for item in several]
        ratio = median(alone) / median(together)
        result[f"speed-up, {name}"] = ratio
        print(f"{name:12} one {_listed(alone)}   {options.processes} {_listed(together)}   {ratio:.2f} x")
    print("sent, in grids", {name: round(grids, 2) for name, grids in several[-1]["sent"].items()})
    if options.accuracy:
        scores = {name: (value, result["scores of several"][name]) for name, value in result["scores of one"].items()}
        for name, pair in scores.items():
            print(f"{name:12} {pair[0]:.4f} {pair[1]:.4f} {pair[1] - pair[0]:+.4f}")
        averages = [mean(pair[index] for pair in scores.values()) for index in range(2)]
        result["difference"] = max(abs(pair[1] - pair[0]) for pair in scores.values())
        print(f"{'mean':12} {averages[0]:.4f} {averages[1]:.4f}; largest difference {result['difference']:.4f}")
    parts = Parts(**result["parts"])
    print(
        f"prompt {parts.prompt:.2f} s, first visit {mean(parts.first_visits):.3f} s, "
        f"later {mean(parts.later_visits):.3f} s, embed {parts.embed:.3f} s, "
        f"fit {parts.fit_views * 1e3:.2f} ms a view and step ({parts.fit_steps} steps), "
        f"sum of {parts.sum_bytes / 1e6:.1f} MB {parts.sum_seconds * 1e3:.1f} ms"
    )
    table = {views: [predicted(parts, ranks, views, options) for ranks in RANKS] for views in VIEWS}
    for views, seconds in table.items():
        print(f"{views:6} views: " + ", ".join(f"{r} {s:.0f} s" for r, s in zip(RANKS, seconds, strict=True)))
    result["model"] = {str(views): seconds for views, seconds in table.items()}
    count, bare = len(parts.first_visits), replace(parts, embed=0.0)
    check = [predicted(bare, ranks, count, options) for ranks in (1, options.processes)]
    print(f"the model of what was measured, without embedding: {_listed(check)}")
    if options.plot is not None:
        draw(options.plot, table)
    return result


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values) + " s"


def main(options: Options) -> None:
    """Measure, print the results, and write JSON."""
    if options.worker is not None:
        work(options)
        return
    folder = Path.cwd() if options.output is None else options.output.parent
    result = report(start(options, folder), options)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
