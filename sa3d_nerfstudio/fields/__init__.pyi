from .base import MaskField
from .connected_parts import label_parts, large_parts
from .mask_grid import MaskGrid, robust_bounds
from .object_tree import ObjectTree, TreeBuilder, share_inside
from .objects import MaskObjects
from .splat_mask import SplatMask

__all__ = [
    "MaskField",
    "MaskGrid",
    "MaskObjects",
    "ObjectTree",
    "SplatMask",
    "TreeBuilder",
    "label_parts",
    "large_parts",
    "robust_bounds",
    "share_inside",
]
