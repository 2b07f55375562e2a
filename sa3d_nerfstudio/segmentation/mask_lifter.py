"""From 2D masks to evidence in the field: what depth leaves of them, and how much they count."""

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
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting, Weight
from sa3d_nerfstudio.segmentation.likelihood import LikelihoodReport, MaskedView, MaskLikelihood
from sa3d_nerfstudio.segmentation.mask_depth import FoundMask, in_one_piece, pixel_spacing, sees_past, surface_of
from sa3d_nerfstudio.segmentation.session_views import PromptedMask, SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.traces.window import Window


@dataclass
class LiftedMask:
    """What has been lifted of one view."""

    mask: Bool[Tensor, " num_rays"]
    found: Bool[Tensor, " num_rays"]
    """What the segmenter has found, before depth had its say."""
    weight: float
    """What its rays count."""
    prompted: bool
    """Whether the user has prompted the view."""


@dataclass
class CheckedMask:
    """A mask that the segmenter has found by itself."""

    mask: Bool[Tensor, "height width"]
    solid: Bool[Tensor, "height width"]
    """What depth leaves of it."""
    spacing: float | Tensor
    """Distance in space between what neighbouring pixels of it see."""


SelfPromptedMask = tuple[Bool[Tensor, "height width"], Bool[Tensor, "height width"]]
"""A mask that the segmenter has found, and where in the image the object is by what is known of it."""


