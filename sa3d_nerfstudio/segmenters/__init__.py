"""2D segmenters: embed an image once, predict masks for many prompts.

``base`` is the protocol and ``registry`` finds segmenters by name, plugins included. Segmenters: ``sam``,
``mobile_sam``, ``huggingface`` (SAM 2, SAM 3, SAM-HQ), ``grabcut``, ``oracle``. ``text`` detects boxes or masks for
words. ``weights`` and ``download`` fetch checkpoints.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
