"""The training views of a run: their names, cameras and traces."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

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
from sa3d_nerfstudio.traces.window import Pixels, Window, bounds, cropped
from sa3d_nerfstudio.views.cache import ViewCache, default_budget, restored
from sa3d_nerfstudio.views.names import find_view
from sa3d_nerfstudio.views.tiles import TiledTrace
from sa3d_nerfstudio.views.window_rays import WindowRays

CAMERA_PARTS = (
    *("camera_to_worlds", "fx", "fy", "cx", "cy", "height", "width"),
    *("distortion_params", "camera_type", "times", "metadata"),
)
"""All that nerfstudio's cameras are made of."""
PHOTOS_AHEAD = 4
"""Photos that are held, having been read ahead; those of views that were passed over go first."""

SMALLEST = 16
"""Longer side that frames have at least, unless views are smaller: a few pixels show nothing."""
LOCATING = 4
"""Rays that may pass an object are told in images smaller than the working size by this."""

Kept = TypeVar("Kept")


class TrainingViews:
    """The training views of a run, rendered at a working size, each once.

    Args:
        model: The base model with masks.
        cameras: Of all training images.
        filenames: Of all training images, in the same order.
        long_side: Images are rendered with their longer side no longer than this.
        image_scale: Size of the original images over the size in ``cameras``, which nerfstudio may have scaled down.
        photo: The image that a view was trained on, of any size, [height, width, 3] in [0, 1]; where it is given,
            segmenters see it, and else what the model renders.
        cache: Keeps what is rendered.
    """

    def __init__(
        self,
        model: MaskOutputs,
        cameras: Cameras,
        filenames: Sequence[Path],
        long_side: int,
        image_scale: float = 1.0,
        photo: Callable[[int], Float[Tensor, "rows columns 3"]] | None = None,
        cache: ViewCache | None = None,
    ) -> None:
        self.model = model
        self.cameras = cameras
        self.filenames = [Path(name) for name in filenames]
        self.long_side = long_side
        self.image_scale = image_scale
        self.photo = photo
        self.lock: AbstractContextManager[Any] = nullcontext()
        """Held while the model renders; the viewer renders with the same model on other threads."""
        self.cache = ViewCache(default_budget(model.device)) if cache is None else cache
        self._keys: dict[int, str] = {}
        self._known_sizes: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._directions: list[Tensor] = []
        self._window_rays = WindowRays(cameras)
        self._photos: dict[int, Tensor] = {}
        self._frames: dict[tuple[int, int], Window] = {}
        self._others: dict[int, TrainingViews] = {long_side: self}
        """The same views in images of other sizes, by their longer side."""

    def __len__(self) -> int:
        return len(self.filenames)

    def larger(self, factor: float) -> TrainingViews:
        """The same views in larger images, with the same cache; themselves where the originals are no larger."""
        longest = max(int(self.cameras.height.max()), int(self.cameras.width.max()))
        side = min(round(self.long_side * factor), longest)
        return self if side <= self.long_side else self.sized(side)

    def sized(self, long_side: int) -> TrainingViews:
        """The same views in images whose longer side is no longer than this, with the same cache."""
        if long_side not in self._others:
            views = self._others[long_side] = copy.copy(self)
            views.long_side, views._keys, views._known_sizes = long_side, {}, {}
            views._directions, views._frames, views._window_rays = [], {}, WindowRays(self.cameras)
        views = self._others[long_side]
        # What may have been exchanged meanwhile.
        views.lock, views.cache, views.photo = self.lock, self.cache, self.photo
        return views

    @property
    def camera_to_worlds(self) -> Float[Tensor, "num_views 3 4"]:
        """Poses in nerfstudio's frame."""
        return self.cameras.camera_to_worlds

    def name(self, view: int) -> str:
        """File name of the view's image."""
        return self.filenames[view].name

    def image_size(self, view: int) -> tuple[int, int]:
        """Height and width of the view's original image, in which prompts are given."""
        camera = self.cameras[view]
        return round(float(camera.height) * self.image_scale), round(float(camera.width) * self.image_scale)

    def find(self, view: str | int) -> int:
        """Index of a view that is given by its image's file name or by its index; see :func:`view_names.find_view`."""
        return find_view(view, self.filenames)

    def camera(self, view: int) -> Cameras:
        """The view's camera at the working size."""
        return self._camera(view).to(self.model.device)

    def _camera(self, view: int) -> Cameras:
        """The same on the host, where whoever asks what it is like waits for nothing."""
        camera = self.cameras[view : view + 1].to("cpu")
        longest = max(int(camera.height.max()), int(camera.width.max()))
        if longest > self.long_side:
            camera.rescale_output_resolution(self.long_side / longest)
        return camera

    def trace(self, view: int) -> ViewTrace:
        """The view's trace."""
        found = self.known_trace(view)
        if found is not None:
            return found
        tiles = self._tiles(view)
        if tiles is None:
            trace = self.look(self.camera(view))
        else:
            # The rest of what windows have shown already.
            trace = self._tiled(view, self.frame(view), tiles)
            self.cache.drop(f"tiles-{self.key(view)}")
        stored = (lambda: (trace.tensors(), trace.numbers())) if isinstance(trace, CompressedTrace) else None
        self.cache.put(f"trace-{self.key(view)}", trace, stored)
        return trace

    def trace_together(self, view: int, ranks: Ranks) -> None:
        """Render what has not been rendered of a view on all ranks, every tile on one of them, for the first rank.

        Called on all of them. Where parts of views cannot be rendered, nothing is done.

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
        own, part = missing[ranks.rank :: ranks.size], None
        if len(own):
            empty = TiledTrace.empty(frame.size)
            pixels = empty.pixels_of(own)
            traced = self.look(self.camera(view), Pixels(pixels, len(pixels), 1))
            part = empty.added(own, traced) if isinstance(traced, CompressedTrace) else None
        for told in ranks.collect(None if part is None else (part.tensors(), part.numbers())):
            other = None if told is None else TiledTrace.restored(frame.size, *told)
            if tiles is not None and other is not None and other.columns is not None:
                tiles = tiles.added(other.tiles, other.columns)
        if tiles is not None and tiles.num_rays:
            kept = tiles
            self.cache.put(f"tiles-{self.key(view)}", tiles, lambda: (kept.tensors(), kept.numbers()))

    def known_trace(self, view: int) -> ViewTrace | None:
        """The view's trace if it has been rendered before; None else."""
        key = f"trace-{self.key(view)}"
        return self.cache.get(key, lambda tensors, numbers: self._restored(view, tensors, numbers))

    # Windows of views, at any size.

    @property
    def has_windows(self) -> bool:
        """Whether parts of views can be rendered; else whole images."""
        return self.model.RENDERS_RAYS or self.model.CROPS

    @property
    def has_photos(self) -> bool:
        """Whether segmenters see photos."""
        return self.photo is not None

    def is_rendered(self, view: int) -> bool:
        """Whether the whole view has been rendered before."""
        return self.known_trace(view) is not None

    def is_looked_at(self, view: int) -> bool:
        """Whether the view, or a part of it, has been rendered before."""
        return self.is_rendered(view) or self._tiles(view) is not None

    def frame(self, view: int, factor: float = 1.0) -> Window:
        """All of a view in images larger than the working size by a factor, or smaller, as far as photos go."""
        key = (view, max(round(self.long_side * factor), min(SMALLEST, self.long_side)))
        if key not in self._frames:
            camera = self.cameras[view]
            longest = max(int(camera.height), int(camera.width))
            side = min(key[1], max(longest, self.long_side))
            sized = self.sized(side).camera(view)
            size = (int(sized.height.max()), int(sized.width.max()))
            self._frames[key] = Window.whole(size, side, min(1.0, side / longest))
        return self._frames[key]

    def window_trace(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window of a view, of which only what has not been traced yet is rendered."""
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
        """The trace of that part of a view in which an object may be, or of all of it where parts cannot be told.

        Args:
            view: Index of the view.
            field: Of the object.
            threshold: Probability above which something is on the object.

        Returns:
            None where no ray passes the object.
        """
        if not self.model.RENDERS_RAYS or self.is_rendered(view):
            return self.trace(view)
        frame = self.frame(view, 1 / LOCATING)
        rays = camera_rays(self.sized(frame.long_side).camera(view))
        origins, directions = rays.origins.expand(len(rays.local), 3), rays.directions_of(slice(None))
        box = bounds(field.hits(origins, directions, threshold).reshape(frame.size))
        return None if box is None else self.window_trace(view, self.frame(view).around(box, frame.scale, 1.0, 0.0))

    def window_picture(self, view: int, window: Window) -> Float[Tensor, "height width 3"]:
        """What a segmenter sees of a window: the render, or that part of the photo, on the window's pixels."""
        if self.photo is None:
            return self.window_trace(view, window).rgb
        return self.sized(window.long_side).picture(view)[window.rows, window.columns]

    def window_key(self, view: int, window: Window) -> str:
        """Stands for a window of a view, and for the photo that segmenters see of it."""
        place = f"{window.top}-{window.left}-{window.height}-{window.width}"
        return f"{self.sized(window.long_side).key(view)}-{place}"

    def _cropped(self, view: int, window: Window) -> ViewTrace:
        """The trace of a window by a camera that shows no more than that."""
        key = f"window-{self.window_key(view, window)}"
        trace = self.cache.get(key)
        if trace is None:
            trace = self.look(cropped(self._camera(view), window))
            self.cache.put(key, trace)
        return trace

    def _tiles(self, view: int) -> TiledTrace | None:
        size = self.frame(view).size

        def read(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> TiledTrace:
            moved = restored(lambda: {name: tensor.to(self.model.device) for name, tensor in tensors.items()})
            return TiledTrace.restored(size, moved, numbers)

        return self.cache.get(f"tiles-{self.key(view)}", read)

    def _tiled(self, view: int, window: Window, tiles: TiledTrace) -> ViewTrace:
        """The trace of a window; what has to be rendered for it goes to the tiles, and these to the cache."""
        key = f"window-{self.window_key(view, window)}"
        plain = self.cache.get(key)
        if plain is not None:
            return plain
        missing = tiles.missing(window)
        if len(missing):
            camera, pixels = self.camera(view), tiles.pixels_of(missing)
            traced = self.look(camera, Pixels(pixels, len(pixels), 1))
            if not isinstance(traced, CompressedTrace):
                # Samples off the rays: such a trace is kept as it is, window by window.
                trace = self.look(camera, window.pixels())
                self.cache.put(key, trace)
                return trace
            tiles = tiles.added(missing, traced)
            kept = tiles
            self.cache.put(f"tiles-{self.key(view)}", tiles, lambda: (kept.tensors(), kept.numbers()))
        if window.is_whole:
            # Which is kept, and so holds its rays as other whole views do.
            return tiles.trace(window, camera_rays(self.camera(view), self._directions))
        return tiles.trace(window, self._window_rays.of(view, self._camera(view), window, self.model.device))

    def preload(self, view: int, picture: bool) -> None:
        """Bring into memory what lies on disk of a view: its trace, if it has been rendered before, and its photo.

        Nothing is rendered, so this may be done on another thread.

        Raises:
            SA3DError: The photo cannot be read.
        """
        if self.known_trace(view) is None and self.model.RENDERS_RAYS:
            for views in list(self._others.values()):
                views.known_trace(view)
                views._tiles(view)
        if picture and self.photo is not None and view not in self._photos:
            self._photos[view] = self.photo(view)
            for other in list(self._photos)[:-PHOTOS_AHEAD]:
                self._photos.pop(other, None)

    def begin_pass(self) -> None:
        """Told that all views are about to be visited in turn."""
        self.cache.begin_pass()

    def key(self, view: int) -> str:
        """Stands for the view's camera at the working size."""
        if view not in self._keys:
            camera = self.camera(view)
            self._keys[view] = digest([getattr(camera, name) for name in CAMERA_PARTS])
        return self._keys[view]

    def picture_key(self, view: int, side: int | None = None) -> str:
        """Stands for all that :meth:`picture` depends on."""
        if self.photo is None or not self.filenames[view].exists():
            return self.key(view)
        state = self.filenames[view].stat()
        return digest([self.key(view), self.name(view), state.st_size, state.st_mtime_ns, side])

    def _restored(self, view: int, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> CompressedTrace:
        tensors = restored(lambda: {name: tensor.to(self.model.device) for name, tensor in tensors.items()})
        return CompressedTrace.restored(tensors, numbers, camera_rays(self.camera(view), self._directions))

    def look(self, camera: Cameras, pixels: Pixels | None = None) -> ViewTrace:
        """The trace of any camera, or of some of its pixels, packed where it can be; rendered each time."""
        camera = camera.to(self.model.device)
        if pixels is None:
            return self.model.compressed_view(camera, self.lock, self._directions)
        return self.model.compressed_view(camera, self.lock, pixels=pixels)

    def look_from(self, pose: Float[Tensor, "3 4"], angle: float, side: int) -> ViewTrace:
        """The trace of a square image of a pinhole camera anywhere; rendered each time.

        Args:
            pose: Camera-to-world in nerfstudio's frame.
            angle: Field of view in radians.
            side: Pixels along each side.
        """
        focal = side / (2 * math.tan(angle / 2))
        camera = Cameras(pose[None, :3], focal, focal, side / 2, side / 2, side, side)
        camera = camera.to(self.model.device)
        return self.model.compressed_view(camera, self.lock)

    def picture(self, view: int, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """What a segmenter sees of a view, in [0, 1]: the photo, cut to what the render shows, or else the render.

        Args:
            view: Index of the view.
            side: Longer side up to which a photo keeps its size; None to bring it to the render's pixels.
        """
        if self.photo is None:
            return self.trace(view).rgb
        preloaded = self._photos.pop(view, None)
        photo = self.photo(view) if preloaded is None else preloaded
        full, render = self._sizes(view)
        photo = photo.to(self.model.device, torch.float32)
        return on_pixels(photo, full, render, self.long_side, self.picture_size(view, side))

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`."""
        full, render = self._sizes(view)
        if self.photo is None or side is None:
            return render
        shown = [part * max(1.0, max(full) / self.long_side) for part in render]
        scale = min(1.0, side / max(shown))
        height, width = (max(round(part * scale), 1) for part in shown)
        return height, width

    def _sizes(self, view: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Height and width of a view's camera, and of its render."""
        if view not in self._known_sizes:
            full, render = self.cameras[view], self.camera(view)
            self._known_sizes[view] = (
                (int(full.height), int(full.width)),
                (int(render.height), int(render.width)),
            )
        return self._known_sizes[view]


@torch.no_grad()
def learnt_poses(model: MaskOutputs, cameras: Cameras) -> Cameras:
    """The training cameras where the base run's camera optimiser has moved them to.

    A model that was trained with one has learnt the scene as seen from there, yet nerfstudio renders from the poses of
    the data set once training is over. Only from the learnt ones do render and photo lie on each other.

    Args:
        model: The base model.
        cameras: Of all training images, as the data set has them.

    Returns:
        The same cameras where there is no optimiser, or nothing has been learnt.
    """
    optimizer = getattr(model, "camera_optimizer", None)
    if optimizer is None or getattr(optimizer, "num_cameras", None) != len(cameras) or optimizer.config.mode == "off":
        return cameras
    moved = optimizer.get_correction_matrices().to(cameras.camera_to_worlds)
    given = cameras.camera_to_worlds
    # As nerfstudio's optimiser moves rays: directions are turned, and origins shifted, in the world.
    # Turned without a product of matrices, which CUDA may be set to do in 10 bits.
    turned = (moved[:, :, :3, None] * given[:, None, :, :3]).sum(2)
    poses = torch.cat([turned, given[:, :, 3:] + moved[:, :, 3:]], dim=-1)
    if torch.equal(poses, given):
        return cameras
    cameras = copy.copy(cameras)
    cameras.camera_to_worlds = poses
    return cameras


def on_pixels(
    photo: Float[Tensor, "rows columns 3"],
    camera_size: tuple[int, int],
    size: tuple[int, int],
    long_side: int,
    wanted: tuple[int, int] | None = None,
) -> Float[Tensor, "height width 3"]:
    """A photo as a render shows it.

    Nerfstudio rounds sizes down when it scales a camera: the render then lacks part of a pixel at the right and at the
    bottom, and the photo is cut there before it is resized.

    Args:
        photo: The photo, of any size.
        camera_size: Height and width of its camera.
        size: Height and width of the render.
        long_side: Long side of the render as it was asked for.
        wanted: Height and width of the result, if not those of the render.
    """
    wanted = size if wanted is None else wanted
    scale = min(1.0, long_side / max(camera_size))
    shown = [
        min(round(part / scale / whole * have), have)
        for part, whole, have in zip(size, camera_size, photo.shape[:2], strict=True)
    ]
    if tuple(shown) == wanted:
        return photo[: wanted[0], : wanted[1]]
    cut = photo[: shown[0], : shown[1]].permute(2, 0, 1)[None]
    return torch.nn.functional.interpolate(cut, wanted, mode="bilinear", antialias=True)[0].permute(1, 2, 0).clamp(0, 1)
