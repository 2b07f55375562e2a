"""Mask fields: evidence for and against an object in each cell of a scene.

``base`` is the protocol; ``mask_grid`` has voxels around an object, for NeRFs; ``splat_mask`` one cell per Gaussian.
``trilinear`` and ``connected_parts`` are the arithmetic on grids; ``objects`` holds the named fields of a run.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
