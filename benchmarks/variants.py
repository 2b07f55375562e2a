"""Variants of the loop, most with one part replaced or left out, to measure its contribution."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.segmentation import photo_windows
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting
from sa3d_nerfstudio.segmentation.report import ViewRecord
from sa3d_nerfstudio.segmentation.self_prompting import Agreement
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter
from sa3d_nerfstudio.traces.base import RayTrace


@dataclass
class Variant:
    """Variant of a session."""

    what: str
    """Description."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings that differ from the defaults."""
    session: type[SegmentationSession] = SegmentationSession
    grid: Callable[[MaskField, Tensor], MaskField] = lambda grid, bounds: grid
    """Function from the default field and the bounds of the scene to the field that is filled."""
    segmenter: Callable[[Segmenter], Segmenter] = lambda segmenter: segmenter
    """Function from the given segmenter to the one that the session uses."""


class UndividedLifting(EvidenceLifting):
    """Evidence sums, rendered without division by the known weight of a ray."""

    def render(self, trace: RayTrace) -> tuple[Float[Tensor, " num_rays"], Bool[Tensor, " num_rays"]]:
        """Render ``Σ w p``: cells that no view has seen count as not the object."""
        total, weight = trace.render(self.field, self.field.cells()).unbind(-1)
        light = (1 - trace.accumulation).clamp(min=0)
        return self.field.composited(total + self.field.light * light), weight > 0


class UndividedSession(SegmentationSession):
    """Session with :class:`UndividedLifting`."""

    def new_lifting(self, field: MaskField) -> Lifting:
        return UndividedLifting(field)


class FavouriteSession(SegmentationSession):
    """Session that takes the favourite of three masks in self-prompted views, or rejects the view."""

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        """Choose the highest score, the single-mask answer excluded, if its mask agrees."""
        scores = candidates.scores.clone()
        if candidates.single is not None and len(scores) > 1:
            scores[candidates.single] = -torch.inf
        chosen = int(scores.argmax())
        return chosen if agreement.plain[chosen] >= self.settings.min_agreement else None


class SingleMaskSession(SegmentationSession):
    """Session that takes one mask in self-prompted views, as the published code does, or rejects the view."""

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        """Choose the single-mask answer, if any, or the highest score, if its mask agrees."""
        chosen = candidates.favourite
        return chosen if agreement.plain[chosen] >= self.settings.min_agreement else None


class AgreementSession(SegmentationSession):
    """Session that takes the candidate with the best agreement with the rendered mask, for any score."""

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        """Choose the highest agreement."""
        return super().choose_candidate(Candidates(candidates.masks, torch.zeros(len(candidates.masks))), agreement)


class UnweightedSession(SegmentationSession):
    """Session that ranks candidates by agreement over all known pixels, with equal weights."""

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        """Choose with agreements that count all pixels alike."""
        return super().choose_candidate(candidates, replace(agreement, certain=agreement.plain))


class HalfPhotoSession(SegmentationSession):
    """Session that also gives networks windows of half a photo, where the object is small enough for them."""

    def steps(self) -> Generator[ViewRecord, None, None]:
        with mock.patch.object(photo_windows, "LARGEST_SHARE", 1 / 2):
            yield from super().steps()


