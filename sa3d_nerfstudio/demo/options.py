"""Options of the demo. Nothing heavy is imported here, so that the command's help is quick."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class SceneConfig:
    """Capture of the scene: cameras, images and surface samples."""

    train_views: int = 24
    """Views to train on, all round the objects."""
    test_views: int = 4
    """Views between the training views, for the score only."""
    width: int = 96
    """Width of the images, pixels."""
    height: int = 72
    """Height of the images, pixels."""
    supersample: int = 3
    """Rays along each side of a pixel, whose colour is the mean over their grid."""
    surface_points: int = 2000
    """Number of samples on each object's surface."""
    seed: int = 0
    """Another seed moves the cameras and the surface samples, not the objects."""


@dataclass
class DemoConfig:
    """Segment one object of a synthetic scene from one click, export it, and score it in unseen views."""

    output_dir: Path = Path("demo")
    """Folder for the scene, the runs, the point cloud, the masks and the scores."""
    scene: SceneConfig = field(default_factory=SceneConfig)
    """The scene."""
    steps: int = 900
    """Training steps of nerfacto."""
    object: str = "ball"
    """Object to click on: ball, crate, tin, die_near, die_far or post."""
    segmenter: str = "grabcut"
    """2D segmenter: grabcut needs no weights; sam-vit-b, sam2 and the others fetch theirs on first use; oracle answers
    with the true masks."""
    sam_checkpoint: Path | None = None
    """Weights of the segmenter, as for ns-train sa3d."""
    num_points: int = 20000
    """Points of the exported point cloud."""
