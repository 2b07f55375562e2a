"""``sa3d export``: points, meshes, splats and boxes of objects, and a table of them all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Union

import tyro

from sa3d_nerfstudio.commands.common import OfRun
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say


@dataclass(kw_only=True)
class Exporter(OfRun):
    """Options of all exports."""

    output_dir: Path
    """Folder to write to; files are called after the objects."""
    together: bool = False
    """All objects in one file, all.*, instead of one file for each."""


@dataclass(kw_only=True)
class Points(Exporter):
    """Write points on objects as PLY, with normals, colours, probability and object id."""

    num_points: int = 100_000
    """Points of each object, at most. Rays are rendered for more than that: take less where that is slow."""
    save_world_frame: bool = False
    """Place them in the data set's frame, not in nerfstudio's, which is turned and scaled."""

    def main(self) -> None:
        """Write them."""
        if self.num_points < 1:
            raise SA3DError("--num-points is to be at least 1.")
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.points import ObjectPoints, object_points, write_points

        frame = frame_of(pipeline, self.save_world_frame)
        parts = {item.stem: object_points(pipeline, item, objects, self.num_points) for item in objects}
        if self.together:
            parts = {"all": ObjectPoints.joined(list(parts.values()))}
        for stem, points in parts.items():
            path = self.output_dir / f"{stem}.ply"
            write_points(path, points, frame)
            say(f"saved       {path}: {len(points.positions)} points in the frame of the {_whose(frame.world)}")


@dataclass(kw_only=True)
class Mesh(Exporter):
    """Write meshes of objects as PLY, and as GLB to look at."""

    method: Literal["poisson", "tsdf", "marching-cubes"] = "poisson"
    """Poisson reconstruction from points (any run), nerfstudio's fusion of depth images (NeRFs), or its marching cubes
    (neus and other models of signed distances)."""
    format: Literal["both", "ply", "glb"] = "both"
    """GLB has y upwards, as its viewers expect."""
    num_points: int = 100_000
    """For Poisson, points of each object to reconstruct from; for marching cubes, to take colours from."""
    depth: int = 7
    """For Poisson, depth of the octree: one more is twice as fine."""
    resolution: int | None = None
    """For TSDF and marching cubes, cells along each axis of the object's box; 128 and 512 by default."""
    downscale_factor: int = 2
    """For TSDF, how much smaller than the training images the depth images are."""
    save_world_frame: bool = False
    """Place them in the data set's frame, not in nerfstudio's, which is turned and scaled."""

    def main(self) -> None:
        """Write them."""
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports import meshes
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.points import ObjectPoints, object_points

        frame = frame_of(pipeline, self.save_world_frame)
        groups = {"all": objects} if self.together else {item.stem: [item] for item in objects}
        for stem, group in groups.items():
            if self.method == "tsdf":
                mesh = meshes.tsdf_mesh(pipeline, group, self.resolution or 128, self.downscale_factor)
            else:
                parts = [object_points(pipeline, item, objects, self.num_points) for item in group]
                points = ObjectPoints.joined(parts)
                if self.method == "poisson":
                    mesh = meshes.poisson_mesh(points, self.depth)
                else:
                    mesh = meshes.marching_cubes_mesh(pipeline, group, self.resolution or 512, points)
            for suffix in ("ply", "glb") if self.format == "both" else (self.format,):
                path = self.output_dir / f"{stem}.{suffix}"
                meshes.write_mesh(path, mesh, frame)
                say(f"saved       {path}: {len(mesh.faces)} faces in the frame of the {_whose(frame.world)}")


@dataclass(kw_only=True)
class Splats(Exporter):
    """Write the splats of objects of a Gaussian run as PLY, by nerfstudio's own exporter."""

    def main(self) -> None:
        """Write them."""
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports.splats import write_splats

        groups = {"all": objects} if self.together else {item.stem: [item] for item in objects}
        for stem, group in groups.items():
            path = self.output_dir / f"{stem}.ply"
            write_splats(path, pipeline, group, self.load_config)
            say(f"saved       {path}")


@dataclass(kw_only=True)
class Box(OfRun):
    """Write oriented boxes around objects as JSON, and print them as options of ns-export."""

    output_dir: Path
    """Folder to write boxes.json to."""
    tilted: bool = False
    """Let boxes lean, if that makes them smaller; by default they stand upright."""
    save_world_frame: bool = False
    """Place them in the data set's frame. The options of ns-export are in nerfstudio's frame, and are printed so."""

    def main(self) -> None:
        """Write them."""
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports.boxes import object_box
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.files import write_json

        frame = frame_of(pipeline, self.save_world_frame)
        entries = []
        for item in objects:
            box = object_box(item.field, pipeline.config.threshold, self.tilted)
            entries.append({"name": item.name, "id": item.id, **box.moved(frame).numbers()})
            say(f"{item.name}")
            say(f"  pointcloud, poisson, gaussian-splat:  {box.options()}")
            say(f"  tsdf, marching-cubes:                 {box.bounding_options()}")
        path = self.output_dir / "boxes.json"
        write_json(path, {"frame": frame.name, "objects": entries})
        say(f"saved       {path}")


@dataclass(kw_only=True)
class Table(OfRun):
    """Write objects.json: all objects, hidden ones included, with what they are parts of, their boxes and sizes."""

    output_dir: Path
    """Folder to write it to."""
    save_world_frame: bool = False
    """Place boxes in the data set's frame, not in nerfstudio's, which is turned and scaled."""

    def main(self) -> None:
        """Write it."""
        pipeline, _ = self.load(self.output_dir)
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.scene_table import write_object_table

        path = self.output_dir / "objects.json"
        write_object_table(path, pipeline.model.masks, frame_of(pipeline, self.save_world_frame))
        say(f"saved       {path}")


def _whose(world: bool) -> str:
    return "data set" if world else "run (nerfstudio's)"


Exports = Union[
    Annotated[Points, tyro.conf.subcommand(name="points")],
    Annotated[Mesh, tyro.conf.subcommand(name="mesh")],
    Annotated[Splats, tyro.conf.subcommand(name="splats")],
    Annotated[Box, tyro.conf.subcommand(name="box")],
    Annotated[Table, tyro.conf.subcommand(name="table")],
]


@dataclass
class Export:
    """Write objects in 3D: points, mesh, splats, box or a table of all."""

    what: Exports

    def main(self) -> None:
        """Write them."""
        self.what.main()
