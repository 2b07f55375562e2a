"""Add mask outputs to a base model: the mixin for each kind of model."""

from __future__ import annotations

from types import new_class

from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.models.splats import MaskedSplatModel

MIXINS: dict[type[Model], type[MaskOutputs]] = {Model: MaskedModel, SplatfactoModel: MaskedSplatModel}
"""Mixin for the classes derived from each base class; the most derived one decides. A further kind takes one line."""


def with_masks(model: Model, threshold: float, object_background: str) -> MaskOutputs:
    """Add mask outputs to a model: its class becomes a subclass of its former class.

    The instance's class is changed, instead of wrapping the instance, so that isinstance checks in nerfstudio's tools
    hold.

    Args:
        model: The base model.
        threshold: Probability above which a cell or pixel belongs to an object.
        object_background: Name of the colour behind the object in ``object_rgb``.
    """
    kind = type(model)
    mixin = next(MIXINS[base] for base in kind.__mro__ if base in MIXINS)
    model.__class__ = new_class(f"SA3D{kind.__name__}", (mixin, kind))
    assert isinstance(model, MaskOutputs)
    model.masks = MaskObjects(model.field_with_cells)
    model.mask_threshold = threshold
    model.object_background = object_background
    model.prepare_masks()
    return model
