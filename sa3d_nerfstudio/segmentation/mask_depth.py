"""Depth check of a 2D mask: pixels far in 3D from the rest of the mask belong to another object and are dropped.

A segmenter sees colours. The background may look like a part of the object (a book through a mug's handle), and an
outline that is a pixel too wide covers a line on the background. If such pixels are lifted, they are a seed on another
object, from which the mask grows in the next views. The published method has no such check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.fields.connected_parts import label_parts, label_parts_on_device
from sa3d_nerfstudio.segmentation.neighborhoods import dilated, lowest_nearby
from sa3d_nerfstudio.traces.base import ViewTrace


def pixel_spacing(trace: ViewTrace, mask: Bool[Tensor, "height width"]) -> float | Tensor:
    """Distance in space between the surface points of neighbouring pixels of a mask; median over its pixels.

    Of a pixel's right and lower neighbours the nearer one counts, so that slanted surfaces do not look coarse. If the
    trace lies on a GPU, so does the distance, and the host does not wait for it.
    """
    window = bounding_slices(mask, margin=1)
    points, mask = trace.surface_points().reshape(trace.height, trace.width, 3)[window], mask[window]
    right = (points[:-1, 1:] - points[:-1, :-1]).norm(dim=-1)
    down = (points[1:, :-1] - points[:-1, :-1]).norm(dim=-1)
    within = mask[:-1, :-1].to(points.device)
    if points.is_cuda:
        return torch.where(within, torch.minimum(right, down), torch.nan).nanmedian().nan_to_num(0.0)
    spacing = torch.minimum(right, down)[within]
    return float(spacing.median()) if len(spacing) else 0.0


def bounding_slices(mask: Bool[Tensor, "height width"], margin: int) -> tuple[slice, slice]:
    """Rows and columns of a mask's bounding box with a margin in pixels; none if the mask is empty.

    On a GPU all rows and columns: there it takes longer to read the bounding box than to work on all pixels.
    """
    if mask.is_cuda:
        return slice(None), slice(None)
    sides = []
    for axis in (1, 0):
        indices = mask.any(dim=axis).nonzero()[:, 0]
        low, high = (int(indices[0]), int(indices[-1]) + 1 + margin) if len(indices) else (0, 0)
        sides.append(slice(max(low - margin, 0), high))
    return sides[0], sides[1]


def surface_of(
    trace: ViewTrace, mask: Bool[Tensor, "height width"], camera_position: Float[Tensor, "3"]
) -> Float[Tensor, "num_points 3"]:
    """Points of the surface that a mask covers, seen from one side.

    Pixels at the mask's border may see the background; their points are moved along their rays into the depth range of
    the pixels inside.
    """
    mask = mask.to(trace.depth.device)
    inner = mask & ~dilated(~mask, 1)
    depth = trace.depth[..., 0]
    near, far = depth[inner if inner.any() else mask].quantile(depth.new_tensor([0.02, 0.98]))
    factor = depth.clamp(near, far) / depth.clamp(min=1e-9)
    camera = camera_position.to(depth)
    return (camera + (trace.surface_points() - camera) * factor.reshape(-1, 1))[mask.reshape(-1)]


TOWARDS_CAMERA = 0.03
"""Distance of marks in front of the surface, as a share of the distance to the camera."""
REACH = 32
"""Cells in each direction within which parts of a mask are separated; points beyond count in the outermost cells."""
LEAST_GAP = 6.0
"""Least gap between parts, in pixels: surfaces seen at a slant have holes of that size."""
LARGE_PART = 0.3
"""Area, as a share of the largest part's, from which on a part is large: no slip of the segmenter at an outline."""
OVERLAP = 0.1
"""Share of a part's pixels on the rendered mask from which on the part is kept."""
LEAST_KEPT = 0.5
"""Least share of a mask's pixels that the check may leave: below it the depth is not trusted, and the mask is kept."""
RIM = 2
"""Pixels at a mask's outline that may show the background, in an image of 256 pixels, the size of SAM's masks."""
TOGETHER = 8
"""Number of masks that a GPU checks together: some 80 bytes for each of their images' pixels."""
STEEP = 4.0
"""Depth step over width, both in pixels of the object, beyond which two pixels are not on one surface."""


