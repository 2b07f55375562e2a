"""Options of all benchmarks. Nothing heavy is imported here, so that a command's help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(kw_only=True)
class BenchmarkOptions:
    """Data, runs and settings of a benchmark."""

    data: Path
    """The data set's folder, as published."""
    runs: str
    """Folder with SCENE/METHOD/TIME below it, as ns-train writes; or a path with {scene} in it."""
    scenes: tuple[str, ...] = ()
    """Scenes to evaluate; by default all."""
    method: str | None = None
    """Method of the runs; needed where a scene has runs of several methods."""
    segmenter: str = "sam-vit-h"
    """2D segmenter, as for ns-train sa3d."""
    sam_checkpoint: Path | None = None
    """Weights of the Segment Anything model."""
    oracle_instances: Path | None = None
    """For the segmenter oracle: folder of id maps named like the images; may have {scene} in it."""
    working_size: int | None = None
    """Longer side of the images in which views are segmented; by default 1008 on CUDA and 160 on a CPU."""
    settings: tuple[str, ...] = ()
    """Settings of segmentation and lifting, as NAME=VALUE by the names of ns-train sa3d's options: num_prompts=10
    max_passes=1."""
    device: Literal["cuda", "cpu"] | None = None
    """Device to compute on; by default CUDA, if there is such a device."""
    output: Path | None = None
    """JSON file of the report, rewritten after each scene."""
    masks: Path | None = None
    """Folder to write the masks to: SCENE/IMAGE.png, 255 = object, at the size of the true masks."""
