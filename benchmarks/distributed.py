"""What several processes gain: one and two in turns on the CPU, one thread each, and a model for more of both.

    python -m benchmarks.distributed --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu \
        --output distributed.json --plot benchmarks/distributed.png

The same two processes segment one object from nothing: in turns the first by itself, and both together. Besides
the time on the clock, which whatever else runs on the machine adds to, there is the time of the longest way: processor
times between the places where the ranks wait for each other, added up along the ranks that are waited for. It is what
the clock would say if each process had a core to itself.

Then all objects, by one process and by both, scored in unseen views. Then the model: how long an object from nothing
would take for 1 to 64 ranks and 100 to 10,000 views, simulated with the measured times of views and of sums.
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
    """Measure what several processes gain."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    object: str = "mug"
    """The object that is timed."""
    turns: int = 2
    """How often one process and two are timed, in turns."""
    processes: int = 2
    """How many there are."""
    objects: tuple[str, ...] = ()
    """Objects that are scored; all by default."""
    accuracy: bool = True
    """Score them."""
    views: int | None = None
    """Only so many views; all by default."""
    working_size: int = 160
    """Longer side of the images."""
    embed_seconds: float | None = None
    """Time in which a view is embedded, for the model; by default as measured with GrabCut."""
    bandwidth: float = 1.1e9
    """Bytes a second between ranks, for the model: Ethernet of 10 Gbit/s."""
    latency: float = 1e-4
    """Seconds that a message between ranks takes, for the model."""
    output: Path | None = None
    """JSON file to write."""
    plot: Path | None = None
    """PNG file to draw the growth in."""
    worker: Path | None = None
    """Set by this command for the processes that it starts: where the first puts what it has measured."""


class TimedRanks(ProcessRanks):
    """Notes where ranks wait for each other, and the processor time that has passed since the last such place."""

    @classmethod
    def of(cls, ranks: ProcessRanks) -> TimedRanks:
        """The same ranks, timed."""
        timed = cls.__new__(cls)
        timed.__dict__ = ranks.__dict__
        timed.reset()
        return timed

    def reset(self) -> None:
        """Note from now on."""
        self.events: list[tuple[str, float]] = []
        """Kind of each place, and the processor time before it."""
        self._left = time.process_time()

    def share(self, compute: Callable[[], Value]) -> Value:
        """Meet, and note the work until then, which rank 0's is a part of."""
        value = compute() if self.is_first else None
        return self._met("share", lambda: super(TimedRanks, self).share(lambda: value))  # type: ignore[return-value]

    def gather(self, value: Value) -> list[Value]:
        """Meet, and note the work until then."""
        return self._met("gather", lambda: super(TimedRanks, self).gather(value))

    def collect(self, value: Value) -> list[Value]:
        """Hand over, and note the work until then."""
        return self._met("collect", lambda: super(TimedRanks, self).collect(value))

    def begin(self, value: Any, *tensors: torch.Tensor) -> Callable[[], Any]:
        """Begin an exchange, and note the work until then and until its end."""
        self._met("begin", lambda: None)
        end = super().begin(value, *tensors)
        return lambda: self._met("end", end)

    def _met(self, kind: str, meet: Callable[[], Value]) -> Value:
        self.events.append((kind, time.process_time() - self._left))
        value = meet()
        self._left = time.process_time()
        return value


def longest_way(events: Sequence[Sequence[tuple[str, float]]]) -> float:
    """Seconds until the last rank has ended, each having a core to itself.

    Args:
        events: Of each rank, where it has waited, and the processor time before each of these places.
    """
    now = [0.0] * len(events)
    begun: list[list[float]] = []
    for places in zip(*events, strict=True):
        now = [time + seconds for time, (_, seconds) in zip(now, places, strict=True)]
        (kind,) = {kind for kind, _ in places}
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
    """An object from nothing."""

    seconds: float
    """On the clock."""
    longest_way: float
    """Processor time between meetings, of the rank that took longest each time."""
    passes: int
    sent: dict[str, float] = field(default_factory=dict)
    """Bytes of a rank's tensors by pass, over those of a grid."""
    waited: float = 0.0
    """Seconds in which rank 0 waited or summed."""


@dataclass
class Parts:
    """What the model is made of, in seconds of processor time on one core."""

    prompt: float
    """The prompted view: a render of all of it."""
    first_visits: list[float]
    """Each view in the first pass, its renders included."""
    later_visits: list[float]
    """Each view in a later pass."""
    passes: int
    fit_views: float
    """One step of the fit, a view."""
    fit_steps: int
    embed: float
    """A view's embedding."""
    sum_bytes: int
    """Of a sum: two grids."""
    sum_seconds: float
    """Of a sum by two processes on this machine."""


