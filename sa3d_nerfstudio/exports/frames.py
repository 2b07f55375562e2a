"""Transformation from nerfstudio's frame, which is scaled and rotated, back to the data set's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.data.dataparsers.base_dataparser import transform_poses_to_original_space
from nerfstudio.pipelines.base_pipeline import Pipeline
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError


@dataclass
class Frame:
    """The frame of exported objects: nerfstudio's, or the data set's (``world``)."""

    transform: Float[Tensor, "3 4"]
    """Transformation from the data set's frame to nerfstudio's, without the scale."""
    scale: float
    world: bool

    @property
    def name(self) -> str:
        """Name of the frame in files."""
        return "dataset" if self.world else "nerfstudio"

    @property
    def length(self) -> float:
        """Length in this frame of a unit length in nerfstudio's."""
        return 1 / self.scale if self.world else 1.0

    def points(self, positions: Float[Tensor, "num 3"]) -> Float[Tensor, "num 3"]:
        """Transform positions from nerfstudio's frame to this frame."""
        if not self.world:
            return positions
        poses = torch.eye(3, 4, dtype=positions.dtype).repeat(len(positions), 1, 1)
        poses[:, :, 3] = positions.cpu()
        return self._back(poses)[:, :, 3]

    def directions(self, directions: Float[Tensor, "num 3"]) -> Float[Tensor, "num 3"]:
        """Transform directions such as normals from nerfstudio's frame to this frame, with unchanged lengths."""
        if not self.world:
            return directions
        rotation = self._back(torch.eye(3, 4, dtype=directions.dtype)[None])[0, :, :3]
        return directions.cpu() @ rotation.T

    def _back(self, poses: Tensor) -> Tensor:
        # "opengl" leaves the axes as they are; the other convention flips two of them.
        return transform_poses_to_original_space(poses, self.transform.to(poses), self.scale, "opengl")


def frame_of(pipeline: Pipeline, world: bool) -> Frame:
    """The frame to export in.

    Args:
        pipeline: A loaded run.
        world: Export in the data set's frame instead of nerfstudio's.

    Raises:
        SA3DError: The data set's frame is wanted, and the run's data manager does not hold it.
    """
    outputs: Any = getattr(pipeline.datamanager, "train_dataparser_outputs", None)
    if outputs is None:
        if world:
            raise SA3DError("this run does not tell its data set's frame: leave out --save-world-frame.")
        return Frame(torch.eye(3, 4), 1.0, False)
    return Frame(outputs.dataparser_transform, float(outputs.dataparser_scale), world)
