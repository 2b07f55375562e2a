"""Base models with mask outputs: the classes that are mixed into nerfstudio's own.

``outputs`` is what all kinds share; ``rays`` is for NeRFs, with ``gating`` and ``signed_distance`` for the object
alone; ``splats`` is for Gaussians. ``attach`` says which is mixed into which, one line for each kind.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
