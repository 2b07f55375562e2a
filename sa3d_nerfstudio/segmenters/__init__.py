"""2D segmenters: embed an image once, predict masks for many prompts.

``base`` is the protocol and ``registry`` finds segmenters by name, plugins included. One module each: ``sam``,
``mobile_sam``, ``huggingface`` (SAM 2, SAM-HQ), ``grabcut``, ``oracle``; ``text`` finds boxes for words. ``weights``
and ``download`` get files.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
