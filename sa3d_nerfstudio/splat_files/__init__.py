"""Splat files of any program: read, written, converted, and imported as nerfstudio runs.

``gaussians`` is the common form; ``ply`` reads and writes it, ``splat_transform`` converts other formats, ``load``
reads any of them. Cameras come from a file (``cameras``), or are virtual and placed by the space that the splats fill
(``virtual_cameras``, ``occupancy``, ``previews``). ``run`` writes the run, with
its ``source``.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
