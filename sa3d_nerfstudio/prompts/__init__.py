"""Prompts: points, boxes, scribbles, masks and words that select an object in an image.

``prompt`` is the segmenters' form, tensors in pixels; ``view_prompt`` is the viewer's, marks that can be undone.
``config`` reads prompts from options and JSON; ``images`` reads painted masks and scribbles.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported at their first use.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
