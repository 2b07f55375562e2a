"""Small ray tracer: object, distance and colour of each ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy import ndarray

from sa3d_nerfstudio.demo.solids import Box, Solid, Texture

LIGHT = (0.9, -0.7, 2.1)
"""World position of the lamp, metres."""
AMBIENT = 0.55
"""Share of ambient light, so that shadows keep their colours."""
SURFACE_OFFSET = 1e-5
"""Height above a surface at which shadow rays start, metres."""


@dataclass(frozen=True)
class Room:
    """Closed room that ends every ray: a floor at z = 0, four walls and a ceiling, seen from inside."""

    half: tuple[float, float, float]
    floor: Texture
    walls: Texture

    def exit(self, origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"]) -> Float[ndarray, " num"]:
        """Distance at which rays that start inside meet the room."""
        return Box(self.half).interval(self._centred(origins), directions)[1]

    def normals(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, "num 3"]:
        """Unit normals at points of the room, pointing into it."""
        return -Box(self.half).normals(self._centred(points))

    def colours(self, points: Float[ndarray, "num 3"]) -> Float[ndarray, "num 3"]:
        """Albedo at points of the room."""
        on_floor = points[:, 2] < 1e-6
        colours = np.empty_like(points)
        colours[on_floor] = self.floor(points[on_floor])
        colours[~on_floor] = self.walls(points[~on_floor])
        return colours

    def _centred(self, points: ndarray) -> ndarray:
        return points - [0.0, 0.0, self.half[2]]


@dataclass(frozen=True)
class Camera:
    """A pinhole camera with square pixels."""

    pose: Float[ndarray, "4 4"]
    """Camera to world, OpenGL axes (x right, y up, looking along -z)."""
    width: int
    height: int
    focal: float
    """Pixels."""

    def rays(self, supersample: int = 1) -> tuple[Float[ndarray, "num 3"], Float[ndarray, "num 3"]]:
        """Origins and unit directions of rays, row by row, ``supersample`` squared evenly spaced ones to a pixel.

        With ``supersample=1`` each ray goes through the centre of its pixel.
        """
        x = (np.arange(self.width * supersample) + 0.5) / supersample - self.width / 2
        y = (np.arange(self.height * supersample) + 0.5) / supersample - self.height / 2
        x, y = np.meshgrid(x / self.focal, -y / self.focal)
        directions = np.stack([x, y, -np.ones_like(x)], axis=-1).reshape(-1, 3)
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        origins = np.broadcast_to(self.pose[:3, 3], directions.shape)
        return origins, directions @ self.pose[:3, :3].T

    def project(self, points: Float[ndarray, "num 3"]) -> tuple[Float[ndarray, "num 2"], Float[ndarray, " num"]]:
        """Image coordinates (the top left corner of the image is 0, 0) and depth along the optical axis."""
        local = (points - self.pose[:3, 3]) @ self.pose[:3, :3]
        depth = -local[:, 2]
        # Points behind the camera have no image; callers recognise them by their depth.
        scale = self.focal / np.where(depth > 0, depth, np.inf)
        centre = [self.width / 2, self.height / 2]
        return local[:, :2] * [1.0, -1.0] * scale[:, None] + centre, depth


def first_hits(
    origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"], solids: Sequence[Solid]
) -> tuple[Int[ndarray, " num"], Float[ndarray, " num"]]:
    """First solid on each ray.

    Returns:
        The solid's number, counted from 1, or 0 without a hit; and the distance, infinite without a hit.
    """
    ids = np.zeros(len(origins), dtype=np.int64)
    distances = np.full(len(origins), np.inf)
    for number, solid in enumerate(solids, start=1):
        enter, leave = solid.interval(origins, directions)
        nearer = (enter < leave) & (enter > 0) & (enter < distances)
        ids[nearer] = number
        distances[nearer] = enter[nearer]
    return ids, distances


def trace(
    origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"], solids: Sequence[Solid], room: Room
) -> tuple[Int[ndarray, " num"], Float[ndarray, " num"]]:
    """First hits of solids or of the room: like :func:`first_hits`, but rays without a solid end at the room."""
    ids, distances = first_hits(origins, directions, solids)
    return ids, np.minimum(distances, room.exit(origins, directions))


def shade(
    origins: Float[ndarray, "num 3"], directions: Float[ndarray, "num 3"], solids: Sequence[Solid], room: Room
) -> Float[ndarray, "num 3"]:
    """Colour of each ray: matt surfaces, one lamp, hard shadows."""
    ids, distances = trace(origins, directions, solids, room)
    points = origins + directions * distances[:, None]
    normals, albedo = np.empty_like(points), np.empty_like(points)
    for number in np.unique(ids):
        hits = ids == number
        if number == 0:
            normals[hits], albedo[hits] = room.normals(points[hits]), room.colours(points[hits])
        else:
            solid = solids[number - 1]
            normals[hits] = solid.normals(points[hits])
            albedo[hits] = solid.texture(solid.to_local(points[hits]))
    to_light = np.asarray(LIGHT) - points
    to_light /= np.linalg.norm(to_light, axis=-1, keepdims=True)
    # The lamp hangs above every solid, so any solid on a ray towards it casts a shadow.
    in_shadow = first_hits(points + SURFACE_OFFSET * normals, to_light, solids)[0] > 0
    direct = np.maximum((normals * to_light).sum(-1), 0.0) * ~in_shadow
    return albedo * (AMBIENT + (1.0 - AMBIENT) * direct)[:, None]


def render(
    camera: Camera, solids: Sequence[Solid], room: Room, supersample: int
) -> tuple[UInt8[ndarray, "height width 3"], UInt8[ndarray, "height width"], Float[ndarray, "height width"]]:
    """Render one view.

    Returns:
        The colours, averaged over ``supersample`` squared rays to a pixel; the number of the solid at each pixel's
        centre (0 = room); and the distance from the camera to the surface at the pixel's centre, metres.
    """
    colours = shade(*camera.rays(supersample), solids, room)
    shape = (camera.height, supersample, camera.width, supersample, 3)
    rgb = np.round(255 * colours.reshape(shape).mean(axis=(1, 3))).astype(np.uint8)
    ids, distances = trace(*camera.rays(), solids, room)
    size = (camera.height, camera.width)
    return rgb, ids.reshape(size).astype(np.uint8), distances.reshape(size)
