"""Segment Anything in 3D on any trained nerfstudio model."""

__version__ = "0.1.0"
