"""Objects as files: masks, points, boxes, meshes, splats and videos, in forms that other tools read.

``objects`` chooses which, ``object_view`` renders them, ``frames`` places them in the frame of the run or of the data
set. One module for each form; ``dataset`` lists the cameras of a data set and writes its transforms.json with masks.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
