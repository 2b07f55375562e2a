"""The training views of a run: cameras, traces and images, each computed once.

``training_views`` renders them at a working size, as a whole or in windows (``tiles``, ``window_rays``), from
``cameras`` in the poses that the base run has learnt; segmenters see their ``photos``. ``cache`` keeps traces and
embeddings in memory up to a budget, ``disk`` between runs. ``names`` finds a view by the name of its image;
``surface_points`` are the points that the views show of an object.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
