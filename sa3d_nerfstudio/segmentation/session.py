"""The loop over views: prompt, segment, lift, render, prompt again, until the field stops changing."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks, tell_as_data
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.exchange import EvidenceExchange
from sa3d_nerfstudio.segmentation.lifting import (
    EvidenceLifting,
    Lifting,
    changed_pixels,
    field_change,
    make_lifting,
)
from sa3d_nerfstudio.segmentation.mask_lifter import MaskLifter
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.prompted_surface import PromptedSurface, joint_surface
from sa3d_nerfstudio.segmentation.report import SessionReport, ViewRecord
from sa3d_nerfstudio.segmentation.self_prompting import Agreement, best_agreeing
from sa3d_nerfstudio.segmentation.session_views import (
    TOGETHER,
    FreeView,
    PromptedMask,
    SessionViews,
    SharedViews,
    ViewKey,
    Views,
)
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.view_selection import Route, magnification
from sa3d_nerfstudio.segmentation.views_around import RendersAnywhere, views_around
from sa3d_nerfstudio.segmentation.visits import Visits
from sa3d_nerfstudio.segmentation.windows import (
    CloseViews,
    Masks,
    Windows,
    can_use_windows,
    enlargement,
    on_same_pixels,
)
from sa3d_nerfstudio.segmenters.base import CUDA_BATCH, Candidates, Segmenter, fits_prior
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.traces.window import Window

tell_as_data(Candidates, Prompt, PromptedMask, PromptedSurface, ViewRecord)

NO_SUM = (
    "--pipeline.lifting gradient takes the views one after another, and several processes cannot share it: take "
    "evidence, or one process."
)


class SegmentationSession:
    """Segmentation of one object: the user's prompts, and the evidence that the views add.

    Args:
        views: The training views.
        segmenter: The 2D segmenter.
        grid: Field for the evidence; the session places and fills it.
        settings: Settings of the loop.
        embeddings: Embeddings that the segmenter has made already, by view; sessions of several objects may share them.
        sized: Returns the same views in images larger by a factor, and the embeddings of these; small objects are
            segmented there. None to stay with the views.
        free: Views beside the training views that may be prompted, by name.
        prompted: Views that have been prompted already, with their masks.
        ranks: The processes that segment together: each has the same session, and visits its own views. Methods must
            then be called on all ranks, in the same order.

    Raises:
        SA3DError: Several processes are to share the published update, which is not a sum over views.
    """

    def __init__(
        self,
        views: Views,
        segmenter: Segmenter,
        grid: MaskField,
        settings: SessionSettings,
        embeddings: MutableMapping[ViewKey, Any] | None = None,
        sized: Callable[[float], tuple[Views, MutableMapping[ViewKey, Any]]] | None = None,
        free: dict[str, FreeView] | None = None,
        prompted: Mapping[ViewKey, PromptedMask] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        if self.ranks.size > 1 and settings.lifting != "evidence":
            raise SA3DError(NO_SUM)
        self.segmenter = segmenter
        self.grid = grid
        self.settings = settings
        self.report = SessionReport()
        self.prompted: dict[ViewKey, PromptedMask] = dict(prompted or {})
        """The views that the user has prompted."""
        self.free: dict[str, FreeView] = dict(free or {})
        """Views beside the training views that may be prompted, by name, and those around the object."""
        self._around: list[str] = []
        """Names of the virtual views around the object."""
        self.lifting: Lifting | None = None
        """Lifting of the newest pass."""
        self.stopped = False
        """Whether one of several ranks has asked all of them to stop."""
        self._order: list[ViewKey] = []
        """Views of the newest pass on all ranks, in the order of their visits."""
        self._sized = sized
        self._look_at(SessionViews(views, self.free, self.report), {} if embeddings is None else embeddings)

    def _look_at(self, views: SessionViews, embeddings: MutableMapping[Any, Any]) -> None:
        """Use these views from now on."""
        self._views = views
        self._embeddings = embeddings
        batch = self.settings.encode_batch or (CUDA_BATCH if self.grid.hit.is_cuda else 1)
        self.predictor = MaskPredictor(self.segmenter, self._views, embeddings, batch)
        self._lifter = MaskLifter(self._views, self.settings, ranks=self.ranks)
        self._route = Route(self._views, self.settings)

    @property
    def views(self) -> Views:
        """The training views."""
        return self._views.training

    def prompt(self, view: ViewKey, prompt: Prompt) -> Candidates:
        """Segment one view from the user's prompt. A second prompt for a view replaces the first.

        Args:
            view: Index of the training view, or name of a view in ``free``.
            prompt: Prompt in pixels of an image of any size; it names the candidate to take.

        Returns:
            The segmenter's candidates; :meth:`choose` takes another one.

        Raises:
            SA3DError: The prompt selects nothing.
        """
        self._views.use_whole_view(view)
        # Rank 0 segments the prompted views and shares the masks; the other ranks help to render.
        if self.ranks.size > 1 and isinstance(view, int) and isinstance(self.views, SharedViews):
            self.views.trace_together(view, self.ranks)
        self.prompted[view] = self.ranks.share(lambda: self.predictor.answer(view, prompt))
        return self.prompted[view].candidates

    def choose(self, view: ViewKey, candidate: int) -> None:
        """Take another candidate of a prompted view (for SAM: part, object, whole)."""
        self.prompted[view].choice = candidate
        self.prompted[view].picked = True

    def mask_of(self, view: ViewKey) -> Bool[Tensor, "height width"]:
        """The 2D mask of a view that the user has prompted."""
        return self.prompted[view].mask

    def name(self, view: ViewKey) -> str:
        """File name of a training view's image, or name of a free view."""
        return self._views.name(view)

    def trace(self, view: ViewKey) -> ViewTrace:
        """The trace of a training view or a free view."""
        return self._views.trace(view)

    def image(
        self, view: ViewKey, of: Callable[[ViewTrace], Float[Tensor, "rows columns channels"]]
    ) -> Float[Tensor, "height width channels"]:
        """Image of a whole view, each part as fine as it has been traced.

        Args:
            view: The view.
            of: Makes an image of a trace, at its size.
        """
        return self._views.image(view, of)

    def window(self, view: ViewKey) -> Window | None:
        """Window of a view that was traced at full size; None for a whole view."""
        return self._views.window(view)

    def position(self, view: ViewKey) -> Float[Tensor, "3"]:
        """Camera position of a view."""
        return self._views.pose(view)[:, 3]

    def lift_prompts(self, base: MaskField | None = None) -> None:
        """Fill the grid with the masks of the prompted views alone: at once, and already in 3D.

        Args:
            base: Evidence of other views to add them to; without it, the grid is placed around the prompted surface.
        """
        if base is not None:
            if self.prompted:
                surface = self._lifter.surface(self.prompted.items())
                base = base.with_room_for(surface, self._lifter.spacing(), len(self.views))
            self.grid.copy_from(base)
        elif self.prompted:
            self._place_around_prompts()
        else:
            self.grid.copy_from(self.grid.fresh())
        lifting = EvidenceLifting(self.grid)
        for view, prompted in self.prompted.items():
            self._lifter.lift_prompted(lifting, view, prompted)

    def run(self) -> SessionReport:
        """Run all steps and return the report."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Generator[ViewRecord, None, None]:
        """Segment in 3D, one view a step. Iteration may stop at any step: the grid holds the evidence so far.

        Raises:
            SA3DError: Nothing has been prompted.
        """
        if not self.prompted:
            raise SA3DError("nothing to segment: prompt a view first.")
        self._choose_size()
        yield from self._passes()
        fits = self.settings.lifting == "evidence" and self.settings.likelihood_steps > 0 and not self.stopped
        if fits and self.lifting is not None and self.ranks.any(bool(self._lifter.masks)):
            self.report.likelihood = self._lifter.fit(self.lifting.field, self._order)
            if self.lifting.field is not self.grid:
                self.grid.copy_from(self.lifting.field)

    def _choose_size(self) -> None:
        """Switch to windows of the views where these can be traced, or else to larger views for a small object."""
        training, settings = self.views, self.settings
        if settings.windows and settings.lifting == "evidence" and can_use_windows(training, self.predictor.side):
            masks = (prompted.mask for prompted in self.prompted.values())
            factor = 1.0 if self._sized is None else enlargement(masks, max(training.frame(0).size))
            views = CloseViews(training, self.free, self.report, settings.threshold, factor, settings.close_photos)
            self._look_at(views, self._embeddings)
            for view, prompted in dict(self.prompted).items():
                self.prompted[view] = self.ranks.share(partial(self.predictor.look_closer, view, prompted))
            return
        if self._sized is None or self._views.training_ray_weight < 1:
            return
        current_views = self.views
        views, embeddings = self._sized(magnification(prompted.mask for prompted in self.prompted.values()))
        if views is current_views:
            return
        num_before, num_pixels = (math.prod(sized.picture_size(0)) for sized in (current_views, views))
        self._look_at(SessionViews(views, self.free, self.report, num_before / num_pixels), embeddings)
        for view, prompted in dict(self.prompted).items():
            # Candidates may have another order and other scores at this size: the choice is identified by its mask.
            candidates = self.prompt(view, prompted.original or prompted.prompt)
            larger = self.prompted[view]
            larger.choice, larger.picked = candidates.most_like(prompted.mask), prompted.picked

    def _passes(self) -> Iterator[ViewRecord]:
        self._place_around_prompts()
        guide = lifting = self.new_lifting(self.grid)
        for number in range(1, self.settings.max_passes + 1):
            self.lifting = lifting
            before = (self._lifter.masks, self._lifter.windows)
            for record in self._pass(number, lifting, guide):
                self.report.records.append(record)
                yield record
            if self.stopped:
                return
            next_field = self._placed_again(lifting.field)
            if number > 1:
                if not self.ranks.share(partial(lifting.field.holds_object, self.settings.threshold)):
                    # The grid keeps the object of an earlier pass, and no fit replaces it.
                    self._lifter.forget()
                    return
                change = self._change(before, guide.field, lifting.field, next_field)
                self.report.changes.append(change)
                self.grid.copy_from(lifting.field)
                if change < self.settings.tolerance:
                    self.report.converged = True
                    return
            # The first pass fills the grid itself, view by view; later passes fill new fields, which the grid copies.
            guide, lifting = lifting, self.new_lifting(next_field)

    def _change(self, masks: tuple[Masks, Windows], before: MaskField, after: MaskField, coming: MaskField) -> float:
        """Change of a pass: relative L1 change of the lifted masks if it is below the tolerance, or else of the field.

        Args:
            masks: Masks of the pass before, with their windows.
            before: Field of the pass before.
            after: Field of this pass.
            coming: Field with its cells placed for the next pass.
        """
        # The same masks make the same field, wherever its cells have moved meanwhile. If the cells are to move again,
        # parts of the object may still lie outside them.
        if coming.same_cells(after):
            pixels = changed_pixels(*on_same_pixels(*masks, self._lifter.masks, self._lifter.windows))
            changed, total = (sum(counts) for counts in zip(*self.ranks.gather(pixels), strict=True))
            change = changed / total if total else 0.0
            if change < self.settings.tolerance:
                return change
        return self.ranks.share(lambda: field_change(before.resampled(after), after))

    def new_lifting(self, field: MaskField) -> Lifting:
        """The lifting named in the settings, into a field."""
        return make_lifting(self.settings.lifting, field)

    def _pass(self, number: int, lifting: Lifting, guide: Lifting) -> Iterator[ViewRecord]:
        """Visit every view once; masks rendered from ``guide`` prompt the segmenter, and its masks go to ``lifting``.

        With several ranks, each visits its own views. In the first pass, where views prompt each other, the ranks
        exchange their evidence after each round of one view a rank. An exchange runs while the next round does, so that
        a rank whose view takes longer does not hold up the others at once. Later passes have one exchange, at the end.
        """
        self._lifter.begin_pass(None if guide is lifting else guide.field)
        spacing = self._lifter.spacing()
        negatives, surface = self.ranks.share(lambda: (self._negative_points(), self._prompted_surface(spacing)))
        surface = None if surface is None else surface.to(self.grid.hit.device)
        exchange = EvidenceExchange(self.ranks, lifting, self.new_lifting)
        if self.ranks.is_first:
            for view, prompted in self.prompted.items():
                self._lifter.lift_prompted(exchange.unsent, view, prompted)
                yield exchange.note(ViewRecord(view, self.name(view), number, "prompt"))
        order = self.ranks.share(lambda: self._route.of(self.prompted, guide.field.center))
        self._order = [*self.prompted, *order]
        if guide is lifting:
            yield from exchange.begin_next()
            yield from exchange.settle()
        visits = Visits(
            self._views,
            self.predictor,
            self._lifter,
            self.settings,
            self.choose_candidate,
            exchange.unsent,
            exchange.guide if guide is lifting else guide,
            negatives,
            surface,
        )
        with self.predictor.prefetching() as ahead:
            outcomes = visits.visit_all(self.ranks.own(order), 1 if guide is lifting else self._together, ahead.begin)
            for _ in range(self.ranks.rounds(order)):
                if not self.ranks.is_stopping and (outcome := next(outcomes, None)) is not None:
                    yield exchange.note(outcome.record(self.name(outcome.view), number))
                if guide is lifting:
                    yield from exchange.begin_next()
                    if exchange.stopped:
                        break
        yield from exchange.settle()
        if self.settings.views_around and not exchange.stopped:
            # Rank 0 chooses the virtual views, and visits all of them.
            spacing = self._lifter.spacing()
            showing = [view for view, mask in self._lifter.masks.items() if mask.any()]
            shown = sorted((view for views in self.ranks.gather(showing) for view in views), key=self._order.index)
            self._around = self.ranks.share(lambda: self._look_around(guide, spacing, shown))
            self._order += self._around
            for view in self._around if self.ranks.is_first else ():
                yield exchange.note(visits.visit_one(view).record(view, number))
        if guide is not lifting or self._around:
            yield from exchange.begin_next()
            yield from exchange.settle()
        self.stopped = exchange.stopped

    def _look_around(self, guide: Lifting, spacing: float, shown: Sequence[ViewKey]) -> list[str]:
        """Choose virtual views around the object once, given the views that have ``shown`` it; returns their names."""
        views = self.views
        if self._around or not shown or not isinstance(views, RendersAnywhere):
            return self._around
        with self.report.timed("render"):
            visited = torch.stack([self._views.pose(view).to(views.camera_to_worlds) for view in shown])
            threshold, count = self.settings.threshold, self.settings.views_around
            around = views_around(views, guide.field, threshold, visited, spacing, count)
        self.free.update(around)
        return list(around)

    @property
    def _together(self) -> int:
        """Views visited together: several if that saves waits for a GPU, or the segmenter answers several prompts."""
        return TOGETHER if self.grid.hit.is_cuda else min(TOGETHER, self.predictor.at_once)

    def choose_candidate(self, candidates: Candidates, agreement: Agreement) -> int | None:
        """Index of the candidate of a self-prompted view that is the object; None if none is.

        Args:
            candidates: The segmenter's candidates.
            agreement: Their agreement with the rendered mask and with the prompted views.
        """
        scores, by_prior = candidates.scores, fits_prior(self.predictor.segmenter)
        if any(prompted.picked for prompted in self.prompted.values()):
            # The user has overruled the segmenter's preference.
            scores, by_prior = torch.zeros_like(scores), False
        return best_agreeing(scores, agreement, self.settings.min_agreement, by_prior)

    def _prompted_surface(self, spacing: float) -> PromptedSurface | None:
        """Surface of the object, and of its surroundings, that the prompted views show."""
        points, masks = [], []
        for view, prompted in self.prompted.items():
            points.append(self.trace(view).surface_points())
            masks.append(prompted.mask.reshape(-1).to(points[-1].device))
        return joint_surface(points, masks, spacing)

    def _negative_points(self) -> Float[Tensor, "num 3"] | None:
        """Surface points under the user's negative points in all prompted views."""
        positions = []
        for view, prompted in self.prompted.items():
            if len(points := prompted.prompt.negative.long()):
                trace = self.trace(view)
                index = points[:, 1] * trace.width + points[:, 0]
                positions.append(trace.surface_points()[index.to(trace.depth.device)])
        return torch.cat(positions) if positions else None

    @property
    def num_visits(self) -> int:
        """Number of views of each pass, the prompted ones and, once they are placed, virtual ones included."""
        return len(self.prompted) + self._route.count(self.prompted) + len(self._around)

    def _place_around_prompts(self) -> None:
        surface = self._lifter.surface(self.prompted.items()) if self.ranks.is_first else None
        spacing = self._lifter.spacing()
        if surface is not None:
            self.grid.prepare(surface, spacing)
        self._place_as_first(self.grid)

    def _placed_again(self, field: MaskField) -> MaskField:
        """An empty field for the next pass, with its cells around the object of the last one."""
        empty = field.placed_again(self._lifter.spacing())
        self._place_as_first(empty)
        return empty

    def _place_as_first(self, field: MaskField) -> None:
        """Place the cells of an empty field as on rank 0."""
        if self.ranks.size > 1:
            field.place_as(self.ranks.share(field.cells_place))
