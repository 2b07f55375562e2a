"""``sa3d evaluate``: benchmarks under their published protocols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Union

import tyro

from sa3d_nerfstudio.evaluation.options import BenchmarkOptions

if TYPE_CHECKING:
    from sa3d_nerfstudio.evaluation.report import BenchmarkReport


@dataclass(kw_only=True)
class NvosEvaluation(BenchmarkOptions):
    """NVOS: scribbles on one image of each scene, scored in one other image."""

    seed: int = 777
    """Seed of the generator that draws the prompts' points from the scribbles."""

    def run(self) -> BenchmarkReport:
        """Run the benchmark.

        Raises:
            SA3DError: The data set or the runs cannot be used.
        """
        from sa3d_nerfstudio.evaluation import benchmark, nvos
        from sa3d_nerfstudio.evaluation.report import BenchmarkReport

        tasks = nvos.nvos_tasks(self.data, self.scenes, self.seed)
        report = BenchmarkReport("NVOS", nvos.SCENES, (*nvos.RULES, *benchmark.RULES), self.seed)
        benchmark.run_benchmark(tasks, self, report)
        return report


@dataclass(kw_only=True)
class SpinNerfEvaluation(BenchmarkOptions):
    """SPIn-NeRF: the true mask of one image of each scene, to be found again in all others."""

    def run(self) -> BenchmarkReport:
        """Run the benchmark.

        Raises:
            SA3DError: The data set or the runs cannot be used.
        """
        from sa3d_nerfstudio.evaluation import benchmark, spin_nerf
        from sa3d_nerfstudio.evaluation.report import BenchmarkReport

        tasks = spin_nerf.spin_nerf_tasks(self.data, self.scenes)
        report = BenchmarkReport("SPIn-NeRF", spin_nerf.SCENES, (*spin_nerf.RULES, *benchmark.RULES))
        benchmark.run_benchmark(tasks, self, report)
        return report


Benchmarks = Union[
    Annotated[NvosEvaluation, tyro.conf.subcommand(name="nvos")],
    Annotated[SpinNerfEvaluation, tyro.conf.subcommand(name="spin-nerf")],
]


@dataclass
class Evaluate:
    """Score trained runs on a benchmark under its published protocol: nvos or spin-nerf."""

    benchmark: Benchmarks

    def main(self) -> None:
        """Run the benchmark."""
        self.benchmark.run()
