from .gaussians import Gaussians
from .ply import read_ply, write_ply
from .splat_transform import convert

__all__ = ["Gaussians", "convert", "read_ply", "write_ply"]
