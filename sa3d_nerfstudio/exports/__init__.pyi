from .boxes import Box, object_box
from .dataset import DataSetFiles, NamedCamera, dataset_cameras, path_cameras
from .frames import Frame, frame_of
from .masks import id_maps, write_coco, write_id_maps, write_masks, write_rgba
from .meshes import marching_cubes_mesh, poisson_mesh, tsdf_mesh, write_mesh
from .objects import ExportObject, all_objects, left_out, select
from .points import ObjectPoints, object_points, scene_points, write_points
from .rim import CleanRim, clean_rim
from .scene_table import object_table, write_object_table
from .splats import SceneSplats, object_ids, write_splats
from .turntable import orbit, write_video

__all__ = [
    "Box",
    "CleanRim",
    "DataSetFiles",
    "ExportObject",
    "Frame",
    "NamedCamera",
    "ObjectPoints",
    "SceneSplats",
    "all_objects",
    "clean_rim",
    "dataset_cameras",
    "frame_of",
    "id_maps",
    "left_out",
    "marching_cubes_mesh",
    "object_box",
    "object_ids",
    "object_points",
    "object_table",
    "orbit",
    "path_cameras",
    "poisson_mesh",
    "scene_points",
    "select",
    "tsdf_mesh",
    "write_coco",
    "write_id_maps",
    "write_masks",
    "write_mesh",
    "write_object_table",
    "write_points",
    "write_rgba",
    "write_splats",
    "write_video",
]
