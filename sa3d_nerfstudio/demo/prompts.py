"""Points, boxes and scribbles as a user would place them, from exact masks.

All coordinates are x, y pixel indices from the top left.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy import ndarray

Points = list[list[int]]


def interior_distance(mask: Bool[ndarray, "height width"]) -> Float[ndarray, "height width"]:
    """Distance in pixels from each pixel of the mask to the nearest one outside it, or beyond the image's border."""
    padded = np.pad(mask.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]


def interior_points(mask: Bool[ndarray, "height width"], num: int) -> Points:
    """Points well inside a mask: the most interior pixel, then in turn the interior pixel farthest from all before."""
    depth = interior_distance(mask)
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    points = [[int(x), int(y)]]
    candidates = np.argwhere(depth >= 0.4 * depth.max())[:, ::-1]
    while len(points) < num:
        distances = np.linalg.norm(candidates[:, None] - np.asarray(points)[None], axis=-1).min(1)
        points.append([int(value) for value in candidates[distances.argmax()]])
    return points


def bounding_box(mask: Bool[ndarray, "height width"]) -> list[int]:
    """Bounding box x0, y0, x1, y1 of a mask's pixels, upper bounds exclusive."""
    y, x = np.nonzero(mask)
    return [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1]


def negative_point(ids: UInt8[ndarray, "height width"], number: int) -> tuple[list[int], int]:
    """Negative point, inside the object that is nearest to the prompted one in the image.

    Args:
        ids: Object numbers, 0 = background.
        number: Number of the prompted object.

    Returns:
        The point and the number of the object it lies on; without other objects, a background point and 0.
    """
    other_pixels = (ids != 0) & (ids != number)
    distances = cv2.distanceTransform((ids != number).astype(np.uint8), cv2.DIST_L2, 5)
    if not other_pixels.any():
        return interior_points(ids == 0, 1)[0], 0
    neighbour = int(ids[np.unravel_index(int(np.where(other_pixels, distances, np.inf).argmin()), ids.shape)])
    return interior_points(ids == neighbour, 1)[0], neighbour


def _clear(allowed: Bool[ndarray, "height width"], start: list[int], end: list[int]) -> bool:
    """Whether the straight line between two pixels stays within ``allowed``."""
    line = cv2.line(np.zeros(allowed.shape, np.uint8), start, end, (1,))
    return bool(allowed[line > 0].all())


def scribble(mask: Bool[ndarray, "height width"]) -> Points:
    """Stroke along the object's longer axis, never leaving it, through the most interior pixel of each section."""
    depth = interior_distance(mask)
    pixels = np.argwhere(mask)[:, ::-1]
    start = interior_points(mask, 1)[0]
    axis = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)[2][0]
    along = (pixels - start) @ axis
    spacing = max(2.0, 0.6 * float(depth.max()))
    halves: list[Points] = []
    for side in (-1, 1):
        stroke = [start]
        for station in range(1, int(np.abs(along).max() / spacing) + 1):
            section = pixels[np.abs(along - side * station * spacing) < 0.5 * spacing]
            if not len(section):
                break
            best = [int(value) for value in section[depth[section[:, 1], section[:, 0]].argmax()]]
            if _clear(mask, stroke[-1], best):
                stroke.append(best)
        halves.append(stroke)
    return halves[0][:0:-1] + halves[1]


def background_scribble(mask: Bool[ndarray, "height width"]) -> Points:
    """Stroke around the object, at a distance, never touching it; open where the object meets the image's border."""
    height, width = mask.shape
    distance = max(2, round(0.03 * max(height, width)))
    hull = cv2.convexHull(np.argwhere(mask)[:, ::-1].astype(np.int32))
    canvas = cv2.fillConvexPoly(
        np.zeros((height + 4 * distance, width + 4 * distance), np.uint8), hull + 2 * distance, (1,)
    )
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * distance + 1, 2 * distance + 1))
    outline = cv2.findContours(cv2.dilate(canvas, disc), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0][:, 0]
    ring = np.clip(outline[:: 2 * distance] - 2 * distance, 0, [width - 1, height - 1])
    ring = [[int(x), int(y)] for x, y in ring]
    # The ring starts behind a gap, if it has any, so that the stroke does not have to cross the gap.
    blocked = [not _clear(~mask, ring[number - 1], ring[number]) for number in range(len(ring))]
    first = blocked.index(True) if any(blocked) else 0
    ring = ring[first:] + ring[:first] + ([] if any(blocked) else ring[:1])
    stroke: Points = []
    for point in ring:
        if mask[point[1], point[0]] or (stroke and not _clear(~mask, stroke[-1], point)):
            continue
        stroke.append(point)
    return stroke
