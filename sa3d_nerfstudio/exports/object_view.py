"""Renders of the objects to export, from cameras of any size, and the share of rays that was rendered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.models.outputs import MaskOutputs, Observation
from sa3d_nerfstudio.terminal import say


@dataclass
class ObjectView:
    """Some objects in one image."""

    objects: Sequence[ExportObject]
    seen: Observation
    """Observation of the objects, in their order."""

    def ids(self, threshold: float) -> Int[Tensor, "height width"]:
        """Id of the most probable object in each pixel, or 0 where no probability exceeds the threshold."""
        ids = torch.tensor([item.id for item in self.objects])[self.seen.index.cpu()]
        return torch.where(self.seen.probability.cpu() > threshold, ids, 0)


@dataclass
class RenderedRays:
    """Number of rays that were rendered for an export, and of all rays of its images."""

    rendered: int = 0
    total: int = 0

    def add(self, passing: Bool[Tensor, "height width"]) -> None:
        """Count the rays of an image, given a mask of the rendered ones."""
        self.rendered, self.total = self.rendered + int(passing.sum()), self.total + passing.numel()

    def summed(self, ranks: Ranks) -> RenderedRays:
        """The counts summed over all processes that share the images."""
        rendered, total = zip(*ranks.gather((self.rendered, self.total)), strict=True)
        return RenderedRays(sum(rendered), sum(total))

    def tell(self) -> None:
        """Print the share of rendered rays, unless all were rendered."""
        if self.rendered < self.total:
            say(f"rendered    {self.rendered / self.total:.1%} of the rays: those that pass an object")


def view_objects(model: MaskOutputs, camera: Cameras, objects: Sequence[ExportObject], threshold: float) -> ObjectView:
    """Render some objects as a camera sees them; see :meth:`MaskOutputs.observe`."""
    return ObjectView(objects, model.observe(camera, [item.field for item in objects], threshold))