class Bench:
    """The scene in one of the processes."""

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
        """One click on an object."""
        session = self.pipeline.session(name, ranks=ranks)
        session.prompt(*self.scene.prompt(name, "point"))
        return session

    def forget(self) -> None:
        """Forget all that has been computed of views."""
        self.pipeline.views.cache = ViewCache(self.pipeline.views.cache.budget)
        self.pipeline._embeddings = None

    def alone(self) -> Timed:
        """The object from nothing, in this process."""
        self.forget()
        begun, work = time.perf_counter(), time.process_time()
        session = self.session(self.options.object, Ranks())
        session.run()
        passes = len(session.report.changes) + 1
        return Timed(time.perf_counter() - begun, time.process_time() - work, passes)

    def together(self, ranks: TimedRanks) -> Timed:
        """The object from nothing, in all processes."""
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
        grid, before, each = 4 * session.grid.num_cells, 0.0, {}
        for name, total in by_pass.items():
            each[name], before = (total - before) / grid, total
        return Timed(seconds, longest, len(session.report.changes) + 1, each, sums)

    def parts(self, ranks: TimedRanks) -> Parts | None:
        """What the model is made of; measured by rank 0, but for the sums."""
        cells = torch.tensor(self.pipeline.config.resolution**3)
        sums = []
        for _ in range(6):
            hit, seen = torch.rand(int(cells)), torch.rand(int(cells))
            ranks.gather(None)
            begun = time.perf_counter()
            ranks.sum(hit, seen)
            sums.append(time.perf_counter() - begun)
        found = self._own_parts(2 * 4 * int(cells), median(sums[1:])) if ranks.is_first else None
        ranks.gather(None)
        return found

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
        later = [seconds for number, each in visits.items() if number > 1 for seconds in each]
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
        """Mean IoU of each object in unseen views, on rank 0."""
        found = {}
        for entry in self.scene.entries:
            name = entry["name"]
            if self.options.objects and name not in self.options.objects:
                continue
            session = self.session(name, ranks)
            session.run()
            if self.ranks.is_first:
                found[name] = self.scene.score(EvidenceLifting(session.grid), entry["id"]).iou
        return found


def work(options: Options) -> None:
    """What each of the processes does."""
    assert options.worker is not None
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        assert isinstance(ranks, ProcessRanks)
        timed = TimedRanks.of(ranks)
        bench = Bench(options, timed)
        result: dict[str, Any] = {"one": [], "several": []}
        # The first renders build what later ones find.
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
    """Start the processes, and return what the first has measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = folder / f"distributed-{os.getpid()}.json"
    processes = []
    for rank in range(options.processes):
        environment = {
            **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(options.processes),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = ["-W", "ignore", "-m", "benchmarks.distributed", *sys.argv[1:], "--worker", str(found)]
        processes.append(subprocess.Popen([sys.executable, *words], env=environment))
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the processes ended with {codes}")
    result = json.loads(found.read_text())
    found.unlink()
    return result


def predicted(parts: Parts, ranks: int, views: int, options: Options, seed: int = 0) -> float:
    """Seconds that an object from nothing takes, by the model.

    Views take as long as those that were measured, drawn with replacement. In the first pass, a rank begins a round
    when all have ended the one before the last; later, a pass takes as long as its busiest rank. A sum is a ring: each
    rank sends all bytes twice but for a share, in 2 (N - 1) messages. All render a share of the prompted view, and the
    first embeds it.
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
        left.plot(RANKS, [each / 60 for each in seconds], "o-", color=color, markersize=4)
        left.annotate(f"{views:,} views", (RANKS[0], seconds[0] / 60), xytext=(6, 4), textcoords="offset points")
        gains = [seconds[0] / each for each in seconds]
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
    """Print what was measured and what follows, and return all of it."""
    one, several = result["one"], result["several"]
    for name in ("seconds", "longest_way"):
        ones, others = [item[name] for item in one], [item[name] for item in several]
        ratio = median(ones) / median(others)
        result[f"speed-up, {name}"] = ratio
        print(f"{name:12} one {_listed(ones)}   {options.processes} {_listed(others)}   {ratio:.2f} x")
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
    """Measure, print, and write."""
    if options.worker is not None:
        work(options)
        return
    folder = Path.cwd() if options.output is None else options.output.parent
    result = report(start(options, folder), options)
    if options.output is not None:
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