@dataclass
class FoundMask:
    """A segmenter's mask of a view, with the user's points or the rendered mask to select its parts by."""

    trace: ViewTrace
    """Trace of the view."""
    mask: Bool[Tensor, "height width"]
    """The segmenter's mask."""
    spacing: float | Tensor
    """Distance in space between the surface points of neighbouring pixels of the mask."""
    points: Int[Tensor, "num_points 2"] | None = None
    """x, y of the user's positive points; empty for a box. None in views that the user has not prompted."""
    known: Bool[Tensor, "height width"] | None = None
    """Rendered mask: pixels of the object as lifted so far."""

    @property
    def meant(self) -> Bool[Tensor, " num_pixels"]:
        """Pixels that are taken for the object: those under the user's points, or else those of the rendered mask."""
        device = self.trace.depth.device
        if self.points is not None and len(self.points):
            meant = torch.zeros(self.mask.numel(), dtype=torch.bool, device=device)
            meant[(self.points[:, 1] * self.trace.width + self.points[:, 0]).to(device)] = True
            return meant
        known = torch.zeros_like(self.mask) if self.known is None else self.known
        return known.reshape(-1).to(device)


def without_far_parts(
    found: Sequence[FoundMask], gap: float, between: Callable[[], Float[Tensor, "num_places 3"]] | None = None
) -> list[Bool[Tensor, "height width"]]:
    """Masks without the parts that are far in space from the rest of the mask.

    In a prompted view, whose mask the user has seen, parts that hold one of the points are kept, and large parts. In
    other views, parts that overlap the rendered mask are kept; if there are none, large parts.

    Args:
        found: The masks.
        gap: Distance from which on parts are separate, as a share of the mask's size, which is the root of its area.
        between: Returns world positions of the object as lifted so far, visible or not: parts that they join are one,
            such as the two ends of an object behind another.
    """
    if gap <= 0 or not found:
        return [item.mask for item in found]
    if found[0].trace.depth.is_cuda:
        groups = [found[start : start + TOGETHER] for start in range(0, len(found), TOGETHER)]
        return [mask for group in groups for mask in _without_far_parts_on_device(group, gap, between)]
    return [_parts_kept(item, gap, between) for item in found]


def _parts_kept(
    found: FoundMask, gap: float, between: Callable[[], Float[Tensor, "num_places 3"]] | None
) -> Bool[Tensor, "height width"]:
    on = found.mask.to(found.trace.depth.device).reshape(-1)
    link = max(gap * float(on.sum()) ** 0.5, LEAST_GAP) * found.spacing
    if link <= 0:
        return found.mask
    points = found.trace.surface_points()[on]
    middle = points.median(dim=0).values
    cells = ((points - middle) / link).floor().clamp(-REACH, REACH)
    parts, count = _parts(cells)
    if count > 1 and between is not None:
        joining = ((between().to(middle) - middle) / link).floor()
        joining = joining[(joining.abs() <= REACH).all(-1)]
        joined, count = _parts(torch.cat([cells, joining]))
        parts = joined[: len(cells)]
    if count < 2:
        return found.mask
    area = parts.bincount(minlength=count + 1).float()
    covered = parts.bincount(found.meant[on].float(), minlength=count + 1)
    large = area >= LARGE_PART * area.max()
    if found.points is not None:
        kept_parts = (covered > 0) | large
    else:
        kept_parts = covered >= (OVERLAP * area).clamp(min=1)
        kept_parts = kept_parts if bool(kept_parts.any()) else large
    if area[kept_parts].sum() < LEAST_KEPT * area.sum():
        return found.mask
    solid = torch.zeros_like(on)
    solid[on] = kept_parts[parts]
    return solid.reshape(found.mask.shape)


