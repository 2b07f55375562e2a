"""Exports of objects to files: masks, points, boxes, meshes, splats and videos, in formats that other tools read.

``objects`` selects them, ``object_view`` renders them, ``frames`` transforms them to the frame of the run or of the
data set. Each format has one module; ``dataset`` lists the cameras of a data set and writes its transforms.json with
masks.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
