"""The demo: a synthetic scene, from images to an exported object, scored against the truth.

``scene`` writes the data set, ray-traced by ``tracer`` from ``layout``, ``solids`` and ``textures``; ``prompts``
places clicks. ``run`` runs the commands that a user would type, in ``stages``: ``train``, ``ns-train sa3d``,
``ns-export``, ``score``.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
