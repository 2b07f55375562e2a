"""Give a base model masks: which class is mixed into which kind of model."""

from __future__ import annotations

from types import new_class

from nerfstudio.models.base_model import Model
from nerfstudio.models.splatfacto import SplatfactoModel

from sa3d_nerfstudio.fields.objects import MaskObjects
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.models.rays import MaskedModel
from sa3d_nerfstudio.models.splats import MaskedSplatModel

MIXINS: dict[type[Model], type[MaskOutputs]] = {Model: MaskedModel, SplatfactoModel: MaskedSplatModel}
"""What is mixed into the classes derived from each; the most derived one decides. One line for each further kind."""


def with_masks(model: Model, threshold: float, object_background: str) -> MaskOutputs:
    """Give a model mask outputs: its class becomes a subclass of what it was.

    Changing the class of the instance, not wrapping it, keeps it what nerfstudio's tools look for by isinstance.

    Args:
        model: The base model.
        threshold: Probability above which something is on an object.
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
