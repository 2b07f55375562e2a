"""All checks that need a GPU, in one command: train, segment, export, test, time.

    python -m benchmarks.gpu --output gpu.md

Trains nerfacto, splatfacto and instant-ngp on ``../shared/scenes/desk`` and on fern at 1008 x 756, segments by a click
(the oracle where the scene has true masks, GrabCut elsewhere), exports every form, and runs the tests marked ``gpu``
and the benchmarks of speed, visits and real size. Each part is a separate command with a log, and has ten minutes at
most. Parts that have passed are not repeated (``--again`` repeats them), so the command can be called until all have
passed. The table is written after each part.

``--tiny`` does the same in small on a CPU: a scene of ten small images, and stand-ins for CUDA's kernels. Its parts are
forked from one process that has imported nerfstudio, because the import takes longer than a part.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
QUIET = ("--vis", "tensorboard", "--logging.local-writer.max-log-size", "0")
NEVER = tuple(f"--steps-per-eval-{what}=999999" for what in ("batch", "image", "all-images"))
STEPS = {"nerfacto": 5000, "splatfacto": 7000, "instant-ngp": 5000}
"""Training steps, a few minutes on a current GPU."""
TINY_OPTIONS: dict[str, tuple[object, ...]] = {
    "nerfacto": (
        *("--pipeline.model.implementation", "torch", "--pipeline.model.num-levels", 6),
        *("--pipeline.model.log2-hashmap-size", 12, "--pipeline.model.max-res", 128),
        *("--pipeline.model.num-nerf-samples-per-ray", 12, "--pipeline.model.num-proposal-samples-per-ray", 24, 12),
        *("--pipeline.model.near-plane", 0.1, "--pipeline.model.far-plane", 3.0),
        *("--pipeline.model.average-init-density", 3.0, "--pipeline.model.proposal-initial-sampler", "uniform"),
        *("--optimizers.fields.optimizer.lr", 0.02, "--pipeline.datamanager.train-num-rays-per-batch", 128),
    ),
    "splatfacto": (
        *("--pipeline.model.num-downscales", 0, "--pipeline.model.use-absgrad", False),
        *("--optimizers.opacities.optimizer.lr", 0.1, "--optimizers.features-dc.optimizer.lr", 0.05),
    ),
    "instant-ngp": (
        *("--pipeline.model.grid-resolution", 16, "--pipeline.model.grid-levels", 1),
        *("--pipeline.model.log2-hashmap-size", 12, "--pipeline.model.max-res", 128),
        *("--pipeline.model.render-step-size", 0.1, "--pipeline.target-num-samples", 4096),
        *("--pipeline.max-num-samples-per-ray", 32, "--optimizers.fields.optimizer.lr", 0.02),
        *("--pipeline.datamanager.train-num-rays-per-batch", 128),
    ),
}
TINY_THRESHOLD = 0.25
"""Probability threshold of the mask: after so short a training, few rays end in the thin density."""
TINY_SEGMENTING = (
    *("--pipeline.threshold", TINY_THRESHOLD),
    # Splats are rasterised in Python: each view and each step of the fit takes a second.
    *("--pipeline.num-views", 3, "--pipeline.max-passes", 2, "--pipeline.likelihood-steps", 2),
)


@dataclass
class Options:
    """Run all parts that have not passed yet."""

    output: Path
    """Markdown file for the table."""
    work: Path = Path("outputs/gpu")
    """Folder for runs, exports, logs and the state."""
    scenes: Path = Path("../shared/scenes")
    """Folder of the scenes desk and fern."""
    methods: tuple[str, ...] = ("nerfacto", "splatfacto", "instant-ngp")
    """Methods to train."""
    minutes: float = 10.0
    """Time limit of a part."""
    tiny: bool = False
    """Run all parts in small on a CPU, with stand-ins for CUDA's kernels."""
    again: bool = False
    """Repeat parts that have passed."""
    only: tuple[str, ...] = ()
    """Run only parts whose names contain one of these words; all if none is given."""
    steps: int | None = None
    """Training steps; by default those of :data:`STEPS`."""


@dataclass
class Part:
    """One command of the benchmark."""

    name: str
    command: list[str]
    after: tuple[str, ...] = ()
    """Names of the parts that must have passed before."""


