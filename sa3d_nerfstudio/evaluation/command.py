"""The command line of the benchmarks: ``sa3d evaluate nvos`` and ``sa3d evaluate spin-nerf``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.console import Console

from sa3d_nerfstudio.evaluation import benchmark, nvos, spin_nerf
from sa3d_nerfstudio.evaluation.benchmark import BenchmarkOptions, run_benchmark
from sa3d_nerfstudio.evaluation.report import BenchmarkReport
from sa3d_nerfstudio.segmentation.scribbles import SEED


@dataclass
class NvosEvaluation(BenchmarkOptions):
    """NVOS: scribbles on one image of each scene, scored in one other."""

    seed: int = SEED
    """Of the generator that draws the prompts' points from the scribbles."""

    def main(self, console: Console | None = None) -> BenchmarkReport:
        """Run the benchmark.

        Raises:
            SA3DError: The data set or the runs are not as they must be.
        """
        tasks = nvos.nvos_tasks(self.data, self.scenes, self.seed)
        rules = (*nvos.RULES, *benchmark.RULES)
        report = BenchmarkReport("NVOS", nvos.SCENES, rules, asdict(self), self.seed)
        run_benchmark(tasks, self, report, console or Console())
        return report


@dataclass
class SpinNerfEvaluation(BenchmarkOptions):
    """SPIn-NeRF: the true mask of one image of each scene, to be found again in all others."""

    def main(self, console: Console | None = None) -> BenchmarkReport:
        """Run the benchmark.

        Raises:
            SA3DError: The data set or the runs are not as they must be.
        """
        tasks = spin_nerf.spin_nerf_tasks(self.data, self.scenes)
        rules = (*spin_nerf.RULES, *benchmark.RULES)
        report = BenchmarkReport("SPIn-NeRF", spin_nerf.SCENES, rules, asdict(self))
        run_benchmark(tasks, self, report, console or Console())
        return report


Evaluation = (
    Annotated[NvosEvaluation, tyro.conf.subcommand("nvos")]
    | Annotated[SpinNerfEvaluation, tyro.conf.subcommand("spin-nerf")]
)
"""The benchmarks as subcommands, each with ``main()``."""
