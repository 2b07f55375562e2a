"""The trace of a view: the linear map from a mask field to the mask's image, and its adjoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField


class TraceRows(Protocol):
    """The rows of ``A`` of some rays, for one field, prepared for many products."""

    def render(self, values: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_rows"]:
        """``A x``."""
        ...

    def backproject(self, image: Float[Tensor, " num_rows"], out: Float[Tensor, " num_cells"]) -> None:
        """Add ``Aᵀ y`` to ``out``."""
        ...


class RayTrace(Protocol):
    """The linear map ``A`` from the cells of a mask field to a set of rays through a frozen radiance field.

    ``A`` is the matrix of volume-rendering weights: :meth:`render` is ``A x`` (mask rendering) and
    :meth:`backproject` is ``Aᵀ y`` (mask inverse rendering), so that ``<A x, y> == <x, Aᵀ y>``. Source: SA3D,
    arXiv 2304.12308, section 3.
    """

    @property
    def accumulation(self) -> Float[Tensor, " num_rays"]:
        """Sum of all weights of each ray, including those that the trace omits."""
        ...

    def render(self, field: Any, values: Float[Tensor, "num_cells channels"]) -> Float[Tensor, "num_rays channels"]:
        """``A x``: composite values stored in the cells of ``field``."""
        ...

    def backproject(self, field: Any, image: Float[Tensor, "num_rays channels"]) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: spread the rays' values over the cells of ``field`` that they pass."""
        ...

    def rows(self, field: Any, rays: Int[Tensor, " num_rows"]) -> TraceRows:
        """The rows of ``A`` of some rays, for the present placement of the field."""
        ...


@runtime_checkable
class CachesAllRays(Protocol):
    """A trace that caches ``Aᵀ 1``, the weight of all its rays in each cell, which is the same for all masks."""

    @property
    def keeps_all_rays(self) -> bool:
        """Whether the cached ``Aᵀ 1`` is worth its memory for this trace."""
        ...

    def backproject_all(self, field: Any) -> Float[Tensor, " num_cells"]:
        """``Aᵀ 1``."""
        ...


class ViewTrace(RayTrace, Protocol):
    """The trace of all pixels of one view, in row-major order, with the base model's colours and depths."""

    height: int
    width: int

    @property
    def rgb(self) -> Float[Tensor, "height width 3"]:
        """Colours in [0, 1]."""
        ...

    @property
    def depth(self) -> Float[Tensor, "height width 1"]:
        """Distance along the ray, in nerfstudio's frame."""
        ...

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position at the rendered depth of each pixel."""
        ...


@dataclass
class PickedRows:
    """Some rows of a trace whose rows are all computed together."""

    trace: RayTrace
    field: MaskField
    rays: Int[Tensor, " num_rows"]

    def render(self, values: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_rows"]:
        """``A x``."""
        return self.trace.render(self.field, values[:, None])[self.rays, 0]

    def backproject(self, image: Float[Tensor, " num_rows"], out: Float[Tensor, " num_cells"]) -> None:
        """Add ``Aᵀ y`` to ``out``."""
        full_image = image.new_zeros(len(self.trace.accumulation), 1)
        full_image[self.rays, 0] = image
        out += self.trace.backproject(self.field, full_image)[:, 0]


MIN_KNOWN = 0.05
"""Share of a ray's weight that must lie in cells with evidence for its mask to count as known."""


def render_probability(
    trace: RayTrace, field: MaskField
) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
    """Render the object's probability.

    ``M = (Σ w v + l light) / (Σ w + light)`` with both sums over the samples in cells with evidence, and ``light`` =
    1 - Σ all w: weight in cells without evidence does not count, while light that passes everything is known not to be
    the object. Cells hold probabilities v, and l = 0; or logits v, with l a logit and σ(M) the probability.

    Returns:
        The probability of each ray, 0 where it is unknown; and which rays are known.
    """
    total, weight = trace.render(field, field.cells()).unbind(-1)
    light = (1 - trace.accumulation).clamp(min=0)
    evidence = weight + light
    known = evidence > MIN_KNOWN
    return field.composited((total + field.light * light) / evidence.clamp(min=MIN_KNOWN)) * known, known
