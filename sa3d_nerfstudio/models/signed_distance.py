"""A field of signed distances, cut to the objects for callers outside the model."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import new_class
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.fields.sdf_field import SDFField
from scipy import ndimage
from torch import Tensor

from sa3d_nerfstudio.fields.mask_grid import RIM_WIDTH, MaskGrid
from sa3d_nerfstudio.scoped import scoped

if TYPE_CHECKING:
    from sa3d_nerfstudio.models.outputs import MaskOutputs

Result = TypeVar("Result")

_Base = SDFField if TYPE_CHECKING else object
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


def whole_scene(render: Callable[[], Result]) -> Result:
    """Render with fields that are not cut to the objects; for the model's own renders."""
    return scoped(_WHOLE, True, render)


class ObjectSDF(_Base):
    """Mixin for the class of a model's field.

    ``ns-export marching-cubes`` calls ``model.field.forward_geonetwork`` directly and takes the zero level of its first
    column as the surface. For this call, unlike the model's own renders, the distance is that of the scene intersected
    with the objects (the larger of two signed distances), so that their surface alone is found.
    """

    sa3d_model: tuple[MaskOutputs]
    """The model with masks; in a tuple, so that torch does not register it as a submodule of the field."""

    def forward_geonetwork(self, inputs: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch geo_features+1"]:
        """Signed distance, and features.

        Raises:
            SA3DError: An exporter calls this, and no object is shown.
        """
        outputs = super().forward_geonetwork(inputs)
        if _WHOLE.get():
            return outputs
        (model,) = self.sa3d_model
        model.require_object()
        fields = [cast(MaskGrid, field) for field in model.masks.shown]
        outside = torch.stack([signed_distance_to(field, inputs, model.mask_threshold) for field in fields]).amin(0)
        return torch.cat([torch.maximum(outputs[..., :1], outside.to(outputs)), outputs[..., 1:]], dim=-1)


def signed_distance_to(
    grid: MaskGrid, positions: Float[Tensor, "*batch 3"], threshold: float
) -> Float[Tensor, "*batch 1"]:
    """Approximate signed distance to the surface where a grid's probability equals the threshold; never much larger.

    Its sign is that of ``threshold - probability``. Marching cubes that refine only where a distance is small
    need more than the sign: the probability may rise from 0 to 1 between two of their coarsest points.

    Args:
        grid: Mask field of the object.
        positions: World positions.
        threshold: Probability above which a position is on the object.

    Returns:
        Distances in world units, negative inside the object.
    """
    r = grid.resolution
    cell = 2 * float(grid.half_extent.max()) * (1 + RIM_WIDTH) / (r - 1)

    def whole_cells() -> Tensor:
        inside = (grid.filled_probability(threshold) > threshold).reshape(r, r, r).cpu().numpy()
        if not inside.any():
            return torch.full_like(grid.hit, r).reshape(-1, 1)
        inner, outer = (np.asarray(ndimage.distance_transform_edt(region)) for region in (inside, ~inside))
        return torch.from_numpy(inner + outer).to(grid.hit).reshape(-1, 1)

    far = grid.gather(grid.derived(("distance", threshold), whole_cells), positions.reshape(-1, 3)) - 1
    across = threshold - grid.probability_at(positions, threshold)
    # The distance follows from the probability within a cell of the surface, and from the number of cells beyond.
    return across.sign() * torch.maximum(across.abs(), far.reshape(across.shape)) * cell


def cut_to_objects(field: SDFField, model: MaskOutputs) -> None:
    """Make a field an :class:`ObjectSDF` of a model's objects."""
    field.__class__ = new_class(f"SA3D{type(field).__name__}", (ObjectSDF, type(field)))
    assert isinstance(field, ObjectSDF)
    field.sa3d_model = (model,)