@dataclass
class Result:
    """Outcome of a part."""

    state: str
    seconds: float = 0.0
    gpu_mb: float = 0.0
    """Peak of the GPU's used memory during the part, beyond that used before."""
    host_mb: float = 0.0
    """Peak host memory of the command."""
    note: str = ""


@dataclass
class Run:
    """Runs parts, and keeps their results in a file."""

    options: Options
    results: dict[str, Result] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.options.work.mkdir(parents=True, exist_ok=True)
        self._state = self.options.work / "state.json"
        if self._state.exists() and not self.options.again:
            self.results = {name: Result(**result) for name, result in json.loads(self._state.read_text()).items()}

    def carry_out(self, part: Part) -> None:
        """Run a part unless it has passed, and save its result."""
        previous = self.results.get(part.name)
        if previous is not None and previous.state == "passed":
            return
        missing = [name for name in part.after if self.results.get(name, Result("")).state != "passed"]
        result = Result("left out", note=f"needs {', '.join(missing)}") if missing else self._run(part)
        self.results[part.name] = result
        temporary = self._state.with_suffix(".new")
        temporary.write_text(json.dumps({name: vars(outcome) for name, outcome in self.results.items()}, indent=1))
        temporary.replace(self._state)

    def _run(self, part: Part) -> Result:
        log = self.options.work / "logs" / f"{part.name.replace(' ', '-')}.log"
        log.parent.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "160", "NO_COLOR": "1"}
        if self.options.tiny:
            environment["OMP_NUM_THREADS"] = "1"
        begun = time.perf_counter()
        with log.open("w", encoding="utf8") as file, GpuMemory() as memory:
            print("$", *part.command, file=file, flush=True)
            if self.options.tiny:
                pid = forked(part.command, file.fileno(), environment)
            else:
                pid = subprocess.Popen(
                    part.command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment,
                    cwd=ROOT, start_new_session=True,
                ).pid  # fmt: skip
            timer = threading.Timer(60 * self.options.minutes, os.killpg, (pid, signal.SIGKILL))
            timer.start()
            try:
                _, status, usage = os.wait4(pid, 0)
            except BaseException:
                os.killpg(pid, signal.SIGKILL)
                raise
            finally:
                timer.cancel()
        returncode, seconds = os.waitstatus_to_exitcode(status), time.perf_counter() - begun
        result = Result("passed", seconds, memory.peak_mb, usage.ru_maxrss / 1e3)
        if returncode == -signal.SIGKILL and seconds >= 60 * self.options.minutes:
            result.state, result.note = "too slow", f"ended after {self.options.minutes:g} minutes"
        elif returncode:
            lines = [line for line in log.read_text("utf8", errors="replace").splitlines() if line.strip()]
            result.state, result.note = "failed", lines[-1][:200] if lines else ""
        return result


