"""Scores of a benchmark, as a table and as JSON."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from sa3d_nerfstudio.files import atomic_path
from sa3d_nerfstudio.terminal import say

METRICS = ("iou", "accuracy", "boundary_iou")
PACKAGES = ("sa3d-nerfstudio", "nerfstudio", "torch", "numpy", "segment-anything", "gsplat")


@dataclass(frozen=True)
class ImageScore:
    """Scores of one image's mask against its true mask."""

    image: str
    iou: float
    accuracy: float
    """Share of the pixels, background included, that are classified correctly."""
    boundary_iou: float
    is_reference: bool
    """Whether it is the prompted image."""
    trained_on: bool
    """Whether it is a training image of the run."""


@dataclass
class SceneScore:
    """Scores of one scene of a benchmark."""

    scene: str
    run: str
    """The config.yml of its trained run."""
    images: list[ImageScore]
    reference: str
    """The prompted image."""
    prompt: dict[str, int]
    """Size of the prompt: positive and negative points, or pixels of the mask."""
    views: dict[str, int]
    """Number of training views by state, such as used, rejected and skipped."""
    working_size: int
    """Longer side of the images in which views were segmented."""
    seconds: float
    """Seconds to render, segment and lift the training views, without scoring."""

    def mean(self, with_reference: bool = True) -> dict[str, float] | None:
        """Mean of each metric over the images; None without images."""
        images = [image for image in self.images if with_reference or not image.is_reference]
        if not images:
            return None
        return {name: float(np.mean([getattr(image, name) for image in images])) for name in METRICS}

    @property
    def scores_reference(self) -> bool:
        """Whether the prompted image is among the scored ones."""
        return any(image.is_reference for image in self.images)


@dataclass
class BenchmarkReport:
    """Scores of all scenes of a benchmark."""

    benchmark: str
    published: Sequence[str]
    """All scenes of the published tables."""
    rules: Sequence[str]
    """Rules of the protocol."""
    seed: int | None = None
    """Seed of the prompts' points, where the protocol draws them."""
    settings: dict[str, Any] = field(default_factory=dict)
    """All options of the command."""
    scenes: list[SceneScore] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """Scenes without a run, and the folder searched."""
    failed: dict[str, str] = field(default_factory=dict)
    """Failed scenes, and the reasons."""

    @property
    def is_complete(self) -> bool:
        """Whether all scenes of the published tables are scored, so that the mean is comparable with theirs."""
        return {scene.scene for scene in self.scenes} == set(self.published)

    def summary(self) -> dict[str, Any]:
        """Mean over the scenes, and the worst scene; with and without the prompted image where it is scored."""
        if not self.scenes:
            return {}
        means = {scene.scene: scene.mean() for scene in self.scenes}
        means_without_reference = {scene.scene: scene.mean(with_reference=False) for scene in self.scenes}
        result: dict[str, Any] = {"mean": _mean(means), "worst": _worst(means)}
        if any(scene.scores_reference for scene in self.scenes):
            result |= {
                "mean_without_reference": _mean(means_without_reference),
                "worst_without_reference": _worst(means_without_reference),
            }
        return result

    def as_dict(self) -> dict[str, Any]:
        """The whole report, for JSON."""
        scenes = []
        for scene in self.scenes:
            entry = asdict(scene) | {"mean": scene.mean()}
            if scene.scores_reference:
                entry["mean_without_reference"] = scene.mean(with_reference=False)
            scenes.append(entry)
        return {
            "benchmark": self.benchmark,
            "complete": self.is_complete,
            **self.summary(),
            "rules": list(self.rules),
            "seed": self.seed,
            "settings": self.settings,
            "command": shlex.join(sys.argv),
            "versions": versions(),
            "scenes": scenes,
            "missing": self.missing,
            "failed": self.failed,
        }

    def write(self, path: Path) -> None:
        """Write the JSON file."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1, default=str) + "\n", "utf8")

    def print(self, console: Console) -> None:
        """Print the table and its caveats."""
        both = any(scene.scores_reference for scene in self.scenes)
        table = Table("scene", "images", "IoU", "accuracy", "boundary IoU", title=f"{self.benchmark}, %")
        if both:
            table.add_column("IoU, not counting the reference")
        table.add_column("worst image")
        for scene in self.scenes:
            worst = min(scene.images, key=lambda image: image.iou)
            table.add_row(
                scene.scene,
                str(len(scene.images)),
                *_figures(scene.mean(), scene.mean(with_reference=False), both),
                f"{100 * worst.iou:.1f} {worst.image}",
            )
        summary = self.summary()
        if summary:
            table.add_section()
            means = _figures(summary["mean"], summary.get("mean_without_reference"), both)
            table.add_row(f"mean of {len(self.scenes)}", "", *means)
            table.add_row(f"worst: {summary['worst']['scene']}", "", f"{100 * summary['worst']['iou']:.1f}")
        console.print(table)
        for scene, reason in {**self.missing, **self.failed}.items():
            kind = "missing" if scene in self.missing else "failed"
            say(f"{kind:<8}{scene}: {reason}", console)
        if not self.is_complete:
            console.print(
                f"{len(self.scenes)} of the {len(self.published)} scenes: not to be compared with published means.",
                highlight=False,
            )
        if self.seed is not None:
            console.print(f"seed {self.seed}", highlight=False)


def versions() -> dict[str, str]:
    """Versions of the packages used."""
    environment = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            environment[name] = version(name)
        except PackageNotFoundError:
            environment[name] = "not installed"
    environment["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return environment


def _figures(every: dict[str, float] | None, others: dict[str, float] | None, both: bool) -> list[str]:
    assert every is not None
    cells = [f"{100 * every[name]:.1f}" for name in METRICS]
    return [*cells, f"{100 * others['iou']:.1f}" if others else ""] if both else cells


def _mean(scores: dict[str, dict[str, float] | None]) -> dict[str, float] | None:
    present = [score for score in scores.values() if score is not None]
    return {name: float(np.mean([score[name] for score in present])) for name in METRICS} if present else None


def _worst(scores: dict[str, dict[str, float] | None]) -> dict[str, Any] | None:
    ious = {scene: score["iou"] for scene, score in scores.items() if score is not None}
    return {"scene": min(ious, key=lambda scene: ious[scene]), "iou": min(ious.values())} if ious else None
