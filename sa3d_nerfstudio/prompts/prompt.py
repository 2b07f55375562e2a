"""Prompt for an object in one image, in pixels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

CandidateName = Literal["auto", "small", "medium", "large"]
"""Choice among a segmenter's candidates: the segmenter's favourite, or one by its area."""
CANDIDATES: tuple[CandidateName, ...] = get_args(CandidateName)


@dataclass
class Prompt:
    """Prompt for an object in one image of ``height`` x ``width`` pixels.

    Coordinates are x, y pixel indices from the top left of *that* image: (0, 0) is the top left pixel.
    A prompt may hold any mix of points, a box, a mask and a prior; at least one positive point, a box or a mask is
    needed to select anything.
    """

    height: int
    """Height of the image that the coordinates refer to."""
    width: int
    """Width of the image that the coordinates refer to."""
    points: Float[Tensor, "num_points 2"] = field(default_factory=lambda: torch.zeros(0, 2))
    """x, y of each point."""
    labels: Bool[Tensor, " num_points"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """True where the point lies on the object, False where it lies on something else."""
    box: Float[Tensor, "4"] | None = None
    """x0, y0, x1, y1 of a rectangle around the object, upper bounds exclusive."""
    mask: Bool[Tensor, "height width"] | None = None
    """The object's mask, where the user supplies it: lifted as it is, without a segmenter."""
    prior: Float[Tensor, "height width"] | None = None
    """Rendered probability of the object at each pixel; NaN where there is no evidence."""
    candidate: CandidateName = "auto"
    """Which of the segmenter's candidates to take."""

    @classmethod
    def from_points(
        cls,
        height: int,
        width: int,
        positive: object = (),
        negative: object = (),
        box: object = None,
        prior: Tensor | None = None,
        candidate: CandidateName = "auto",
    ) -> Prompt:
        """Build a prompt from sequences of (x, y) pairs.

        Args:
            height: Height of the image.
            width: Width of the image.
            positive: (x, y) pairs on the object, any array-like of shape [num, 2].
            negative: (x, y) pairs on something else, likewise.
            box: x0, y0, x1, y1, or None.
            prior: Probabilities of shape [height, width], or None.
            candidate: Which of the segmenter's candidates to take.
        """
        on = torch.as_tensor(np.asarray(positive, dtype=np.float32).reshape(-1, 2))
        off = torch.as_tensor(np.asarray(negative, dtype=np.float32).reshape(-1, 2))
        labels = torch.cat([torch.ones(len(on), dtype=torch.bool), torch.zeros(len(off), dtype=torch.bool)])
        rectangle = None if box is None else torch.as_tensor(np.asarray(box, dtype=np.float32).reshape(4))
        return cls(height, width, torch.cat([on, off]), labels, rectangle, prior=prior, candidate=candidate)

    @property
    def positive(self) -> Float[Tensor, "num 2"]:
        """x, y of the points on the object."""
        return self.points[self.labels]

    @property
    def negative(self) -> Float[Tensor, "num 2"]:
        """x, y of the points on something else."""
        return self.points[~self.labels]

    @property
    def is_empty(self) -> bool:
        """Whether the prompt selects nothing."""
        return self.mask is None and self.box is None and not bool(self.labels.any())

    def with_points(self, positive: object, negative: object = ()) -> Prompt:
        """The same prompt with further (x, y) pairs on the object and on something else."""
        more = Prompt.from_points(self.height, self.width, positive, negative)
        return replace(self, points=torch.cat([self.points, more.points]), labels=torch.cat([self.labels, more.labels]))

    def avoiding(self, points: Float[Tensor, "num 2"]) -> Prompt:
        """The same prompt with further points on something else."""
        return self.with_points((), points)

    def moved(self, height: int, width: int) -> Prompt:
        """The same prompt in an image of another size; points keep their positions to fractions of a pixel."""
        if (height, width) == (self.height, self.width):
            return self
        moved = self.resized(height, width)
        moved.points = ((self.points + 0.5) * torch.tensor([width / self.width, height / self.height])) - 0.5
        return moved

    def resized(self, height: int, width: int) -> Prompt:
        """The same prompt in an image of another size; each point moves to the pixel that contains its centre."""
        scale = torch.tensor([width / self.width, height / self.height])
        points = ((self.points + 0.5) * scale).floor()
        points = torch.minimum(points, torch.tensor([width - 1.0, height - 1.0])).clamp(min=0)
        box = None if self.box is None else self.box * scale.repeat(2)
        mask = self.mask
        if mask is not None:
            mask = _nearest(mask.float(), height, width) > 0
        prior = self.prior
        if prior is not None and prior.shape != (height, width):
            prior = _nearest(prior, height, width)
        return Prompt(height, width, points, self.labels, box, mask, prior, self.candidate)

    def placed(self, top: int, left: int, height: int, width: int) -> Prompt:
        """The same prompt in a larger image, which contains this one from row ``top`` and column ``left`` on."""
        corner = torch.tensor([float(left), float(top)])
        box = None if self.box is None else self.box + corner.repeat(2)
        sides = (left, width - left - self.width, top, height - top - self.height)
        mask = None if self.mask is None else torch.nn.functional.pad(self.mask, sides)
        prior = None if self.prior is None else torch.nn.functional.pad(self.prior, sides, value=torch.nan)
        return Prompt(height, width, self.points + corner, self.labels, box, mask, prior, self.candidate)


def _nearest(image: Float[Tensor, "rows columns"], height: int, width: int) -> Float[Tensor, "height width"]:
    return torch.nn.functional.interpolate(image[None, None], size=(height, width), mode="nearest-exact")[0, 0]
