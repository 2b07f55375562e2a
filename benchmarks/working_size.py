"""Gain of small objects by larger images, and the cost of those images.

    python -m benchmarks.working_size --scene ../shared/scenes/desk --run ../shared/runs/desk/nerfacto/cpu

Each object is segmented by one click, in images of the usual size, of the size chosen for it, and of twice the usual
size, and scored at full size in unseen views. The segmenter is the oracle.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.scene import SceneUnderTest
from sa3d_nerfstudio.segmentation.session import SegmentationSession


@dataclass
class Options:
    """Measure the gain by larger images, and their cost."""

    scene: Path
    """Scene folder with instances/ and prompts.json."""
    run: Path
    """Trained run on that scene."""
    objects: tuple[str, ...] = ("domino", "lamp")
    """Objects to segment."""
    views: int | None = None
    """Number of views beside the prompted one; all by default."""
    test_views: int | None = None
    """Number of unseen views to score in; all by default."""
    cache_dir: Path | None = None
    """Folder that keeps renders of the training views for later runs."""


def main(options: Options) -> None:
    """Segment, score, and print a table."""
    scene = SceneUnderTest(
        options.scene,
        options.run,
        most_tests=options.test_views,
        trace_all=False,
        segmenter="oracle",
        num_views=options.views,
        cache_dir=options.cache_dir,
    )
    pipeline, usual = scene.pipeline, scene.views.long_side
    segmenter = pipeline.make_segmenter()
    table = Table("object", "images", "long side", "rays", "render, s", "second time, s", "IoU", "worst IoU")
    for name in options.objects:
        number = next(entry["id"] for entry in scene.entries if entry["name"] == name)
        for what, factor in (("usual", 1.0), ("chosen", None), ("twice", 2.0)):

            def made(name: str = name, factor: float | None = factor) -> SegmentationSession:
                if factor is None:
                    session = pipeline.session(name)
                else:
                    views, embeddings = pipeline.sized(segmenter, factor)
                    grid = pipeline.model.new_field(pipeline.config.resolution)
                    session = SegmentationSession(views, segmenter, grid, pipeline.config, embeddings)
                session.prompt(*scene.prompt(name, "point"))
                session.run()
                return session

            render = made().report.seconds["render"]
            pipeline.views.cache.flush()
            start = perf_counter()
            session = made()
            seconds = perf_counter() - start
            assert session.lifting is not None
            score = scene.score(session.lifting, number)
            trace = session.trace(next(iter(session.prompted)))
            side = max(trace.height, trace.width)
            row = [f"{(side / usual) ** 2:.2f}", f"{render:.1f}", f"{seconds:.2f}"]
            table.add_row(name, what, str(side), *row, f"{score.iou:.4f}", f"{score.worst_iou:.4f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main(tyro.cli(Options))
