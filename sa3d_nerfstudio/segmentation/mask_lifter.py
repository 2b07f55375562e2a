"""Lifter of 2D masks to evidence in the field: depth check, weights, and the masks of the newest pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.gpu_memory import free_bytes
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting, Weight
from sa3d_nerfstudio.segmentation.likelihood import BYTES_PER_RAY, LikelihoodReport, MaskedView, MaskLikelihood
from sa3d_nerfstudio.segmentation.mask_depth import (
    FoundMask,
    background_rim,
    pixel_spacing,
    surface_of,
    without_far_parts,
)
from sa3d_nerfstudio.segmentation.outlines import common_offset, outline_measures, scale_of, without_offset
from sa3d_nerfstudio.segmentation.session_views import PromptedMask, SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.traces.window import Window

FIT_SHARE = 0.5
"""Share of the free memory that the fit may take."""
FEWEST_FITTED = 1024
"""Rays of each view that take part in the fit, however little memory is free."""
MEASURED = 32
"""Approximate number of views whose outlines are measured: traces that are not in the cache are rendered for it."""


@dataclass
class LiftedMask:
    """Lifted mask of one view."""

    mask: Bool[Tensor, " num_rays"]
    found: Bool[Tensor, " num_rays"]
    """The segmenter's mask, before the depth check."""
    weight: float
    """Weight of its rays."""
    prompted: bool
    """Whether the user has prompted the view."""
    scale: float
    """:func:`~sa3d_nerfstudio.segmentation.outlines.scale_of` the view's image."""


@dataclass
class CheckedMask:
    """The segmenter's mask of a self-prompted view, after the depth check."""

    mask: Bool[Tensor, "height width"]
    solid: Bool[Tensor, "height width"]
    """Pixels of the mask that pass the depth check."""
    spacing: float | Tensor
    """Distance in space between the surface points of neighbouring pixels of the mask."""


SelfPromptedMask = tuple[Bool[Tensor, "height width"], Bool[Tensor, "height width"]]
"""The segmenter's mask of a self-prompted view, and the rendered mask of that view."""


