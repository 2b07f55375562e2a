"""The views that a session looks at, and those of them that the user has prompted."""

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
"""Views that are visited together, at most, where what is known of the object does not change meanwhile."""


class Guide(Protocol):
    """What is known of an object, as :class:`sa3d_nerfstudio.segmentation.lifting.Lifting` gathers it."""

    field: MaskField

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """The probability of the object along rays, and where anything is known."""
        ...


class Views(Protocol):
    """What a session asks of the training views."""

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
        """What segmenters see of the view: all that its trace shows, at any size.

        Args:
            view: The view.
            side: Longer side up to which a photo keeps its size; None for the size of the trace.
        """
        ...

    def picture_size(self, view: int, side: int | None = None) -> tuple[int, int]:
        """Height and width of :meth:`picture`, told without making it."""
        ...

    def preload(self, view: int, picture: bool) -> None:
        """Bring into memory what lies on disk of a view, its picture included or not; called on another thread."""
        ...

    def begin_pass(self) -> None:
        """Told that all views are about to be visited in turn, so that it can be seen to what is kept of them."""
        ...


@runtime_checkable
class SharedViews(Views, Protocol):
    """Views that several processes can render together."""

    def trace_together(self, view: int, ranks: Ranks) -> None:
        """Render a view on all ranks, each a part of it, for the first one."""
        ...


@dataclass
class FreeView:
    """A view that is none of the training views, such as the one in the viewer, to be prompted like one of them."""

    trace: ViewTrace
    """Its trace."""
    camera_to_world: Float[Tensor, "3 4"]
    """Pose in nerfstudio's frame."""


@dataclass
class Search:
    """A search for the object in some views, whose results are still to be read."""

    found: Num[Tensor, "num 5"] | None
    """What has been found, where it is computed; None where nothing has to be known."""
    place: Callable[[Num[Tensor, "num 5"] | None], list[bool]]
    """Takes that from the host, places windows, and tells of each view whether the object may be there."""


@dataclass
class CloserPhoto:
    """A part of a view's photo."""

    whole: Window
    """All of the view at the working size."""
    part: Window
    """The part."""
    picture: Callable[[], Float[Tensor, "height width 3"]]
    """Makes its image."""


@dataclass(eq=False)
class SessionViews:
    """The training views by index, and free views by name."""

    training: Views
    free: dict[str, FreeView]
    report: SessionReport
    """Where the time that renders take is put down."""

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
        """What segmenters see of a view; of a free view, that is its render."""
        return self.free[view].trace.rgb if isinstance(view, str) else self.training.picture(view, side)

    def picture_size(self, view: ViewKey, side: int | None = None) -> tuple[int, int]:
        """Height and width of that."""
        if isinstance(view, str):
            trace = self.free[view].trace
            return trace.height, trace.width
        return self.training.picture_size(view, side)

    def pose(self, view: ViewKey) -> Float[Tensor, "3 4"]:
        """Camera-to-world of a view, in nerfstudio's frame."""
        poses = self.training.camera_to_worlds
        return self.free[view].camera_to_world.to(poses) if isinstance(view, str) else poses[view]

    # What windows of views change, see :class:`sa3d_nerfstudio.segmentation.windows.CloseViews`.

    def look_at_all_of(self, view: ViewKey) -> None:
        """Look at a view without a window from now on."""

    def window(self, view: ViewKey) -> Window | None:
        """The part of a view that is looked at; None where that is all of it."""
        return None

    def shown(self, view: ViewKey, side: int | None = None) -> ViewKey | tuple[int, Window]:
        """Names :meth:`picture`: a view, or a window of it."""
        return view

    def photo_window(self, view: ViewKey, side: int | None) -> Window | None:
        """The part of a view's photo that segmenters are shown which ask for a side; None where that is all of it."""
        return None

    def closer_photo(self, view: ViewKey, mask: Bool[Tensor, "height width"], side: int | None) -> CloserPhoto | None:
        """What segmenters that ask for a side are to be shown of a view's photo, where a mask of all of it is small
        there; None where that is all of it."""
        return None

    def locate(self, views: Sequence[int], guide: Guide) -> list[bool]:
        """Find the object in views, by what is known of it. Returns whether it may be there in each."""
        search = self.search(views, guide)
        return search.place(None if search.found is None else search.found.cpu())

    def search(self, views: Sequence[int], guide: Guide) -> Search:
        """Begin to :meth:`locate` the object, without a wait for what is found."""
        return Search(None, lambda _: [True] * len(views))

    def leaves(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Whether a mask leaves the window of a view, which can be widened there.

        Args:
            view: The view.
            touched: Whether the mask reaches the top, the left, the bottom and the right of the window.
        """
        return False

    def grow(self, view: ViewKey, touched: Sequence[bool]) -> bool:
        """Widen the window of a view where a mask :meth:`leaves` it. Returns whether it does."""
        return False

    def ray_weight(self, view: ViewKey) -> float:
        """What a ray of a view counts: larger images have more of them, and say no more for it."""
        return 1.0

    def surroundings(self, view: ViewKey) -> tuple[ViewTrace, Float[Tensor, " num_rays"]] | None:
        """What is seen of a view around its window, and what each ray of that counts; None for whole views."""
        return None

    def image(
        self, view: ViewKey, of: Callable[[ViewTrace], Float[Tensor, "rows columns channels"]]
    ) -> Float[Tensor, "height width channels"]:
        """An image of a whole view, as far as it has been traced.

        Args:
            view: The view.
            of: Makes an image of a trace, as large as that.
        """
        return of(self.trace(view))


@dataclass
class PromptedMask:
    """A view that the user has prompted, with the mask that came of it."""

    prompt: Prompt
    """In pixels of the candidates."""
    candidates: Candidates
    choice: int
    """Index of the candidate that is taken."""
    picked: bool = False
    """Whether the user has picked the candidate, be it the segmenter's favourite or another."""
    correcting: bool = False
    """Whether the user has corrected what the other views say, and not just pointed at the object."""

    original: Prompt | None = None
    """The prompt in pixels of the image that it was given for; None where that is ``prompt`` itself."""

    @property
    def mask(self) -> Bool[Tensor, "height width"]:
        return self.candidates.masks[self.choice]
