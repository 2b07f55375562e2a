"""``sa3d export``: points, meshes, splats and boxes of objects, and a table of them all."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import tyro

from sa3d_nerfstudio.commands.common import RunOptions
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.terminal import say

if TYPE_CHECKING:
    from sa3d_nerfstudio.exports.splats import SceneSplats
    from sa3d_nerfstudio.pipeline import SA3DPipeline

WHOLE = ("all", "background", "scene")
"""Values of --object for splats, besides names: all objects, the scene without them, the whole scene."""


@dataclass(kw_only=True)
class Exporter(RunOptions):
    """Options of all exports."""

    output_dir: Path
    """Folder to write to; files are called after the objects."""
    together: bool = False
    """All objects in one file, all.*, instead of one file for each."""


@dataclass(kw_only=True)
class Points(Exporter):
    """Write points on objects as PLY, with normals, colours, probability and object id."""

    num_points: int = 100_000
    """Points of each object, at most. More rays than that are rendered: choose fewer where this is slow."""
    save_world_frame: bool = False
    """Place points in the data set's frame, not in nerfstudio's, which is turned and scaled."""
    labelled: bool = False
    """The whole scene as one cloud, scene.ply, whose object_id is 0 off the objects, and objects.json; --num-points
    then counts the points of the scene."""

    def main(self) -> None:
        """Write the points."""
        if self.num_points < 1:
            raise SA3DError("--num-points is to be at least 1.")
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.points import ObjectPoints, object_points, scene_points, write_points
        from sa3d_nerfstudio.exports.scene_table import write_object_table

        frame = frame_of(pipeline, self.save_world_frame)
        if self.labelled:
            points, path = scene_points(pipeline, objects, self.num_points), self.output_dir / "scene.ply"
            write_points(path, points, frame)
            table = self.output_dir / "objects.json"
            write_object_table(table, pipeline.model.masks, frame)
            num_labelled = int((points.object_id > 0).sum())
            say(f"saved       {path}: {len(points.positions)} points, {num_labelled} on objects; named in {table}")
            return
        clouds = {item.stem: object_points(pipeline, item, objects, self.num_points) for item in objects}
        if self.together:
            clouds = {"all": ObjectPoints.joined(list(clouds.values()))}
        for stem, points in clouds.items():
            path = self.output_dir / f"{stem}.ply"
            write_points(path, points, frame)
            say(f"saved       {path}: {len(points.positions)} points in the frame of the {_frame_owner(frame.world)}")


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
    """For TSDF and marching cubes, cells along each axis of the object's box; 128 and 512 by default, for marching
    cubes a multiple of 512."""
    downscale_factor: int = 2
    """For TSDF, how much smaller than the training images the depth images are."""
    save_world_frame: bool = False
    """Place meshes in the data set's frame, not in nerfstudio's, which is turned and scaled."""

    def main(self) -> None:
        """Write the meshes."""
        pipeline, objects = self.load(self.output_dir)
        from sa3d_nerfstudio.exports import meshes
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.points import ObjectPoints, object_points

        if self.method == "marching-cubes":
            meshes.signed_distances(pipeline, self.resolution or 512)
        frame = frame_of(pipeline, self.save_world_frame)
        groups = {"all": objects} if self.together else {item.stem: [item] for item in objects}
        for stem, group in groups.items():
            if self.method == "tsdf":
                mesh = meshes.tsdf_mesh(pipeline, group, self.resolution or 128, self.downscale_factor)
            else:
                clouds = [object_points(pipeline, item, objects, self.num_points) for item in group]
                points = ObjectPoints.joined(clouds)
                if self.method == "poisson":
                    mesh = meshes.poisson_mesh(points, self.depth)
                else:
                    mesh = meshes.marching_cubes_mesh(pipeline, group, self.resolution or 512, points)
            for suffix in ("ply", "glb") if self.format == "both" else (self.format,):
                path = self.output_dir / f"{stem}.{suffix}"
                meshes.write_mesh(path, mesh, frame)
                say(f"saved       {path}: {len(mesh.faces)} faces in the frame of the {_frame_owner(frame.world)}")


@dataclass(kw_only=True)
class Splats(Exporter):
    """Write splats of a Gaussian run: of objects, or with --object all, background or scene, of all objects in one
    file, of the scene without them, or of the whole scene."""

    format: Literal["ply", "compressed.ply", "spz", "sog", "glb", "html"] = "ply"
    """All but ply need splat-transform. html is a page that shows the splats by itself."""
    labelled: bool = False
    """The whole scene as one PLY, scene.ply, with the id of its object as object_id of each splat, and objects.json."""
    center: bool = False
    """Each object at its own origin, and upright as viewers of splats expect it: y downwards."""
    clean_rim: bool = True
    """Leave out an object's splats that reach far out of its mask, if the object alone fits it better without them."""

    def main(self) -> None:
        """Write the splats."""
        if self.labelled and (self.format != "ply" or self.center or self.object):
            raise SA3DError("--labelled writes the whole scene as a PLY: leave out --format, --center and --object.")
        from sa3d_nerfstudio.exports.splats import SceneSplats, centered, check_format, write_splats

        check_format(self.format)
        pipeline = self.load_run(self.output_dir)
        scene = SceneSplats.of(pipeline)
        if self.labelled:
            self._write_labelled(pipeline, scene)
            return
        for stem, keep, is_object in self._groups(pipeline, scene):
            gaussians = scene.gaussians[keep]
            if self.center and is_object:
                gaussians = centered(gaussians, scene.up)
            path = self.output_dir / f"{stem}.{self.format}"
            comments = [] if self.center else scene.comments
            write_splats(path, gaussians, comments=comments)
            say(f"saved       {path}: {len(gaussians)} splats")

    def _groups(self, pipeline: SA3DPipeline, scene: SceneSplats) -> Iterator[tuple[str, Any, bool]]:
        """Name of each file without suffix, mask of its splats, and whether they belong to objects."""
        masks = pipeline.model.masks
        special = [name for name in self.object if name in WHOLE and name not in masks]
        names = tuple(name for name in self.object if name not in special)
        selections = {}
        if names or not special or special != ["scene"]:
            from sa3d_nerfstudio.exports.rim import clean_rim
            from sa3d_nerfstudio.exports.splats import object_ids

            objects = self.choose(pipeline, names)
            ids = object_ids(pipeline, objects)
            if "background" in special:
                yield "background", scene.valid & (ids == 0), False
            for item in objects:
                mask: Any = item.field
                keep = scene.valid & mask.selected(pipeline.config.threshold).cpu().numpy()
                if self.clean_rim and (names or not special or "all" in special):
                    cleaned = clean_rim(pipeline, item, scene.gaussians, keep)
                    keep = cleaned.keep
                    if cleaned.before is not None:
                        say(
                            f"rim         {item.name}: {cleaned.removed} splats left out, IoU with the mask "
                            f"{cleaned.before:.4f} -> {cleaned.after:.4f}"
                        )
                    else:
                        say(f"rim         {item.name}: as it is, for {cleaned.reason}")
                selections[item.stem] = keep
        if "scene" in special:
            yield "scene", scene.valid, False
        if "all" in special or (self.together and (names or not special)):
            yield "all", functools.reduce(operator.or_, selections.values()), True
        elif names or not special:
            for stem, keep in selections.items():
                yield stem, keep, True

    def _write_labelled(self, pipeline: SA3DPipeline, scene: SceneSplats) -> None:
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.objects import select
        from sa3d_nerfstudio.exports.scene_table import write_object_table
        from sa3d_nerfstudio.exports.splats import object_ids, write_splats

        objects = select(pipeline.model.masks)
        ids = object_ids(pipeline, objects)[scene.valid]
        path, table = self.output_dir / "scene.ply", self.output_dir / "objects.json"
        write_splats(path, scene.gaussians[scene.valid], ids, scene.comments)
        write_object_table(table, pipeline.model.masks, frame_of(pipeline, False))
        say(f"saved       {path}: {len(ids)} splats, {(ids > 0).sum()} of objects; named in {table}")