class SmallImageSegmenter:
    """Segmenter without ``input_side``: its images are renders, or photos at the size of renders."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.embed, self.predict = segmenter.embed, segmenter.predict


class FixedGrid(MaskGrid):
    """Grid that covers the whole scene and is never moved, as in the published code."""

    def __init__(self, resolution: int, bounds: Float[Tensor, "2 3"]) -> None:
        super().__init__(resolution)
        self.bounds = bounds
        self.place(bounds.mean(0), ((bounds[1] - bounds[0]) / 2).max().expand(3))

    def prepare(self, surface: Float[Tensor, "num_points 3"], spacing: float) -> None:
        self.place(self.center, self.half_extent)

    def fresh(self) -> FixedGrid:
        return FixedGrid(self.resolution, self.bounds)

    def placed_again(self, spacing: float) -> FixedGrid:
        return self.fresh()


def over_the_scene(grid: MaskField, bounds: Float[Tensor, "2 3"]) -> MaskField:
    """Fixed grid with as many cells as the placed grid may have."""
    assert isinstance(grid, MaskGrid)
    return FixedGrid(grid.max_resolution, bounds)


PUBLISHED_LIFTING = {"lifting": "gradient", "view_order": "file", "max_passes": 1}
PUBLISHED_PROMPTS = {"self_prompts": "published", "num_prompts": 3}

VARIANTS = {
    "default": Variant("the default"),
    "published": Variant(
        "published rules: update, order, points, and one mask",
        PUBLISHED_LIFTING | PUBLISHED_PROMPTS | {"num_prompts": 10},
        SingleMaskSession,
        segmenter=SmallImageSegmenter,
    ),
    "0.1": Variant(
        "three points by the published rule, the favourite of three masks, images as small as renders",
        PUBLISHED_PROMPTS,
        FavouriteSession,
        segmenter=SmallImageSegmenter,
    ),
    "published-points": Variant("three points by the published rule", PUBLISHED_PROMPTS),
    "favourite": Variant("the favourite of three masks", session=FavouriteSession),
    "single-mask": Variant("the single-mask answer", session=SingleMaskSession),
    "agreement": Variant("what agrees best, whatever its score", session=AgreementSession),
    "unweighted": Variant("pixels of which little is known count like others", session=UnweightedSession),
    "whole-photos": Variant("networks are shown whole photos, however small the object", {"close_photos": False}),
    "half-photos": Variant("networks are shown windows of half a photo, too", session=HalfPhotoSession),
    "small-images": Variant("images as small as renders", segmenter=SmallImageSegmenter),
    "only-ranked": Variant("0.1, but ranked by score and agreement", PUBLISHED_PROMPTS, segmenter=SmallImageSegmenter),
    "only-spread": Variant(
        "0.1, but points spread over the inside", session=FavouriteSession, segmenter=SmallImageSegmenter
    ),
    "only-large-images": Variant("0.1, but photos at their own size", PUBLISHED_PROMPTS, FavouriteSession),
    **{f"{count}-points": Variant(f"{count} points", {"num_prompts": count}) for count in (1, 2, 3, 7, 10)},
    "gradient": Variant(
        "published update: gradient steps, one pass, file order",
        PUBLISHED_LIFTING,
    ),
    "gradient-default-loop": Variant("gradient steps in the default loop", {"lifting": "gradient"}),
    "no-rejection": Variant("no view is rejected", {"min_agreement": 0.0}),
    "one-pass": Variant("no second pass", {"max_passes": 1}),
    "file-order": Variant("views in file order", {"view_order": "file"}),
    "prompt-weight-1": Variant("the prompted view counts like any other", {"prompt_weight": 1.0}),
    "averages": Variant("averages: no likelihood", {"likelihood_steps": 0}),
    "all-pieces": Variant("parts of masks elsewhere in space count", {"part_gap": 0.0}),
    "untrimmed": Variant("outlines that see past the object count", {"trim_outline": False}),
    "undivided": Variant("not divided by the known weight", session=UndividedSession),
    "fixed-grid": Variant("grid over the whole scene", grid=over_the_scene),
    "8-views": Variant("8 views instead of all", {"num_views": 8}),
    "8-around": Variant("all views, and 8 virtual ones", {"views_around": 8}),
    **{f"{count}-views": Variant(f"{count} views instead of all", {"num_views": count}) for count in (3, 5)},
    **{
        f"{count}-views-{around}-around": Variant(
            f"{count} views, and {around} virtual ones", {"num_views": count, "views_around": around}
        )
        for count in (3, 5, 8)
        for around in (4, 8)
    },
}


def settings_of(config: Any, variant: Variant) -> Any:
    """Copy of the settings, with those of the variant replaced."""
    changed = copy.copy(config)
    for name, value in variant.settings.items():
        setattr(changed, name, value)
    return changed
