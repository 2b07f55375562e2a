"""Splat files of any program: read, written, converted, and made a nerfstudio run of.

``ply`` reads and writes 3DGS PLY, ``splat_transform`` calls PlayCanvas's program for all other kinds; ``load`` chooses.
``cameras`` reads those that come with a file; ``virtual_cameras`` places others by the ``occupancy`` of space.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
