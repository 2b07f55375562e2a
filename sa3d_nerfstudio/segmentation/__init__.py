"""From a prompt in one view to evidence in 3D, view after view.

``session`` is the loop; ``predictor`` asks the 2D segmenter, ``mask_depth`` and ``mask_lifter`` choose the pixels to
lift, ``lifting`` makes evidence of them, ``self_prompting`` and ``view_selection`` decide what comes next, and
``likelihood`` fits the field to all masks at the end. Model classes are unknown here.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