class MaskLifter:
    """Lifts the masks of views, and keeps those of the newest pass.

    Args:
        views: Where the masks are.
        settings: Of the session. Only evidence is weighted, and checked by depth; the published update takes masks as
            they are.
        ray_weight: What a ray counts: larger images have more of them, and say no more for it.
        ranks: The processes that have other views of the object.
    """

    def __init__(
        self, views: SessionViews, settings: SessionSettings, ray_weight: float = 1.0, ranks: Ranks | None = None
    ) -> None:
        self.views = views
        self.ranks = ranks or Ranks()
        self.settings = settings
        self.ray_weight = ray_weight
        self._lifted: dict[ViewKey, LiftedMask] = {}
        self._windows: dict[ViewKey, Window] = {}
        self._spacings: dict[ViewKey, float | Tensor] = {}
        self._places: Callable[[], Float[Tensor, "num_places 3"]] | None = None
        """Where the object is in space, by the pass before."""

    @property
    def masks(self) -> dict[ViewKey, Bool[Tensor, " num_rays"]]:
        """The masks of the newest pass, by view."""
        return {view: lifted.mask for view, lifted in self._lifted.items()}

    @property
    def windows(self) -> dict[ViewKey, Window]:
        """The windows of views that these masks are of, where they are not of whole views."""
        return dict(self._windows)

    def spacing(self) -> float:
        """Distance between the rays of neighbouring pixels at the object; the median over the views that showed it."""
        return median(value for values in self.ranks.gather(self._own_spacings()) for value in values)

    def _own_spacings(self) -> list[float]:
        """Of the views of this process."""
        values = list(self._spacings.values())
        on_device = next((value for value in values if isinstance(value, Tensor)), None)
        if on_device is None:
            return [float(value) for value in values]
        # The host waits for all of them once.
        return torch.stack([torch.as_tensor(value).to(on_device) for value in values]).tolist()

    def surface(self, prompted: Iterable[tuple[ViewKey, PromptedMask]]) -> Float[Tensor, "num_points 3"]:
        """Points of the object's surface in views that the user has prompted."""
        points = []
        for view, item in prompted:
            trace, mask = self.views.trace(view), self._solid(view, item)
            points.append(surface_of(trace, mask, self.views.pose(view)[:, 3]))
            self._spacings[view] = pixel_spacing(trace, mask)
        return torch.cat(points)

    def forget(self) -> None:
        """Let go of the masks of the newest pass."""
        self._lifted.clear()
        self._windows.clear()

    def begin_pass(self, before: MaskField | None) -> None:
        """A new pass begins.

        Args:
            before: What the pass before has found; None in the first one, and where it is still being found.
        """
        self.forget()
        threshold = self.settings.threshold
        self._places = None if before is None else cache(lambda: before.object_points(threshold)[0])

    def lift_prompted(self, lifting: Lifting, view: ViewKey, prompted: PromptedMask) -> None:
        """Lift the mask of a view that the user has prompted."""
        weight, settings = 1.0, self.settings
        if isinstance(lifting, EvidenceLifting):
            corrected = prompted.correcting * settings.correction_weight * len(self.views.training)
            weight = max(settings.prompt_weight, corrected)
        self._lift(lifting, view, prompted.mask, self._solid(view, prompted), weight, prompted=True)

    def checked(self, found: Sequence[tuple[ViewKey, SelfPromptedMask]]) -> list[CheckedMask]:
        """What depth leaves of masks that the segmenter has found by itself; on a GPU it looks at all of them at once.

        Args:
            found: Views, and what has been found in them.
        """
        with self.views.report.timed("lift"):
            masks = []
            for view, (mask, known) in found:
                trace = self.views.trace(view)
                masks.append(FoundMask(trace, mask, pixel_spacing(trace, mask), known=known))
            solid = in_one_piece(masks, self._gap, self._places)
            return [CheckedMask(each.mask, part, each.spacing) for each, part in zip(masks, solid, strict=True)]

    def lift_self_prompted(self, lifting: Lifting, view: ViewKey, checked: CheckedMask) -> None:
        """Lift a mask that the segmenter has found by itself."""
        self._lift(lifting, view, checked.mask, checked.solid, spacing=checked.spacing)

    def state_of(self, view: ViewKey) -> tuple[Any, ...]:
        """What is kept of a view, for :meth:`take_back`."""
        return self._lifted.get(view), self._windows.get(view), self._spacings.get(view)

    def take_back(self, view: ViewKey, state: tuple[Any, ...]) -> None:
        """Keep of a view what was kept before it was lifted; the field is the caller's to put back."""
        for kept, value in zip((self._lifted, self._windows, self._spacings), state, strict=True):
            kept.pop(view, None)
            if value is not None:
                kept[view] = value

    def fit(self, field: MaskField, order: Sequence[ViewKey]) -> LikelihoodReport:
        """Give a field the logits that explain the masks of the newest pass, which its evidence is made of.

        Args:
            field: The field.
            order: In which the views were visited, those of other processes among them.
        """
        likelihood = MaskLikelihood(field, ranks=self.ranks)
        lifted_anywhere = {view for views in self.ranks.gather(list(self._lifted)) for view in views}
        numbers = {view: number for number, view in enumerate(view for view in order if view in lifted_anywhere)}
        for view, lifted in self._lifted.items():
            trace = self.views.trace(view)
            with self.views.report.timed("lift"):
                masked = MaskedView(trace, lifted.found, lifted.weight, lifted.prompted, lifted.mask)
                likelihood.add(masked, numbers[view])
        with self.views.report.timed("lift"):
            return likelihood.fit(self.settings.likelihood_steps)

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
        """Lift ``mask``, which depth has left of what the segmenter has ``found``."""
        trace, window = self.views.trace(view), self.views.window(view)
        if window is not None:
            self._windows[view] = window
        with self.views.report.timed("lift"):
            found, mask = found.to(trace.depth.device), mask.to(trace.depth.device)
            self._spacings[view] = spacing = pixel_spacing(trace, mask) if spacing is None else spacing
            counted: Weight = weight
            if isinstance(lifting, EvidenceLifting):
                around = self.views.surroundings(view)
                if around is not None:
                    coarse, counts = around
                    lifting.add(coarse, torch.zeros_like(counts, dtype=torch.bool), weight * counts)
                counted = weight = weight * self.ray_weight * self.views.ray_weight(view)
                if self.settings.trim_outline:
                    side = None if window is None else max(window.size)
                    counted = weight * ~sees_past(trace, mask, spacing, side).reshape(-1)
            lifting.add(trace, mask.reshape(-1), counted)
            # The whole outline: without pixels in it that see past the object, those beside it would move it inwards.
            self._lifted[view] = LiftedMask(mask.reshape(-1), found.reshape(-1), weight, prompted)

    def _solid(self, view: ViewKey, prompted: PromptedMask) -> Bool[Tensor, "height width"]:
        """The mask of a prompted view, without what is elsewhere in space. One that the user gave stays as it is."""
        if prompted.prompt.mask is not None:
            return prompted.mask
        trace = self.views.trace(view)
        spacing = pixel_spacing(trace, prompted.mask)
        points = prompted.prompt.positive.long()
        return in_one_piece([FoundMask(trace, prompted.mask, spacing, points)], self._gap, self._places)[0]

    @property
    def _gap(self) -> float:
        """Beyond which parts of masks are left out; never by the published update."""
        return self.settings.part_gap if self.settings.lifting == "evidence" else 0.0
