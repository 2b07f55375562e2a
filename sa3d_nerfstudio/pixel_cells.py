"""Where in the images an object is seen: rectangles of pixels, to draw rays from."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.model_components.ray_generators import RayGenerator
from torch import Tensor

RayFilter = Callable[[RayBundle], Bool[Tensor, " num_rays"]]
"""Which rays pass through the object, or show it."""

ENOUGH = 0.7
"""Share of the drawn rays that show the object from which on cells are not made smaller."""
MAX_PROBES = 1 << 15
"""Rays that are rendered at most each time that cells are made smaller: as many as ns-export has in a batch."""


class PixelCells:
    """Rectangles of pixels, of several images, to draw random pixels from.

    Args:
        bounds: per cell the camera's index, and the first (inclusive) and last (exclusive) row and column:
            (camera, y0, x0, y1, x1).
    """

    def __init__(self, bounds: Int[Tensor, "num_cells 5"]) -> None:
        self.bounds = bounds

    @classmethod
    def whole_images(cls, cameras: Cameras) -> PixelCells:
        """One cell per image, with all of it."""
        height, width = cameras.height[:, 0], cameras.width[:, 0]
        index, zero = torch.arange(len(height), device=height.device), torch.zeros_like(height)
        return cls(torch.stack([index, zero, zero, height, width], dim=-1))

    @classmethod
    def in_image(
        cls, cameras: Cameras, index: int, num_cells: int, generate_rays: RayGenerator, ray_filter: RayFilter
    ) -> PixelCells:
        """The cells of an image whose central ray, or a neighbour's, passes the filter.

        Args:
            cameras: all cameras.
            index: which of them.
            num_cells: number of cells along the image's longer side, if it has as many pixels.
            generate_rays: for (camera, y, x) indices.
            ray_filter: which rays pass through the object.
        """
        camera = cameras[index]
        height, width = int(camera.height.item()), int(camera.width.item())
        stride = math.ceil(max(height, width) / num_cells)
        y0 = torch.arange(0, height, stride, device=cameras.device)
        x0 = torch.arange(0, width, stride, device=cameras.device)
        y1, x1 = (y0 + stride).clamp(max=height), (x0 + stride).clamp(max=width)
        centres = torch.cartesian_prod((y0 + y1) // 2, (x0 + x1) // 2)
        rays = generate_rays(F.pad(centres, (1, 0), value=index))
        hits = ray_filter(rays).to(cameras.device).reshape(1, 1, len(y0), len(x0))
        row, column = F.max_pool2d(hits.float(), 3, stride=1, padding=1)[0, 0].nonzero(as_tuple=True)
        return cls(torch.stack([torch.full_like(row, index), y0[row], x0[column], y1[row], x1[column]], dim=-1))

    def refined(self, generate_rays: RayGenerator, ray_shows: RayFilter) -> PixelCells:
        """Smaller cells, that leave out what hides the object, until most of the pixels in them show it.

        A cell is kept if a ray at its middle or at one of its corners shows the object.

        Args:
            generate_rays: for (camera, y, x) indices.
            ray_shows: which rays show the object.
        """
        cells, halve = self, False
        while not halve or bool((cells.bounds[:, 3:5] - cells.bounds[:, 1:3] > 1).any()):
            if ray_shows(generate_rays(cells.sample(512))).float().mean() >= ENOUGH:
                return cells
            smaller = cells._halved() if halve else cells.bounds
            if 2 * len(smaller) > MAX_PROBES:
                return cells
            kept = smaller[_any_probe_shows(smaller, generate_rays, ray_shows)]
            # Where there is less to see than between the probes, still smaller cells may find it.
            cells, halve = PixelCells(kept if len(kept) else smaller), True
        return cells

    def _halved(self) -> Int[Tensor, "num_cells 5"]:
        """Each cell in four, or in two or one where it is a single pixel wide."""
        camera, y0, x0, y1, x1 = self.bounds.unbind(-1)
        y, x = (y0 + y1) // 2, (x0 + x1) // 2
        quarters = [
            torch.stack([camera, *low, *high], dim=-1)
            for low, high in (((y0, x0), (y, x)), ((y0, x), (y, x1)), ((y, x0), (y1, x)), ((y, x), (y1, x1)))
        ]
        every = torch.cat(quarters)
        return every[(every[:, 3:5] > every[:, 1:3]).all(-1)]

    def sample(self, num_pixels: int) -> Int[Tensor, "num_pixels 3"]:
        """Random pixels (camera, y, x): a cell, each as likely as any other, then a pixel in it."""
        cell = self.bounds[torch.randint(len(self.bounds), (num_pixels,), device=self.bounds.device)]
        low, size = cell[:, 1:3], cell[:, 3:5] - cell[:, 1:3]
        offset = (torch.rand(num_pixels, 2, device=cell.device) * size).long()
        return torch.cat([cell[:, :1], low + torch.minimum(offset, size - 1)], dim=-1)


def _any_probe_shows(
    bounds: Int[Tensor, "num_cells 5"], generate_rays: RayGenerator, ray_shows: RayFilter
) -> Bool[Tensor, " num_cells"]:
    """Whether a ray at a cell's middle or corners shows the object; corners that cells share are tried once."""
    camera, y0, x0, y1, x1 = bounds.unbind(-1)
    # The next cell's first pixels, if there is a next cell and this one is larger than a pixel.
    height, width = generate_rays.cameras.height[camera, 0], generate_rays.cameras.width[camera, 0]
    single = (y1 - y0 == 1) & (x1 - x0 == 1)
    y1 = torch.where(single, y0, torch.minimum(y1, height - 1))
    x1 = torch.where(single, x0, torch.minimum(x1, width - 1))
    places = [((y0 + y1) // 2, (x0 + x1) // 2), (y0, x0), (y0, x1), (y1, x0), (y1, x1)]
    probes = torch.stack([torch.stack([camera, y, x], dim=-1) for y, x in places], dim=1)
    pixels, which = torch.unique(probes.reshape(-1, 3), dim=0, return_inverse=True)
    shown = ray_shows(generate_rays(pixels)).to(bounds.device)
    return shown[which].reshape(probes.shape[:2]).any(-1)
