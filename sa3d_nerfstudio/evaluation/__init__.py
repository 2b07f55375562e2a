"""Accuracy of a segmentation: metrics, and benchmarks under their published protocols.

``nvos`` and ``spin_nerf`` read a benchmark's folders as tasks; ``scene_runs`` and ``run_images`` match them to
trained runs. ``benchmark`` runs the tasks, ``metrics`` scores masks and points, ``report`` prints and writes the
table.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
