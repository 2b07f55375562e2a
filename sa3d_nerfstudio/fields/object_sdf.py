"""A field of signed distances, cut to the objects for whoever asks from outside the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import new_class
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from nerfstudio.fields.sdf_field import SDFField
from torch import Tensor

if TYPE_CHECKING:
    from sa3d_nerfstudio.mask_outputs import MaskOutputs

_Base = SDFField if TYPE_CHECKING else object
_WHOLE: ContextVar[bool] = ContextVar("whole", default=False)


@contextmanager
def whole_scene() -> Iterator[None]:
    """While this lasts, fields are those of the whole scene: the model renders."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class ObjectSDF(_Base):
    """What is added to the class of a model's field.

    ``ns-export marching-cubes`` calls ``model.field.forward_geonetwork`` itself and takes the zero level of its first
    column for the surface. From there, as opposed to the model's own rendering, the distance is that of the scene
    intersected with the objects (the larger of two signed distances), so that their surface alone is found.
    """

    sa3d_model: tuple[MaskOutputs]
    """The model with masks; in a tuple, so that torch does not take it for a part of the field."""

    def forward_geonetwork(self, inputs: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch geo_features+1"]:
        """Signed distance, and features.

        Raises:
            SA3DError: An exporter asks, and there is no object.
        """
        outputs = super().forward_geonetwork(inputs)
        if _WHOLE.get():
            return outputs
        (model,) = self.sa3d_model
        model.require_object()
        # Crosses zero where the probability crosses the threshold; only its sign matters for the surface.
        outside = model.mask_threshold - model.masks.probability_at(inputs)
        return torch.cat([torch.maximum(outputs[..., :1], outside.to(outputs)), outputs[..., 1:]], dim=-1)


def cut_to_objects(field: SDFField, model: MaskOutputs) -> None:
    """Make a field an :class:`ObjectSDF` of a model's objects."""
    field.__class__ = new_class(f"SA3D{type(field).__name__}", (ObjectSDF, type(field)))
    assert isinstance(field, ObjectSDF)
    field.sa3d_model = (model,)
