"""The views of a session, and the masks of those that the user has prompted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Num
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.base import RayTrace, ViewTrace
from sa3d_nerfstudio.traces.window import Window

ViewKey = int | str
"""Index of a training view, or name of a free view."""
TOGETHER = 8
"""Views that are visited together, at most, where the field that renders their masks does not change meanwhile."""


class Guide(Protocol):
    """Evidence of an object that can be rendered, such as :class:`sa3d_nerfstudio.segmentation.lifting.Lifting`."""

    field: MaskField

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """Probability of the object along each ray, and whether the ray has evidence."""
        ...


class Views(Protocol):
    """The training views, as a session uses them."""

    def __len__(self) -> int: ...

    @property
    def camera_to_worlds(self) -> Float[Tensor, "num_views 3 4"]:
        """Poses in nerfstudio's frame."""
        ...

    def name(self, view: int) -> str:
        """File name of the view's image."""
        ...

    def trace(self, view: int) -> ViewTrace:
        """The view's trace; rendered once."""
        ...

    def picture(self, view: int, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """Image of the view for segmenters: the same field of view as its trace, at any size.

        Args:
            view: The view.
            side: Longer side up to which a photo keeps its size; None for the size of the trace.
        """
        ...

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`, without making it."""
        ...

    def preload(self, view: int, picture: bool) -> None:
        """Load a view's cache entries from disk, with or without its picture; called on another thread."""
        ...

    def begin_pass(self) -> None:
        """Called before all views are visited in turn, so that the cache can choose what to keep."""
        ...


@runtime_checkable
class SharedViews(Views, Protocol):
    """Views that several processes can render together."""

    def trace_together(self, view: int, ranks: Ranks) -> None:
        """Render a view on all ranks, each a part of it, for rank 0."""
        ...


@dataclass
class FreeView:
    """A view beside the training views, such as the viewer's camera, that can be prompted like one of them."""

    trace: ViewTrace
    camera_to_world: Float[Tensor, "3 4"]
    """Pose in nerfstudio's frame."""


@dataclass
class Search:
    """A search for the object in some views, before its result has been read."""

    found: Num[Tensor, "num 5"] | None
    """Bounds of each view's rendered mask (:func:`sa3d_nerfstudio.traces.window.sides_of`), on its device; None where
    no result has to be read."""
    place: Callable[[Num[Tensor, "num 5"] | None], list[bool]]
    """Places windows by ``found`` on the host, and returns whether the object may be in each view."""


@dataclass
class CloserPhoto:
    """A window of a view's photo."""

    whole: Window
    """The whole view at the working size."""
    part: Window
    """The window."""
    picture: Callable[[], Float[Tensor, "height width 3"]]
    """Makes the window's image."""


@dataclass(eq=False)
class SessionViews:
    """The training views by index, and free views by name."""

    training: Views
    free: dict[str, FreeView]
    report: SessionReport
    """Report to which the time of renders is added."""
    training_ray_weight: float = 1.0
    """Weight of each ray of a training view; less than 1 in images larger than the working size."""

    def name(self, view: ViewKey) -> str:
        """File name of a training view's image, or name of a free view."""
        return view if isinstance(view, str) else self.training.name(view)

    def trace(self, view: ViewKey) -> ViewTrace:
        """The trace of a training view or a free view."""
        if isinstance(view, str):
            return self.free[view].trace
        with self.report.timed("render"):
            return self.training.trace(view)

    def picture(self, view: ViewKey, side: int | None = None) -> Float[Tensor, "height width 3"]:
        """Image of a view for segmenters; for a free view, its render."""
        return self.free[view].trace.rgb if isinstance(view, str) else self.training.picture(view, side)

    def picture_size(self, view: ViewKey, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`."""
        if isinstance(view, str):
            trace = self.free[view].trace
            return trace.height, trace.width
        return self.training.picture_size(view, side)

    def pose(self, view: ViewKey) -> Float[Tensor, "3 4"]:
        """Camera-to-world of a view, in nerfstudio's frame."""
        poses = self.training.camera_to_worlds
        return self.free[view].camera_to_world.to(poses) if isinstance(view, str) else poses[view]

    # Methods that windows of views change, see :class:`sa3d_nerfstudio.segmentation.windows.CloseViews`.

    def use_whole_view(self, view: ViewKey) -> None:
        """Use a whole view, without a window, from now on."""

    def window(self, view: ViewKey) -> Window | None:
        """Window of a view that is traced at full size; None for a whole view."""
        return None

    def embedding_key(self, view: ViewKey, side: int | None = None) -> ViewKey | tuple[int, Window]:
        """Key of :meth:`picture`: a view, or a window of it."""
        return view

    def photo_window(self, view: ViewKey, side: int | None) -> Window | None:
        """Window of a view's photo for segmenters with an input ``side``; None for the whole photo."""
        return None

    def closer_photo(self, view: ViewKey, mask: Bool[Tensor, "height width"], side: int | None) -> CloserPhoto | None:
        """Window of a view's photo around a mask of the whole view that is small in it, for segmenters with an input
        ``side``; None for the whole photo."""
        return None

    def locate(self, views: Sequence[int], guide: Guide) -> list[bool]:
        """Locate the object in views, by masks rendered from ``guide``. Returns whether it may be in each view."""
        search = self.search(views, guide)
        return search.place(None if search.found is None else search.found.cpu())

    def search(self, views: Sequence[int], guide: Guide) -> Search:
        """Begin to :meth:`locate` the object, without a wait for the result."""
        return Search(None, lambda _: [True] * len(views))

    def leaves(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Whether a mask leaves the window of a view on a side where the window can be widened.

        Args:
            view: The view.
            touched: Whether the mask reaches the top, the left, the bottom and the right of the window.
        """
        return False

    def grow(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Widen the window of a view where a mask :meth:`leaves` it. Returns whether it was widened."""
        return False

    def ray_weight(self, view: ViewKey) -> float:
        """Weight of each ray of a view: larger images have more rays, which together count the same."""
        return 1.0 if isinstance(view, str) else self.training_ray_weight

    def surroundings(self, view: ViewKey) -> tuple[ViewTrace, Float[Tensor, " num_rays"]] | None:
        """Coarse trace of a view around its window, and the weight of each of its rays; None for whole views."""
        return None

    def image(
        self, view: ViewKey, of: Callable[[ViewTrace], Float[Tensor, "rows columns channels"]]
    ) -> Float[Tensor, "height width channels"]:
        """Image of a whole view, each part as fine as it has been traced.

        Args:
            view: The view.
            of: Makes an image of a trace, at its size.
        """
        return of(self.trace(view))


@dataclass
class PromptedMask:
    """The user's prompt in one view, and the segmenter's candidates for it."""

    prompt: Prompt
    """Prompt in pixels of the candidates."""
    candidates: Candidates
    choice: int
    """Index of the candidate that is taken."""
    picked: bool = False
    """Whether the user has picked the candidate, be it the segmenter's favourite or another."""
    correcting: bool = False
    """Whether other views had contributed evidence before the prompt, which corrects them and outweighs them."""

    original: Prompt | None = None
    """Prompt in pixels of the image that it was given for; None where that is ``prompt`` itself."""

    @property
    def mask(self) -> Bool[Tensor, "height width"]:
        return self.candidates.masks[self.choice]
