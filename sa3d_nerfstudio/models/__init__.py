"""Base models with mask outputs: mixins for the classes of nerfstudio's models.

``outputs`` is common to all kinds of models; ``rays`` is for NeRFs, with ``gating`` and ``signed_distance`` for the
object alone; ``splats`` is for Gaussians. ``attach`` maps each kind of model to its mixin, one line for each kind.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported on first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