class MaskLifter:
    """Lifts the masks of views, and keeps those of the newest pass.

    Args:
        views: The views of the session.
        settings: Settings of the session. Only 'evidence' lifting weights masks and checks them by depth; the published
            update takes masks as they are.
        ranks: The processes that visit other views of the object.
    """

    def __init__(self, views: SessionViews, settings: SessionSettings, ranks: Ranks | None = None) -> None:
        self.views = views
        self.ranks = ranks or Ranks()
        self.settings = settings
        self._lifted: dict[ViewKey, LiftedMask] = {}
        self._windows: dict[ViewKey, Window] = {}
        self._spacings: dict[ViewKey, float | Tensor] = {}
        self._places: Callable[[], Float[Tensor, "num_places 3"]] | None = None
        """Returns world positions of the object as segmented in the pass before."""

    @property
    def masks(self) -> dict[ViewKey, Bool[Tensor, " num_rays"]]:
        """The masks of the newest pass, by view."""
        return {view: lifted.mask for view, lifted in self._lifted.items()}

    @property
    def windows(self) -> dict[ViewKey, Window]:
        """The windows of these masks, by view; masks of whole views have none."""
        return dict(self._windows)

    def spacing(self) -> float:
        """Distance between the rays of neighbouring pixels at the object; median over the views that show it."""
        return median(value for values in self.ranks.gather(self._own_spacings()) for value in values)

    def _own_spacings(self) -> list[float]:
        """The spacings of the views of this process."""
        values = list(self._spacings.values())
        on_device = next((value for value in values if isinstance(value, Tensor)), None)
        if on_device is None:
            return [float(value) for value in values]
        # One wait for all of them.
        return torch.stack([torch.as_tensor(value).to(on_device) for value in values]).tolist()

    def surface(self, prompted: Iterable[tuple[ViewKey, PromptedMask]]) -> Float[Tensor, "num_points 3"]:
        """Points of the object's surface in the prompted views, whose spacings are recorded."""
        points = []
        for view, item in prompted:
            trace, mask = self.views.trace(view), self._solid(view, item)
            points.append(surface_of(trace, mask, self.views.pose(view)[:, 3]))
            self._spacings[view] = pixel_spacing(trace, mask)
        return torch.cat(points)

    def forget(self) -> None:
        """Drop the masks of the newest pass."""
        self._lifted.clear()
        self._windows.clear()

    def begin_pass(self, before: MaskField | None) -> None:
        """Begin a new pass.

        Args:
            before: Field of the pass before; None in the first pass.
        """
        self.forget()
        threshold = self.settings.threshold
        self._places = None if before is None else cache(lambda: before.object_points(threshold)[0])

    def lift_prompted(self, lifting: Lifting, view: ViewKey, prompted: PromptedMask) -> None:
        """Lift the mask of a view that the user has prompted."""
        weight, settings = 1.0, self.settings
        if isinstance(lifting, EvidenceLifting):
            correction = prompted.correcting * settings.correction_weight * len(self.views.training)
            weight = max(settings.prompt_weight, correction)
        self._lift(lifting, view, prompted.mask, self._solid(view, prompted), weight, prompted=True)

    def checked(self, found: Sequence[tuple[ViewKey, SelfPromptedMask]]) -> list[CheckedMask]:
        """Check masks of self-prompted views by depth; on a GPU, all of them at once.

        Args:
            found: Views, each with its mask and its rendered mask.
        """
        with self.views.report.timed("lift"):
            masks = []
            for view, (mask, known) in found:
                trace = self.views.trace(view)
                masks.append(FoundMask(trace, mask, pixel_spacing(trace, mask), known=known))
            solid = without_far_parts(masks, self._gap, self._places)
            return [CheckedMask(item.mask, pixels, item.spacing) for item, pixels in zip(masks, solid, strict=True)]

    def lift_self_prompted(self, lifting: Lifting, view: ViewKey, checked: CheckedMask) -> None:
        """Lift the mask of a self-prompted view."""
        self._lift(lifting, view, checked.mask, checked.solid, spacing=checked.spacing)

    def state_of(self, view: ViewKey) -> tuple[Any, ...]:
        """The entries of a view, for :meth:`take_back`."""
        return self._lifted.get(view), self._windows.get(view), self._spacings.get(view)

    def take_back(self, view: ViewKey, state: tuple[Any, ...]) -> None:
        """Restore the entries of a view from before it was lifted; the caller restores the field."""
        for entries, value in zip((self._lifted, self._windows, self._spacings), state, strict=True):
            entries.pop(view, None)
            if value is not None:
                entries[view] = value

    def fit(self, field: MaskField, order: Sequence[ViewKey]) -> LikelihoodReport:
        """Give a field the logits that explain the masks of the newest pass, the source of its evidence.

        Args:
            field: The field.
            order: Views of all processes, in the order of their visits.
        """
        most_rays = _most_rays(field.hit.device, len(self._lifted))
        likelihood = MaskLikelihood(field, ranks=self.ranks, most_rays=most_rays)
        lifted_anywhere = {view for views in self.ranks.gather(list(self._lifted)) for view in views}
        numbers = {view: number for number, view in enumerate(view for view in order if view in lifted_anywhere)}
        offset = common_offset(item for part in self.ranks.gather(self._own_outlines()) for item in part)
        for view, lifted in self._lifted.items():
            trace, found = self.views.trace(view), lifted.found
            with self.views.report.timed("lift"):
                if not lifted.prompted:  # the user has seen those masks
                    image = found.reshape(trace.height, trace.width)
                    found = without_offset(image, offset, lifted.scale).reshape(-1)
                masked = MaskedView(trace, found, lifted.weight, lifted.prompted, lifted.mask)
                likelihood.add(masked, numbers[view])
        with self.views.report.timed("lift"):
            report = likelihood.fit(self.settings.likelihood_steps)
        report.outline_offset = offset
        return report

    def _own_outlines(self) -> list[list[float]]:
        """Measures of the outlines in some of the self-prompted views of this process.

        They are those that the segmenter draws: the depth check may have left out what lies beyond the edges.
        """
        checked = (
            [view for view, lifted in self._lifted.items() if not lifted.prompted] if self._checks_outlines else []
        )
        measures = []
        for view in checked[:: max(len(checked) // MEASURED, 1)]:
            trace, lifted = self.views.trace(view), self._lifted[view]
            with self.views.report.timed("lift"):
                image = lifted.found.reshape(trace.height, trace.width)
                measures.append(outline_measures(trace, image, self._spacings[view], lifted.scale))
        # One wait for all of them.
        return torch.stack(measures).tolist() if measures else []

    @property
    def _checks_outlines(self) -> bool:
        return self.settings.trim_outline and self.settings.lifting == "evidence"

    def _lift(
        self,
        lifting: Lifting,
        view: ViewKey,
        found: Bool[Tensor, "height width"],
        mask: Bool[Tensor, "height width"],
        weight: float = 1.0,
        spacing: float | Tensor | None = None,
        prompted: bool = False,
    ) -> None:
        """Lift ``mask``, the pixels of the segmenter's mask ``found`` that pass the depth check."""
        trace, window = self.views.trace(view), self.views.window(view)
        if window is not None:
            self._windows[view] = window
        with self.views.report.timed("lift"):
            found, mask = found.to(trace.depth.device), mask.to(trace.depth.device)
            self._spacings[view] = spacing = pixel_spacing(trace, mask) if spacing is None else spacing
            weights: Weight = weight
            side = None if window is None else max(window.size)
            if isinstance(lifting, EvidenceLifting):
                surroundings = self.views.surroundings(view)
                if surroundings is not None:
                    coarse, coarse_weights = surroundings
                    lifting.add(coarse, torch.zeros_like(coarse_weights, dtype=torch.bool), weight * coarse_weights)
                weights = weight = weight * self.views.ray_weight(view)
                if self._checks_outlines:
                    weights = weight * ~background_rim(trace, mask, spacing, side).reshape(-1)
            lifting.add(trace, mask.reshape(-1), weights)
            # The fit needs the whole outline: without its pixels that see past the object, those beside it would move
            # it inwards.
            self._lifted[view] = LiftedMask(mask.reshape(-1), found.reshape(-1), weight, prompted, scale_of(mask, side))

    def _solid(self, view: ViewKey, prompted: PromptedMask) -> Bool[Tensor, "height width"]:
        """The mask of a prompted view without parts elsewhere in space; a mask that the user gave stays as it is."""
        if prompted.prompt.mask is not None:
            return prompted.mask
        trace = self.views.trace(view)
        spacing = pixel_spacing(trace, prompted.mask)
        points = prompted.prompt.positive.long()
        return without_far_parts([FoundMask(trace, prompted.mask, spacing, points)], self._gap, self._places)[0]

    @property
    def _gap(self) -> float:
        """Gap beyond which parts of masks are left out, see :func:`without_far_parts`; 0 for the published update."""
        return self.settings.part_gap if self.settings.lifting == "evidence" else 0.0


def _most_rays(device: torch.device, num_views: int) -> int | None:
    """Number of rays of each view that the fit has memory for; None if the free memory is unknown."""
    free = free_bytes(device)
    return None if free is None else max(int(FIT_SHARE * free / (BYTES_PER_RAY * max(num_views, 1))), FEWEST_FITTED)
