"""Splat files of any program: read, written, converted, and made a nerfstudio run of."""

from sa3d_nerfstudio.splat_files.gaussians import Gaussians
from sa3d_nerfstudio.splat_files.ply import read_ply, write_ply
from sa3d_nerfstudio.splat_files.splat_transform import convert

__all__ = ["Gaussians", "convert", "read_ply", "write_ply"]
