"""Splat files of any program: read, written, converted, and made a nerfstudio run of.

``gaussians`` is the common form; ``ply`` reads and writes it, ``splat_transform`` converts other formats. ``load`` adds
cameras: those of a file (``cameras``), or virtual ones placed by what the splats fill (``virtual_cameras``,
``occupancy``, ``previews``). ``run`` writes the run.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
