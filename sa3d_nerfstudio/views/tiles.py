"""Traced parts of a view at one size, in square tiles, so that later windows render missing tiles only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.view_rays import ViewRays
from sa3d_nerfstudio.traces.window import TILE, Pixels, Window

SLACK = 0.4
"""Extra range of the distance codes at either end, as a logarithm: distances of later tiles within it need no new codes
for all tiles."""
_NO_RAYS = ViewRays(torch.zeros(1, 3), torch.zeros(0, 3), torch.eye(3))
"""Rays of stored tiles: none, since they follow from the camera."""


@dataclass(eq=False)
class TiledTrace:
    """The traced tiles of a view, each 8 x 8 pixels, or fewer at the image's lower and right border.

    Each traced ray takes as much memory as in a :class:`CompressedTrace`, other rays none.
    """

    size: tuple[int, int]
    """Height and width of the whole image."""
    tiles: Int[Tensor, " num_tiles"]
    """Indices of the tiles, counted row by row through the image, in the order of storage."""
    columns: CompressedTrace | None = None
    """Trace of their rays as an image of one column: tile by tile, each row by row; None if there are no tiles yet."""

    @classmethod
    def empty(cls, size: tuple[int, int]) -> TiledTrace:
        """No tiles, of an image of this height and width."""
        return cls(size, torch.zeros(0, dtype=torch.int32))

    @classmethod
    def restored(cls, size: tuple[int, int], tensors: dict[str, Tensor], numbers: dict[str, Any]) -> TiledTrace:
        """Restore tiles from their :meth:`tensors` and :meth:`numbers`.

        Raises:
            KeyError: Entries are missing.
            TypeError: Entries are missing, or unknown.
            ValueError: The tensors do not fit this image.
        """
        tiles = tensors["tiles"].cpu()
        columns = {name: tensor for name, tensor in tensors.items() if name != "tiles"}
        trace = CompressedTrace(**columns, **numbers, rays=_NO_RAYS)
        restored = cls(size, tiles, trace)
        count = len(restored.pixels_of(tiles)) if _valid(tiles, restored._grid) else -1
        shapes = [trace.distances.shape[1:], trace.shares.shape[1:], trace.coverage.shape, trace.depths.shape]
        if any(shape != (count,) for shape in shapes) or trace.colors.shape != (count, 1, 3):
            raise ValueError("not of this image")
        return restored

    def missing(self, window: Window) -> Int[Tensor, " num_tiles"]:
        """Indices of a window's tiles that have not been traced yet."""
        wanted = self._tiles_in(window)
        return wanted[~torch.isin(wanted, self.tiles)]

    def pixels_of(self, tiles: Int[Tensor, " num_tiles"]) -> Int[Tensor, " num_rays"]:
        """The pixels of tiles in the order of storage, as indices into the flattened image."""
        height, width = self.size
        across = self._grid[1]
        inner = torch.arange(TILE)
        y = (tiles.long() // across * TILE)[:, None, None] + inner[:, None]
        x = (tiles.long() % across * TILE)[:, None, None] + inner
        y, x = torch.broadcast_tensors(y, x)
        return (y * width + x)[(y < height) & (x < width)]

    def added(self, tiles: Int[Tensor, " num_tiles"], traced: CompressedTrace) -> TiledTrace:
        """These tiles and further ones.

        Args:
            tiles: Indices of the further tiles, none of which is held yet.
            traced: The trace of their :meth:`pixels_of`, as one column.
        """
        traced = CompressedTrace(**traced.tensors(), **traced.numbers(), rays=_NO_RAYS)
        before = self.columns
        if before is None:
            low, high = traced.log_low - SLACK, _high(traced) + SLACK
            return TiledTrace(self.size, tiles.to(torch.int32), traced.recoded(low, (high - low) / 65535))
        low, high = before.log_low, _high(before)
        if traced.log_low < low - 1e-9 or _high(traced) > high + 1e-9:
            low, high = min(low, traced.log_low - SLACK), max(high, _high(traced) + SLACK)
            before = before.recoded(low, (high - low) / 65535)
        traced = traced.recoded(before.log_low, before.log_step)
        old, new = before.tensors(), traced.tensors()
        ray_axis = {"distances": 1, "shares": 1}
        joined: dict[str, Any] = {name: torch.cat([old[name], new[name]], dim=ray_axis.get(name, 0)) for name in old}
        height = before.height + traced.height
        columns = CompressedTrace(
            **joined, height=height, width=1, log_low=before.log_low, log_step=before.log_step, rays=_NO_RAYS
        )
        return TiledTrace(self.size, torch.cat([self.tiles, tiles.to(torch.int32)]), columns)

    def trace(self, window: Window, rays: ViewRays) -> CompressedTrace:
        """The trace of a window, all of whose tiles are held.

        Args:
            window: The window.
            rays: Rays of its pixels.
        """
        assert self.columns is not None
        order = torch.full((self._grid[0] * self._grid[1],), -1)
        order[self.tiles.long()] = torch.arange(len(self.tiles))
        wanted = self._tiles_in(window)
        # First ray of each tile; tiles at the lower and right border have fewer rays than the others.
        begin = (self._rows_of(self.tiles) * self._columns_of(self.tiles)).cumsum(0)
        begin = begin.roll(1)
        begin[:1] = 0
        first = torch.zeros(self._grid[0] * self._grid[1], dtype=torch.long)
        first[wanted.long()] = begin[order[wanted.long()]]
        y = torch.arange(window.top, window.bottom)[:, None]
        x = torch.arange(window.left, window.right)
        tile = y // TILE * self._grid[1] + x // TILE
        index = first[tile] + y % TILE * self._columns_of(tile) + x % TILE
        device = self.columns.coverage.device
        return self.columns.part(Pixels(index.reshape(-1).to(device), window.height, window.width), rays)

    @property
    def num_rays(self) -> int:
        """Number of traced rays."""
        return 0 if self.columns is None else self.columns.height

    @property
    def num_bytes(self) -> int:
        """Memory of the tiles in bytes."""
        columns = [] if self.columns is None else list(self.columns.tensors().values())
        return sum(tensor.numel() * tensor.element_size() for tensor in [self.tiles, *columns])

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to be stored; there must be tiles."""
        assert self.columns is not None
        return {"tiles": self.tiles, **self.columns.tensors()}

    def numbers(self) -> dict[str, Any]:
        """Image size and distance coding, to be stored with the tensors."""
        assert self.columns is not None
        return self.columns.numbers()

    @property
    def _grid(self) -> tuple[int, int]:
        """Number of rows and of columns of tiles in the image."""
        return -(-self.size[0] // TILE), -(-self.size[1] // TILE)

    def _tiles_in(self, window: Window) -> Int[Tensor, " num_tiles"]:
        rows = torch.arange(window.top // TILE, -(-window.bottom // TILE))
        columns = torch.arange(window.left // TILE, -(-window.right // TILE))
        return (rows[:, None] * self._grid[1] + columns).reshape(-1).to(torch.int32)

    def _rows_of(self, tiles: Tensor) -> Tensor:
        return (self.size[0] - tiles.long() // self._grid[1] * TILE).clamp(max=TILE)

    def _columns_of(self, tiles: Tensor) -> Tensor:
        return (self.size[1] - tiles.long() % self._grid[1] * TILE).clamp(max=TILE)


def _high(trace: CompressedTrace) -> float:
    return trace.log_low + 65535 * trace.log_step


def _valid(tiles: Tensor, grid: tuple[int, int]) -> bool:
    inside = tiles.dim() == 1 and bool(((tiles >= 0) & (tiles < grid[0] * grid[1])).all())
    return inside and len(tiles.unique()) == len(tiles)