def forked(command: Sequence[str], output: int, environment: dict[str, str]) -> int:
    """Run a Python command in a fork of this process, as if in a new interpreter.

    The fork shares the modules imported here: importing nerfstudio takes longer than most tiny parts.

    Args:
        command: ``python FILE ...``, ``python -m MODULE ...`` or ``python -c CODE ...``.
        output: File descriptor for the command's stdout and stderr.
        environment: Environment variables of the command.

    Returns:
        Id of the process, which leads a new session.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(ROOT)
        os.environ.clear()
        os.environ.update(environment)
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf8") for number in (1, 2))
        _, what, *arguments = command
        if what == "-m":
            sys.argv = arguments
            runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        elif what == "-c":
            sys.argv = ["-c", *arguments[1:]]
            exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = [what, *arguments]
            sys.path.insert(0, str(Path(what).parent))
            runpy.run_path(what, run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


class GpuMemory:
    """Peak increase of the GPU's used memory within the context, by nvidia-smi; 0 without nvidia-smi."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._program = shutil.which("nvidia-smi")
        self._end = threading.Event()

    def _taken(self) -> float:
        query = [str(self._program), "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, check=False)
        return sum(float(line) for line in done.stdout.split()) if done.returncode == 0 else 0.0

    def __enter__(self) -> GpuMemory:
        if self._program is not None:
            self._before = self._taken()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._program is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._end.wait(0.5):
            self.peak_mb = max(self.peak_mb, self._taken() - self._before)


def command(options: Options, *words: object) -> list[str]:
    """Command line of a program of this environment; with ``--tiny``, run with the stand-ins."""
    program, *arguments = map(str, words)
    if options.tiny:
        return [sys.executable, str(ROOT / "tests" / "stand_ins.py"), program, *arguments]
    return [str(BIN / program), *arguments]


def click(scene: Path) -> tuple[list[object], list[object]]:
    """Options that prompt an object by a click, and those of the segmenter: the oracle if the scene has true masks."""
    if (scene / "prompts.json").exists():
        objects = json.loads((scene / "prompts.json").read_text())["objects"]
        chosen = next((item for item in objects if item["name"] in ("mug", "ball")), objects[0])
        name, point = chosen["frame"], chosen["points"][0]
        segmenter: list[object] = ["oracle", "--pipeline.oracle-instances", scene / "instances"]
    else:
        transforms = json.loads((scene / "transforms.json").read_text())
        name, point = transforms["train_filenames"][0], (transforms["w"] // 2, transforms["h"] // 2)
        segmenter = ["grabcut"]
    prompt: list[object] = ["--pipeline.prompt.view", Path(name).name, "--pipeline.prompt.points", *point]
    return prompt, ["--pipeline.segmenter", *segmenter]


def parts_of_run(options: Options, scene: Path, method: str) -> Iterator[Part]:
    """Parts that train, segment and export one scene with one method."""
    runs, name, tiny = (options.work / "runs").resolve(), f"{scene.name} {method}", options.tiny
    steps = options.steps or (60 if tiny else STEPS[method])
    extra: Sequence[object] = TINY_OPTIONS[method] if tiny else ()
    if not tiny and method == "nerfacto" and importlib.util.find_spec("tinycudann") is None:
        extra = ("--pipeline.model.implementation", "torch")
    device = ("--machine.device-type", "cpu") if tiny else ()
    yield Part(
        f"{name} train",
        command(
            options, "ns-train", method, "--data", scene, "--output-dir", runs, "--timestamp", "T", *QUIET, *NEVER,
            *device, "--max-num-iterations", steps, "--steps-per-save", 999999, *extra,
        ),
    )  # fmt: skip
    base, segmented = runs / scene.name / method / "T", runs / scene.name / "sa3d" / method
    prompt, segmenter = click(scene)
    yield Part(
        f"{name} segment",
        command(
            options, "ns-train", "sa3d", "--load-dir", base, "--output-dir", runs, "--timestamp", method, *QUIET[:2],
            *device, *prompt, *segmenter, *(TINY_SEGMENTING if tiny else ()),
        ),
        after=(f"{name} train",),
    )  # fmt: skip
    config = ("--load-config", segmented / "config.yml")
    forms = {form: [*words, *config] for form, words in exports(method, segmented, tiny).items()}
    if tiny:  # in one process, because starting one takes longer than exporting
        forms = {"exports": [word for words in forms.values() for word in ("--then", *words)][1:]}
    for form, words in forms.items():
        yield Part(f"{name} {form}", command(options, *words), after=(f"{name} segment",))


def exports(method: str, run: Path, tiny: bool) -> dict[str, list[object]]:
    """Export commands of a method by form, without the option for the run."""
    out = run / "exports"
    points, pixels = (300, 16) if tiny else (100_000, 1024)
    commands: dict[str, list[object]] = {
        "sa3d points": ["sa3d", "export", "points", "--output-dir", out / "points", "--num-points", points],
        "sa3d boxes": ["sa3d", "export", "box", "--output-dir", out / "boxes"],
        "sa3d masks": ["sa3d", "masks", "--output-dir", out / "masks"],
        "sa3d turntable": [
            *("sa3d", "turntable", "--output-path", out / "turntable.mp4"),
            *(("--frames", 2, "--size", 16, 16) if tiny else ("--frames", 60, "--size", 512, 512)),
        ],
    }
    if method == "splatfacto":
        commands["gaussian-splat"] = ["ns-export", "gaussian-splat", "--output-dir", out / "splat"]
        commands["sa3d splats"] = ["sa3d", "export", "splats", "--output-dir", out / "splats"]
        return commands
    commands["pointcloud"] = [
        *("ns-export", "pointcloud", "--output-dir", out / "cloud", "--normal-method", "open3d"),
        *("--num-points", points, "--num-rays-per-batch", 512 if tiny else 32768, "--remove-outliers", not tiny),
    ]
    commands["sa3d mesh"] = [
        *("sa3d", "export", "mesh", "--output-dir", out / "mesh", "--method", "tsdf"),
        *("--resolution", 12 if tiny else 256),
    ]
    if method == "nerfacto":
        commands["tsdf"] = [
            *("ns-export", "tsdf", "--output-dir", out / "tsdf", "--resolution", 16 if tiny else 256),
            *("--target-num-faces", 200 if tiny else 50_000, "--num-pixels-per-side", pixels),
        ]
    return commands


def all_parts(options: Options) -> Iterator[Part]:
    """All parts, in order."""
    scenes = [options.scenes / "desk", options.scenes / "fern"]
    if options.tiny:
        from sa3d_nerfstudio.demo.scene import write_scene
        from tests.scenes import TINY, with_points

        scenes = [options.work / "scene"]
        if not scenes[0].exists():
            write_scene(options.work / "plain", TINY)
            with_points(options.work / "plain", scenes[0])
    for scene in scenes:
        for method in options.methods:
            yield from parts_of_run(options, scene.resolve(), method)
    runs = (options.work / "runs").resolve()
    scene, run = scenes[0].resolve(), runs / scenes[0].name / "nerfacto" / "T"
    trained = (f"{scene.name} nerfacto train",)
    paths = ("tests/traces/test_gaussians.py",) if options.tiny else ()
    yield module("tests marked gpu", "pytest", "-m", "gpu", "-q", *paths)
    names = ("ball", "crate") if options.tiny else ("mug", "moka_pot")
    measured = ("--scene", scene, "--run", run, "--objects", *names)
    small = ("--views", 2, "--working-size", 16, "--threshold", TINY_THRESHOLD) if options.tiny else ()
    output = ("--output", options.work / "visits.json")
    yield module("visits", "benchmarks.visits", *measured, *small, *output, after=trained)
    for method in ("nerfacto",) if options.tiny else options.methods:  # the stand-ins are slow at splats
        size = ("--working-size", 16) if options.tiny else ("--encoders", "vit_b", "vit_h")
        yield module(
            f"{method} at real size", "benchmarks.real_size", "--run", runs / scenes[-1].name / method / "T", *size,
            "--output", options.work / f"real-size-{method}.json", after=(f"{scenes[-1].name} {method} train",),
        )  # fmt: skip
    if not options.tiny:
        sizes = ("--working-size", 1008, "--sizes", 126, 252, 504, 1008)
        output = ("--output", options.work / "speed.json")
        yield module("speed", "benchmarks.speed", *measured, *sizes, *output, after=trained)


def module(name: str, *words: object, after: tuple[str, ...] = ()) -> Part:
    """Part that runs a Python module."""
    return Part(name, [sys.executable, "-m", *map(str, words)], after)


def write_table(run: Run, path: Path) -> None:
    """Write the results of all parts so far as a Markdown table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"no GPU ({platform.machine()})"
    lines = [
        f"{device}, torch {torch.__version__}, Python {platform.python_version()}"
        + (", in small, with stand-ins for CUDA's kernels" if run.options.tiny else ""),
        "",
        "| part | | seconds | GPU, MB | host, MB | |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in run.results.items():
        numbers = f"{result.seconds:.1f} | {result.gpu_mb:.0f} | {result.host_mb:.0f}"
        lines.append(f"| {name} | {result.state} | {numbers} | {result.note.replace('|', '/')} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


def main(options: Options) -> int:
    """Run all parts, and return the number of parts that have not passed."""
    console = Console(width=110)
    if not options.tiny and not torch.cuda.is_available():
        console.print("torch finds no GPU here: --tiny runs all parts in small, on a CPU.")
        return 1
    run = Run(options)
    if options.tiny:
        # Imports come before the forks, or each part would repeat them. A process that computes with several threads
        # cannot be forked.
        torch.set_num_threads(1)
        from nerfstudio.scripts import exporter, train  # noqa: F401
        from pathos.helpers import mp

        import sa3d_nerfstudio.commands  # noqa: F401

        # nerfstudio 1.1.5 would spawn the process that reads nerfacto's images: fork it as well.
        mp.set_start_method("fork", force=True)  # type: ignore[attr-defined]
    for part in all_parts(options):
        if options.only and not any(word in part.name for word in options.only):
            continue
        run.carry_out(part)
        result = run.results[part.name]
        console.print(f"{part.name:32} {result.state:9} {result.seconds:7.1f} s  {result.note}", highlight=False)
        write_table(run, options.output)
    return sum(result.state != "passed" for result in run.results.values())


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
