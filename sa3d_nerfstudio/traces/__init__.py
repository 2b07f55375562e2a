"""Traces: the linear map from the cells of a mask field to the pixels of a view, and its adjoint.

``base`` is the protocol: ``render`` is A x, ``backproject`` is A^T y. ``nerf`` reads traces of any NeRF off its depth
renderers, ``compressed`` stores them in 37 bytes a ray, and ``gaussians`` differentiates the splat rasteriser.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