@dataclass(kw_only=True)
class Box(RunOptions):
    """Write oriented boxes around objects as JSON, and print them as options of ns-export."""

    output_dir: Path
    """Folder to write boxes.json to."""
    tilted: bool = False
    """Let boxes lean, if that makes them smaller; by default they stand upright."""
    save_world_frame: bool = False
    """Place boxes.json in the data set's frame. The printed options of ns-export remain in nerfstudio's frame."""

    def main(self) -> None:
        """Write the boxes, and print their options."""
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
class Table(RunOptions):
    """Write objects.json: all objects, hidden ones included, or those of --object, with their parents, boxes and
    sizes."""

    output_dir: Path
    """Folder to write objects.json to."""
    save_world_frame: bool = False
    """Place boxes in the data set's frame, not in nerfstudio's, which is turned and scaled."""

    def main(self) -> None:
        """Write the table."""
        pipeline = self.load_run(self.output_dir)
        from sa3d_nerfstudio.exports.frames import frame_of
        from sa3d_nerfstudio.exports.objects import all_objects, select
        from sa3d_nerfstudio.exports.scene_table import write_object_table

        masks = pipeline.model.masks
        objects = select(masks, self.object or [item.name for item in all_objects(masks)])
        path = self.output_dir / "objects.json"
        write_object_table(path, masks, frame_of(pipeline, self.save_world_frame), objects)
        say(f"saved       {path}")


def _frame_owner(world: bool) -> str:
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
        """Run the chosen export."""
        self.what.main()
