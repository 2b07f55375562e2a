from .attach import MIXINS, with_masks
from .gating import gated_density
from .outputs import LazyOutputs, MaskOutputs, Observation
from .rays import MaskedModel
from .signed_distance import ObjectSDF
from .splats import MaskedSplatModel

__all__ = [
    "MIXINS",
    "LazyOutputs",
    "MaskOutputs",
    "MaskedModel",
    "MaskedSplatModel",
    "ObjectSDF",
    "Observation",
    "gated_density",
    "with_masks",
]
