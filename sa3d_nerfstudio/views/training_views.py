"""The training views of a run: their names, cameras and traces."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.files import digest
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.models.rays import camera_rays
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.traces.compressed import CompressedTrace
from sa3d_nerfstudio.traces.window import Pixels, Window, bounds, render_window
from sa3d_nerfstudio.views.cache import ViewCache, default_budget, restored
from sa3d_nerfstudio.views.cameras import camera_digest, resized_camera
from sa3d_nerfstudio.views.names import find_view
from sa3d_nerfstudio.views.photos import Photos, on_pixels
from sa3d_nerfstudio.views.tiles import TiledTrace
from sa3d_nerfstudio.views.window_rays import WindowRays

SMALLEST = 16
"""Least longer side of an image in pixels, unless the working size is smaller: a few pixels show nothing."""
LOCATING = 4
"""Working size over the size of the images in which the rays near an object are located."""


class TrainingViews:
    """The training views of a run, each rendered once at a working size.

    Args:
        model: The base model with masks.
        cameras: Cameras of all training images.
        filenames: Paths of all training images, in the same order.
        long_side: Working size: the longer side of renders in pixels, at most.
        image_scale: Size of the original images over the size in ``cameras``, which nerfstudio may have scaled down.
        photos: Photos of the views, shown to segmenters; they see renders of views without one, by default of all.
        cache: Cache of the traces.
    """

    def __init__(
        self,
        model: MaskOutputs,
        cameras: Cameras,
        filenames: Sequence[Path],
        long_side: int,
        image_scale: float = 1.0,
        photos: Photos | None = None,
        cache: ViewCache | None = None,
    ) -> None:
        self.model = model
        self.cameras = cameras
        self.filenames = [Path(name) for name in filenames]
        self.long_side = long_side
        self.image_scale = image_scale
        self.photos = photos
        self.lock: AbstractContextManager[Any] = nullcontext()
        """Held during each render: the viewer renders with the same model on other threads."""
        self.cache = ViewCache(default_budget(model.device)) if cache is None else cache
        self._keys: dict[int, str] = {}
        self._known_sizes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._directions: list[Tensor] = []
        self._window_rays = WindowRays(cameras)
        self._frames: dict[tuple[int, int], Window] = {}
        self._others: dict[int, TrainingViews] = {long_side: self}
        """The same views at other working sizes, by that size."""

    def __len__(self) -> int:
        return len(self.filenames)

    def larger(self, factor: float) -> TrainingViews:
        """The same views at a larger working size, with the same cache; ``self`` where the images are no larger."""
        longest = max(int(self.cameras.height.max()), int(self.cameras.width.max()))
        side = min(round(self.long_side * factor), longest)
        return self if side <= self.long_side else self.sized(side)

    def sized(self, long_side: int) -> TrainingViews:
        """The same views at another working size, with the same cache."""
        if long_side not in self._others:
            views = self._others[long_side] = copy.copy(self)
            views.long_side, views._keys, views._known_sizes = long_side, {}, {}
            views._directions, views._frames, views._window_rays = [], {}, WindowRays(self.cameras)
        views = self._others[long_side]
        # These may have been replaced since the copy was made.
        views.lock, views.cache, views.photos = self.lock, self.cache, self.photos
        return views

    @property
    def camera_to_worlds(self) -> Float[Tensor, "num_views 3 4"]:
        """Poses in nerfstudio's frame."""
        return self.cameras.camera_to_worlds

    def name(self, view: int) -> str:
        """File name of the view's image."""
        return self.filenames[view].name

    def image_size(self, view: int) -> tuple[int, int]:
        """Height and width of the view's original image, whose pixels prompts are given in."""
        camera = self.cameras[view]
        return round(float(camera.height) * self.image_scale), round(float(camera.width) * self.image_scale)

    def find(self, view: str | int) -> int:
        """Index of a view, by the file name of its image or by its index; see :func:`names.find_view`."""
        return find_view(view, self.filenames)

    def camera(self, view: int) -> Cameras:
        """The view's camera at the working size."""
        return self._host_camera(view).to(self.model.device)

    def _host_camera(self, view: int) -> Cameras:
        """The same on the host."""
        return resized_camera(self.cameras, view, self.long_side)

    def trace(self, view: int) -> ViewTrace:
        """The view's trace, rendered unless it is in the cache."""
        trace = self.known_trace(view)
        if trace is not None:
            return trace
        tiles = self._tiles(view)
        if tiles is None:
            trace = self.render(self.camera(view))
        else:
            # Windows have rendered a part of the view before.
            trace = self._tiled(view, self.frame(view), tiles)
            self.cache.drop(f"tiles-{self.key(view)}")
        stored = (lambda: (trace.tensors(), trace.numbers())) if isinstance(trace, CompressedTrace) else None
        self.cache.put(f"trace-{self.key(view)}", trace, stored)
        return trace

    def trace_together(self, view: int, ranks: Ranks) -> None:
        """Render the missing tiles of a view on all ranks, each tile on one rank, and collect them on the first.

        Every rank has to call this. Models that cannot render parts of views are left alone.

        Args:
            view: Index of the view.
            ranks: The processes.
        """
        if not self.model.RENDERS_RAYS:
            return
        frame, tiles = self.frame(view), None
        if ranks.is_first and not self.is_rendered(view):
            tiles = self._tiles(view) or TiledTrace.empty(frame.size)
        missing = ranks.share(lambda: None if tiles is None else tiles.missing(frame))
        if missing is None:
            return
        numbers, rendered = missing[ranks.rank :: ranks.size], None
        if len(numbers):
            empty = TiledTrace.empty(frame.size)
            pixels = empty.pixels_of(numbers)
            trace = self.render(self.camera(view), Pixels(pixels, len(pixels), 1))
            rendered = empty.added(numbers, trace) if isinstance(trace, CompressedTrace) else None
        for message in ranks.collect(None if rendered is None else (rendered.tensors(), rendered.numbers())):
            received = None if message is None else TiledTrace.restored(frame.size, *message)
            if tiles is not None and received is not None and received.columns is not None:
                tiles = tiles.added(received.tiles, received.columns)
        if tiles is not None and tiles.num_rays:
            self._cache_tiles(view, tiles)

    def known_trace(self, view: int) -> ViewTrace | None:
        """The view's trace if it is in the cache, else None."""
        key = f"trace-{self.key(view)}"
        return self.cache.get(key, lambda tensors, numbers: self._restored(view, tensors, numbers))

    # Windows of views, at any working size.

    @property
    def has_windows(self) -> bool:
        """Whether the model can render parts of views; other models render whole images."""
        return self.model.RENDERS_RAYS or self.model.CROPS

    @property
    def has_photos(self) -> bool:
        """Whether segmenters see photos instead of renders, of some views at least."""
        return self.photos is not None

    def _photo_of(self, view: int) -> Photos | None:
        """The photos, if a view is among them."""
        return self.photos if self.photos is not None and self.photos.has(view) else None

    def is_rendered(self, view: int) -> bool:
        """Whether the trace of the whole view is in the cache."""
        return self.known_trace(view) is not None

    def is_partly_rendered(self, view: int) -> bool:
        """Whether the trace of the view or of a part of it is in the cache."""
        return self.is_rendered(view) or self._tiles(view) is not None

    def frame(self, view: int, factor: float = 1.0) -> Window:
        """The window of a whole view at the working size times a factor, but no larger than its photo."""
        key = (view, max(round(self.long_side * factor), min(SMALLEST, self.long_side)))
        if key not in self._frames:
            camera = self.cameras[view]
            longest = max(int(camera.height), int(camera.width))
            side = min(key[1], max(longest, self.long_side))
            sized = self.sized(side)._host_camera(view)
            size = (int(sized.height.max()), int(sized.width.max()))
            self._frames[key] = Window.whole(size, side, min(1.0, side / longest))
        return self._frames[key]

    def window_trace(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window of a view; only tiles that are not in the cache are rendered."""
        views = self.sized(window.long_side)
        if window.is_whole:
            return views.trace(view)
        whole = views.known_trace(view)
        if isinstance(whole, CompressedTrace):
            return whole.part(window.pixels(whole.coverage.device))
        if not self.model.RENDERS_RAYS:
            return views._cropped(view, window)
        tiles = views._tiles(view) or TiledTrace.empty(window.size)
        return views._tiled(view, window, tiles)

    def object_trace(self, view: int, field: MaskField, threshold: float) -> ViewTrace | None:
        """The trace of the part of a view that may show an object, or of the whole view if parts cannot be rendered.

        Args:
            view: Index of the view.
            field: Mask field of the object.
            threshold: Probability above which cells are on the object.

        Returns:
            None if no ray passes through the object.
        """
        if not self.model.RENDERS_RAYS or self.is_rendered(view):
            return self.trace(view)
        frame = self.frame(view, 1 / LOCATING)
        rays = camera_rays(self.sized(frame.long_side).camera(view))
        origins, directions = rays.origins.expand(len(rays.local), 3), rays.directions_of(slice(None))
        box = bounds(field.hits(origins, directions, threshold).reshape(frame.size))
        return None if box is None else self.window_trace(view, self.frame(view).around(box, frame.scale, 1.0, 0.0))

    def window_picture(self, view: int, window: Window) -> Float[Tensor, "height width 3"]:
        """The image of a window for a segmenter: the photo, resampled to the window's pixels, or the render."""
        if self._photo_of(view) is None:
            return self.window_trace(view, window).rgb
        return self.sized(window.long_side).picture(view)[window.rows, window.columns]

    def window_key(self, view: int, window: Window) -> str:
        """Key of a window of a view in caches of traces and of embeddings."""
        rectangle = f"{window.top}-{window.left}-{window.height}-{window.width}"
        return f"{self.sized(window.long_side).key(view)}-{rectangle}"

    def _cropped(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window, rendered by a camera that is cropped to it."""
        key = f"window-{self.window_key(view, window)}"
        trace = self.cache.get(key)
        if trace is None:
            trace = render_window(self._host_camera(view), window, self.render)
            self.cache.put(key, trace)
        return trace

    def _tiles(self, view: int) -> TiledTrace | None:
        """The view's tiles that are in the cache; None if there are none."""
        size = self.frame(view).size

        def read(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> TiledTrace:
            moved = restored(lambda: {name: tensor.to(self.model.device) for name, tensor in tensors.items()})
            return TiledTrace.restored(size, moved, numbers)

        return self.cache.get(f"tiles-{self.key(view)}", read)

    def _tiled(self, view: int, window: Window, tiles: TiledTrace) -> ViewTrace:
        """The trace of a window from tiles; missing tiles are rendered, and cached with the others."""
        key = f"window-{self.window_key(view, window)}"
        trace = self.cache.get(key)
        if trace is not None:
            return trace
        missing = tiles.missing(window)
        if len(missing):
            camera, pixels = self.camera(view), tiles.pixels_of(missing)
            rendered = self.render(camera, Pixels(pixels, len(pixels), 1))
            if not isinstance(rendered, CompressedTrace):
                # Traces with samples off the rays cannot be compressed: they are cached window by window.
                trace = self.render(camera, window.pixels())
                self.cache.put(key, trace)
                return trace
            tiles = tiles.added(missing, rendered)
            self._cache_tiles(view, tiles)
        if window.is_whole:
            # Traces of whole views stay in the cache, together with their rays.
            return tiles.trace(window, camera_rays(self.camera(view), self._directions))
        return tiles.trace(window, self._window_rays.of(view, self._host_camera(view), window, self.model.device))

    def _cache_tiles(self, view: int, tiles: TiledTrace) -> None:
        self.cache.put(f"tiles-{self.key(view)}", tiles, lambda: (tiles.tensors(), tiles.numbers()))

    def preload(self, view: int, picture: bool) -> None:
        """Read the trace of a view, if it is on disk, and its photo into memory.

        Nothing is rendered, so this may be called on another thread.

        Args:
            view: Index of the view.
            picture: Whether to read the photo.

        Raises:
            SA3DError: The photo cannot be read.
        """
        if self.known_trace(view) is None and self.model.RENDERS_RAYS:
            for views in list(self._others.values()):
                views.known_trace(view)
                views._tiles(view)
        photos = self._photo_of(view) if picture else None
        if photos is not None:
            photos.preload(view)

    def begin_pass(self) -> None:
        """Prepare the cache for a pass over all views."""
        self.cache.begin_pass()

    def key(self, view: int) -> str:
        """Digest of the view's camera at the working size."""
        if view not in self._keys:
            self._keys[view] = camera_digest(self._host_camera(view))
        return self._keys[view]

    def picture_key(self, view: int, side: int | None = None) -> str:
        """Digest of everything that :meth:`picture` depends on."""
        if self._photo_of(view) is None or not self.filenames[view].exists():
            return self.key(view)
        state = self.filenames[view].stat()
        return digest([self.key(view), self.name(view), state.st_size, state.st_mtime_ns, side])

    def _restored(self, view: int, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> CompressedTrace:
        tensors = restored(lambda: {name: tensor.to(self.model.device) for name, tensor in tensors.items()})
        return CompressedTrace.restored(tensors, numbers, camera_rays(self.camera(view), self._directions))

    def render(self, camera: Cameras, pixels: Pixels | None = None) -> ViewTrace:
        """Render the trace of any camera, or of some of its pixels, compressed if possible; not cached."""
        camera = camera.to(self.model.device)
        if pixels is None:
            return self.model.compressed_view(camera, self.lock, self._directions)
        return self.model.compressed_view(camera, self.lock, pixels=pixels)

    def render_from(self, pose: Float[Tensor, "3 4"], angle: float, side: int) -> ViewTrace:
        """Render the trace of a square image of a pinhole camera at any pose; not cached.

        Args:
            pose: Camera-to-world in nerfstudio's frame.
            angle: Field of view in radians.
            side: Height and width in pixels.
        """
        focal = side / (2 * math.tan(angle / 2))
        camera = Cameras(pose[None, :3], focal, focal, side / 2, side / 2, side, side)
        camera = camera.to(self.model.device)
        return self.model.compressed_view(camera, self.lock)

    def picture(self, view: int, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """The image of a view for a segmenter, in [0, 1]: the photo, cut to the render's extent, or the render.

        Args:
            view: Index of the view.
            side: Longer side of the photo in pixels, at most; None to resample it to the render's pixels.
        """
        photos = self._photo_of(view)
        if photos is None:
            return self.trace(view).rgb
        full, render = self._sizes(view)
        photo = photos.photo(view).to(self.model.device, torch.float32)
        return on_pixels(photo, full, render, self.long_side, self.picture_size(view, side))

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`."""
        full, render = self._sizes(view)
        if self._photo_of(view) is None or side is None:
            return render
        shown = [part * max(1.0, max(full) / self.long_side) for part in render]
        scale = min(1.0, side / max(shown))
        height, width = (max(round(part * scale), 1) for part in shown)
        return height, width

    def _sizes(self, view: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of a view's camera, and of its render."""
        if view not in self._known_sizes:
            full, render = self.cameras[view], self._host_camera(view)
            self._known_sizes[view] = (
                (int(full.height), int(full.width)),
                (int(render.height), int(render.width)),
            )
        return self._known_sizes[view]
