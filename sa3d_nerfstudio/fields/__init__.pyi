from .base import MaskField
from .connected_parts import label_parts, large_parts
from .mask_grid import MaskGrid, robust_bounds
from .objects import MaskObjects
from .splat_mask import SplatMask

__all__ = ["MaskField", "MaskGrid", "MaskObjects", "SplatMask", "label_parts", "large_parts", "robust_bounds"]
