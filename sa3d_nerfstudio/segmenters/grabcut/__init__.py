"""GrabCut on colour and depth: masks without network weights.

``segmenter`` is the loop; ``image_cues`` codes colours, depths and edges; ``tv_cut`` solves the cut.
``placed_prompt`` converts a prompt to pixels, and ``region_score`` ranks the candidates.
"""

import lazy_loader

# Public names are listed in __init__.pyi, and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
