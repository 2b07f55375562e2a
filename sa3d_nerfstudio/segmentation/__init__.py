"""From a prompt in one view to evidence in 3D, view after view.

``session`` is the loop; ``predictor`` runs the 2D segmenter, ``mask_depth`` and ``mask_lifter`` choose the pixels to
lift, ``lifting`` turns them into evidence, ``self_prompting`` and ``view_selection`` choose the next prompts and views,
and ``likelihood`` fits the field to all masks at the end. No module here depends on a model class.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported at their first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
