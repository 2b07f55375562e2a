from .segmenter import GrabCutSegmenter

__all__ = ["GrabCutSegmenter"]
