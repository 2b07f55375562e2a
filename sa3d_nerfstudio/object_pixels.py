"""Pixels of the images that show an object: rectangles from which rays are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

RayFilter = Callable[[RayBundle], Bool[Tensor, " num_rays"]]
"""Function from rays to a mask of those that pass through the object, or may show it."""

MOST_CELLS = 1 << 17
"""Limit of the number of cells: they are divided as long as there are no more."""
TRIED, TRIED_AROUND = 4, 24
"""Rays drawn in a block, and in it with its eight neighbours, after which a block without a hit is occluded."""


class PixelCells:
    """Rectangles of pixels (cells) of several images, from which random pixels are drawn with equal probability.

    Args:
        bounds: per cell the camera's index, and the first (inclusive) and last (exclusive) row and column:
            (camera, y0, x0, y1, x1). Cells do not overlap.
        blocks: per cell the camera's index, and the row and column, of the block of its image that it lies in. An
            occluded block is dropped as a whole; without blocks, no cells are dropped.
    """

    def __init__(self, bounds: Int[Tensor, "num_cells 5"], blocks: Int[Tensor, "num_cells 3"] | None = None) -> None:
        self.bounds = bounds
        self._last = _area(self.bounds).cumsum(0)
        self._drawn = bounds.new_zeros(0)
        self._experience = None if blocks is None else _BlockCounts(blocks)

    @classmethod
    def whole_images(cls, cameras: Cameras) -> PixelCells:
        """One cell per image: the whole image."""
        height, width = cameras.height[:, 0], cameras.width[:, 0]
        index, zero = torch.arange(len(height), device=height.device), torch.zeros_like(height)
        return cls(torch.stack([index, zero, zero, height, width], dim=-1))

    @classmethod
    def with_object(
        cls,
        cameras: Cameras,
        num_cells: int,
        generate_rays: RayGenerator,
        passing: RayFilter,
        may_show: RayFilter | None = None,
    ) -> PixelCells:
        """The cells of all images that show the object; none if it is too small for such cells.

        Args:
            cameras: All cameras.
            num_cells: Number of blocks along an image's longer side, if it has as many pixels. Blocks are kept if their
                central ray, or a neighbour's, passes.
            generate_rays: Generates the rays of (camera, y, x) indices.
            passing: Selects the rays that pass through the object, or near it.
            may_show: Selects the rays that show the object if nothing occludes it: the blocks are divided, down to
                pixels if these are not too many, and cells that do not show it are dropped.
        """
        images = [_blocks_of(cameras, index, num_cells, generate_rays, passing) for index in range(len(cameras))]
        bounds, blocks = (torch.cat(tensors) for tensors in zip(*images, strict=True))
        while may_show is not None and len(bounds):
            is_last = int(_area(bounds).sum()) <= MOST_CELLS
            if is_last:
                bounds, blocks = _pixels(bounds, blocks)
            keep = _any_probe_shows(bounds, generate_rays, may_show)
            if not bool(keep.any()):
                break  # what is visible of it is smaller than the spacing of the probes
            bounds, blocks = bounds[keep], blocks[keep]
            if is_last or 4 * len(bounds) > MOST_CELLS:
                break
            bounds, blocks = _halved(bounds, blocks)
        return cls(bounds, blocks)

    def sample(self, num_pixels: int) -> Int[Tensor, "num_pixels 3"]:
        """Random pixels (camera, y, x)."""
        number = torch.randint(int(self._last[-1]), (num_pixels,), device=self.bounds.device)
        self._drawn = torch.searchsorted(self._last, number, right=True)
        camera, y0, x0, _, x1 = self.bounds[self._drawn].unbind(-1)
        offset = number - (self._last - _area(self.bounds))[self._drawn]
        return torch.stack([camera, y0 + offset // (x1 - x0), x0 + offset % (x1 - x0)], dim=-1)

    def learn(self, shown: Bool[Tensor, " num_pixels"]) -> None:
        """Drop pixels and blocks that have not shown the object.

        A single pixel is dropped when its ray misses; a block, when enough rays in it and in the blocks around it have
        all missed. Hence every pixel that shows the object remains as likely as any other, except in isolated areas
        smaller than a block, which may be missed.

        Args:
            shown: Whether each of the last drawn pixels shows the object. A mask of another length is ignored.
        """
        if self._experience is None or len(shown) != len(self._drawn):
            return
        shown = shown.to(self.bounds.device)
        hidden = self._experience.add(self._drawn, shown)
        missed = torch.zeros_like(hidden)
        missed[self._drawn[~shown]] = True
        keep = ~(hidden | (missed & (_area(self.bounds) == 1)))
        if bool(keep.any()) and not bool(keep.all()):
            self.bounds = self.bounds[keep]
            self._last = _area(self.bounds).cumsum(0)
            self._experience.keep(keep)
        self._drawn = self._drawn[:0]


class _BlockCounts:
    """Number of rays drawn in each block, and of those that have shown the object."""

    def __init__(self, blocks: Int[Tensor, "num_cells 3"]) -> None:
        # Keys of an image leave a rim of one block around it.
        _, height, width = (int(size) + 3 for size in blocks.amax(0)) if len(blocks) else (0, 1, 1)
        key = (blocks[:, 0] * height + blocks[:, 1] + 1) * width + blocks[:, 2] + 1
        self._keys, self._block = torch.unique(key, return_inverse=True)
        step = torch.arange(-1, 2, device=key.device)
        neighbors = self._keys[:, None] + (step[:, None] * width + step).reshape(-1)
        index = torch.searchsorted(self._keys, neighbors).clamp(max=max(len(self._keys) - 1, 0))
        # The index past the last stands for no block.
        self._around = torch.where(self._keys[index] == neighbors, index, len(self._keys)) if len(key) else index
        self._tried, self._shown = (torch.zeros(len(self._keys) + 1, device=key.device) for _ in range(2))

    def add(self, drawn: Int[Tensor, " num_rays"], shown: Bool[Tensor, " num_rays"]) -> Bool[Tensor, " num_cells"]:
        """Count rays, and return a mask of the cells in which the object is occluded."""
        block = self._block[drawn]
        self._tried.index_add_(0, block, torch.ones_like(shown, dtype=torch.float))
        self._shown.index_add_(0, block, shown.float())
        hidden = (self._tried[:-1] >= TRIED) & (self._sum(self._tried) >= TRIED_AROUND) & (self._sum(self._shown) == 0)
        return hidden[self._block]

    def keep(self, cells: Bool[Tensor, " num_cells"]) -> None:
        """Keep the masked cells only."""
        self._block = self._block[cells]

    def _sum(self, counts: Float[Tensor, " num_blocks_and_one"]) -> Float[Tensor, " num_blocks"]:
        return counts[self._around].sum(-1)


def _blocks_of(
    cameras: Cameras, index: int, num_cells: int, generate_rays: RayGenerator, passing: RayFilter
) -> tuple[Int[Tensor, "num_blocks 5"], Int[Tensor, "num_blocks 3"]]:
    """Bounds of an image's blocks whose central ray, or a neighbour's, passes; and their (camera, row, column)."""
    camera = cameras[index]
    height, width = int(camera.height.item()), int(camera.width.item())
    stride = math.ceil(max(height, width) / num_cells)
    y0 = torch.arange(0, height, stride, device=cameras.device)
    x0 = torch.arange(0, width, stride, device=cameras.device)
    y1, x1 = (y0 + stride).clamp(max=height), (x0 + stride).clamp(max=width)
    centres = torch.cartesian_prod((y0 + y1) // 2, (x0 + x1) // 2)
    rays = generate_rays(F.pad(centres, (1, 0), value=index))
    hits = passing(rays).to(cameras.device).reshape(1, 1, len(y0), len(x0))
    row, column = F.max_pool2d(hits.float(), 3, stride=1, padding=1)[0, 0].nonzero(as_tuple=True)
    camera_index = torch.full_like(row, index)
    bounds = torch.stack([camera_index, y0[row], x0[column], y1[row], x1[column]], dim=-1)
    return bounds, torch.stack([camera_index, row, column], dim=-1)


def _area(bounds: Int[Tensor, "num_cells 5"]) -> Int[Tensor, " num_cells"]:
    return (bounds[:, 3] - bounds[:, 1]) * (bounds[:, 4] - bounds[:, 2])


def _pixels(
    bounds: Int[Tensor, "num_cells 5"], blocks: Int[Tensor, "num_cells 3"]
) -> tuple[Int[Tensor, "num_pixels 5"], Int[Tensor, "num_pixels 3"]]:
    """Divide cells into single pixels."""
    area = _area(bounds)
    offset = torch.arange(int(area.sum()), device=area.device) - (area.cumsum(0) - area).repeat_interleave(area)
    camera, y0, x0, _, x1 = bounds.repeat_interleave(area, dim=0).unbind(-1)
    y, x = y0 + offset // (x1 - x0), x0 + offset % (x1 - x0)
    return torch.stack([camera, y, x, y + 1, x + 1], dim=-1), blocks.repeat_interleave(area, dim=0)


def _halved(
    bounds: Int[Tensor, "num_cells 5"], blocks: Int[Tensor, "num_cells 3"]
) -> tuple[Int[Tensor, "num_smaller 5"], Int[Tensor, "num_smaller 3"]]:
    """Divide each cell into four, or into two or one where it is a single pixel wide."""
    camera, y0, x0, y1, x1 = bounds.unbind(-1)
    y, x = (y0 + y1) // 2, (x0 + x1) // 2
    quarters = [
        torch.stack([camera, *low, *high], dim=-1)
        for low, high in (((y0, x0), (y, x)), ((y0, x), (y, x1)), ((y, x0), (y1, x)), ((y, x), (y1, x1)))
    ]
    cells = torch.cat(quarters)
    non_empty = (cells[:, 3:] > cells[:, 1:3]).all(-1)
    return cells[non_empty], blocks.repeat(4, 1)[non_empty]


def _any_probe_shows(
    bounds: Int[Tensor, "num_cells 5"], generate_rays: RayGenerator, may_show: RayFilter
) -> Bool[Tensor, " num_cells"]:
    """Whether a ray at a cell's middle or corners shows the object; corners that cells share are tested once."""
    camera, y0, x0, y1, x1 = bounds.unbind(-1)
    # Far corners are the next cell's first pixels, unless the image ends or the cell is a single pixel.
    height, width = generate_rays.cameras.height[camera, 0], generate_rays.cameras.width[camera, 0]
    single = (y1 - y0 == 1) & (x1 - x0 == 1)
    y1 = torch.where(single, y0, torch.minimum(y1, height - 1))
    x1 = torch.where(single, x0, torch.minimum(x1, width - 1))
    probes = [((y0 + y1) // 2, (x0 + x1) // 2), (y0, x0), (y0, x1), (y1, x0), (y1, x1)]
    rows, columns = int(height.max()), int(width.max())
    keys = torch.stack([(camera * rows + y) * columns + x for y, x in probes], dim=1)
    pixels, inverse = torch.unique(keys, return_inverse=True)
    indices = torch.stack([pixels // (rows * columns), pixels // columns % rows, pixels % columns], dim=-1)
    return may_show(generate_rays(indices)).to(bounds.device)[inverse].any(-1)