def _without_far_parts_on_device(
    found: Sequence[FoundMask], gap: float, between: Callable[[], Float[Tensor, "num_places 3"]] | None
) -> list[Bool[Tensor, "height width"]]:
    """:func:`without_far_parts` on a GPU: with all pixels, no result read by the host, and the parts of all masks
    labelled together."""
    side, num_cells = 2 * REACH + 1, (2 * REACH + 1) ** 3
    masks = [item.mask.reshape(-1).to(item.trace.depth.device) for item in found]
    areas = torch.stack([mask.sum() for mask in masks])
    spacings = torch.stack([torch.as_tensor(item.spacing).to(areas.device) for item in found])
    links = (gap * areas.sqrt()).clamp(min=LEAST_GAP) * spacings
    points = [item.trace.surface_points() for item in found]
    middles = [
        torch.where(mask[:, None], positions, torch.nan).nanmedian(0).values
        for mask, positions in zip(masks, points, strict=True)
    ]
    middle, step = torch.stack(middles).nan_to_num(), links.clamp(min=1e-9)[:, None]
    sizes = [len(positions) for positions in points]
    # Filled on the device: the host waits for what it copies there.
    mask_index = torch.cat([torch.full((size,), index, device=areas.device) for index, size in enumerate(sizes)])

    def cells_of(steps: Float[Tensor, "... 3"]) -> Int[Tensor, "..."]:
        x, y, z = (steps.floor().clamp(-REACH, REACH).nan_to_num().long() + REACH).unbind(-1)
        return (x * side + y) * side + z

    on, all_cells = torch.cat(masks), len(found) * num_cells
    cells = cells_of((torch.cat(points) - middle[mask_index]) / step[mask_index]) + mask_index * num_cells
    count = on.float()
    occupied = count.new_zeros(all_cells).index_add_(0, cells, count)
    if between is not None:
        joining = (between().to(middle) - middle[:, None]) / step[:, None]
        near = (joining.floor().abs() <= REACH).all(-1).float()
        first_cells = torch.arange(len(found), device=cells.device)[:, None] * num_cells
        occupied.index_add_(0, (cells_of(joining) + first_cells).reshape(-1), near.reshape(-1))
    part = label_parts_on_device((occupied > 0).reshape(-1, side, side, side)).reshape(-1)[cells]
    meant = torch.cat([item.meant for item in found]) & on
    area, covered = (
        count.new_zeros(all_cells).index_add_(0, part, pixels.float()).reshape(-1, num_cells) for pixels in (on, meant)
    )
    large = (area >= LARGE_PART * area.amax(-1, keepdim=True)) & (area > 0)
    overlapping = covered >= (OVERLAP * area).clamp(min=1)
    overlapping = torch.where(overlapping.any(-1, keepdim=True), overlapping, large)
    prompted = torch.cat([area.new_full((1, 1), item.points is not None, dtype=torch.bool) for item in found])
    kept_parts = torch.where(prompted, (covered > 0) | large, overlapping)
    trusted = ((area * kept_parts).sum(-1) >= LEAST_KEPT * area.sum(-1)) & (links > 0)
    solid = torch.where(trusted[mask_index], on & kept_parts.reshape(-1)[part], on).split(sizes)
    return [mask.reshape(item.mask.shape) for mask, item in zip(solid, found, strict=True)]


def background_rim(
    trace: ViewTrace, mask: Bool[Tensor, "height width"], spacing: float | Tensor, long_side: int | None = None
) -> Bool[Tensor, "height width"]:
    """Pixels at a mask's outline that see the background instead of the object.

    They lie behind nearby pixels of the mask by more than one surface could, and near to the depth around the mask.
    Where the mask is thin, all of it is outline, which is kept.

    Args:
        trace: Trace of the view.
        mask: Mask of the object in the view.
        spacing: Distance in space between the surface points of neighbouring pixels of the mask.
        long_side: Longer side of the whole image, where the trace is that of a window.
    """
    mask = mask.to(trace.depth.device)
    past = torch.zeros_like(mask)
    reach = max(RIM, round(RIM * (long_side or max(mask.shape)) / 256))
    # Most objects are small: only pixels around the mask are worked on.
    window = bounding_slices(mask, margin=3 * reach)
    depth, mask = trace.depth[..., 0][window], mask[window]
    if not len(mask):
        return past
    behind = depth - lowest_nearby(torch.where(mask, depth, torch.inf), reach)
    around = lowest_nearby(torch.where(mask, torch.inf, depth), reach)
    thick = dilated(mask & ~dilated(~mask, reach), 2 * reach)
    past[window] = mask & thick & (behind > STEEP * reach * spacing) & (around - depth < behind / 2)
    return past


def _parts(cells: Float[Tensor, "num 3"]) -> tuple[Int[Tensor, " num"], int]:
    """Number of each cell's part, corners touching, counted from 1; and the number of parts."""
    indices = cells.long().cpu()
    indices -= indices.amin(dim=0)
    x, y, z = indices.unbind(-1)
    occupied = torch.zeros((indices.amax(dim=0) + 1).tolist(), dtype=torch.bool)
    occupied[x, y, z] = True
    labels, count = label_parts(occupied.numpy())
    return torch.from_numpy(labels)[x, y, z].long(), count


def marker_position(
    trace: ViewTrace, camera_position: Float[Tensor, "3"], x: int, y: int
) -> tuple[float, float, float]:
    """World position of a mark on a pixel: a little in front of the surface there."""
    point = trace.surface_points()[y * trace.width + x]
    first, second, third = torch.lerp(point, camera_position.to(point), TOWARDS_CAMERA).tolist()
    return first, second, third
