"""What a camera sees of the objects to export, at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.exports.objects import ExportObject
from sa3d_nerfstudio.models.outputs import MaskOutputs, Observation


@dataclass
class ObjectView:
    """Some objects in one image."""

    objects: Sequence[ExportObject]
    seen: Observation
    """What the camera sees of each, in their order."""

    def ids(self, threshold: float) -> Int[Tensor, "height width"]:
        """Per pixel the id of the most probable object, or 0 where none exceeds the threshold."""
        best, index = self.seen.probability.max(dim=0)
        ids = torch.tensor([item.id for item in self.objects])[index.cpu()]
        return torch.where(best.cpu() > threshold, ids, 0)


def view_objects(model: MaskOutputs, camera: Cameras, objects: Sequence[ExportObject], threshold: float) -> ObjectView:
    """See what of some objects is visible to a camera; see :meth:`MaskOutputs.observe`."""
    return ObjectView(objects, model.observe(camera, [item.field for item in objects], threshold))
