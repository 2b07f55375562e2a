"""The Segment panel in nerfstudio's viewer.

``panel`` assembles the sections, one module each; ``context`` is their shared state. ``editor`` holds prompts and
masks, ``history`` their undo, ``free_views`` the views of the viewer's camera. ``nerfstudio_viewer`` and
``viser_compat`` adapt to versions of nerfstudio and viser.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
