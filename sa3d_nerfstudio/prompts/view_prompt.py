"""Prompts of the viewer: immutable, in shares of a view's width and height."""

from __future__ import annotations

from dataclasses import dataclass, field

from sa3d_nerfstudio.prompts.prompt import Prompt


@dataclass(frozen=True)
class Mark:
    """A point in a view."""

    x: float
    """Position from the left border, 0, to the right border, 1."""
    y: float
    """Position from the top, 0, to the bottom, 1."""
    on_object: bool
    """True on the object, False on something else."""
    place: tuple[float, float, float] | None = field(default=None, compare=False)
    """World position of its marker; derived from the other fields."""

    def pixel(self, height: int, width: int) -> tuple[int, int]:
        """x, y of its pixel in an image of this size."""
        return min(int(self.x * width), width - 1), min(int(self.y * height), height - 1)


@dataclass(frozen=True)
class ViewPrompt:
    """Prompt for one object in one view."""

    view: str
    """Name of the view."""
    marks: tuple[Mark, ...] = ()
    """The user's points."""
    box: tuple[float, float, float, float] | None = None
    """x0, y0, x1, y1, as shares of width and height."""
    context: tuple[Mark, ...] = ()
    """Points on the object as rendered when the view was first prompted; they preserve its untouched parts."""
    correcting: bool = False
    """Whether other views had contributed evidence before: this prompt then outweighs them."""
    choice: int | None = None
    """Index of the candidate that the user chose; None for the segmenter's choice."""

    @property
    def is_empty(self) -> bool:
        """Whether the user has placed neither a point nor a box."""
        return not self.marks and self.box is None

    def pixels(self, height: int, width: int) -> Prompt:
        """The prompt in pixels of an image of this size."""

        def places(marks: list[Mark]) -> list[tuple[float, float]]:
            return [mark.pixel(height, width) for mark in marks]

        box = None
        if self.box is not None:
            x0, y0, x1, y1 = self.box
            box = (x0 * width, y0 * height, x1 * width, y1 * height)
        all_marks = [*self.marks, *self.context]
        on = places([mark for mark in all_marks if mark.on_object])
        off = places([mark for mark in all_marks if not mark.on_object])
        return Prompt.from_points(height, width, on, off, box)
