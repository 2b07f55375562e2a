from .cameras import SplatCamera, read_cameras
from .gaussians import Gaussians
from .load import read_splats
from .ply import read_ply, write_ply
from .run import write_run
from .source import ImportSource
from .splat_transform import convert
from .virtual_cameras import PlacedCameras, place_cameras

__all__ = [
    "Gaussians",
    "ImportSource",
    "PlacedCameras",
    "SplatCamera",
    "convert",
    "place_cameras",
    "read_cameras",
    "read_ply",
    "read_splats",
    "write_ply",
    "write_run",
]
