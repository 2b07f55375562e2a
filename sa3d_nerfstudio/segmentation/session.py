"""The loop over views: prompt, segment, lift, render, prompt again, until the field stops changing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting, field_change, make_lifting, masks_change
from sa3d_nerfstudio.segmentation.mask_lifter import MaskLifter
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport, ViewRecord, ViewState
from sa3d_nerfstudio.segmentation.self_prompting import agreement, self_prompt
from sa3d_nerfstudio.segmentation.session_views import FreeView, PromptedMask, SessionViews, ViewKey, Views
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.view_selection import Route, magnification
from sa3d_nerfstudio.segmenters.base import CUDA_BATCH, Candidates, Segmenter
from sa3d_nerfstudio.traces.base import ViewTrace


class SegmentationSession:
    """One object being segmented: the user's prompts, and the evidence that the views add.

    Args:
        views: The training views.
        segmenter: The 2D segmenter.
        grid: Where the evidence goes; it is placed and filled by the session.
        settings: How to go about it.
        embeddings: What the segmenter has embedded already, by view; sessions of several objects may share it.
        sized: Gives the same views in images larger by a factor, with what has been embedded of these; small objects
            are segmented there. None to stay with the views.
        free: Views beside the training views that may be prompted, by name.
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
    ) -> None:
        self.segmenter = segmenter
        self.grid = grid
        self.settings = settings
        self.report = SessionReport()
        self.prompted: dict[ViewKey, PromptedMask] = {}
        self.free: dict[str, FreeView] = {} if free is None else free
        """Views beside the training views that may be prompted, by name."""
        self.lifting: Lifting | None = None
        """What the newest pass has lifted."""
        self._sized = sized
        self._asked: dict[ViewKey, Prompt] = {}
        """Prompts as they were given, at the size of their images."""
        self._look_at(views, {} if embeddings is None else embeddings)

    def _look_at(self, views: Views, embeddings: MutableMapping[ViewKey, Any], ray_weight: float = 1.0) -> None:
        """Work in these views, each of whose rays counts that much."""
        self._views = SessionViews(views, self.free, self.report)
        batch = self.settings.encode_batch or (CUDA_BATCH if self.grid.hit.is_cuda else 1)
        self._segmenter = MaskPredictor(self.segmenter, self._views, embeddings, batch)
        self._lifter = MaskLifter(self._views, self.settings, ray_weight)
        self._route = Route(self._views, self.settings)

    @property
    def views(self) -> Views:
        """The training views."""
        return self._views.training

    def prompt(self, view: ViewKey, prompt: Prompt) -> Candidates:
        """Segment one view from the user's prompt. A second prompt for a view replaces the first.

        Args:
            view: Index of the training view, or name of a view in ``free``.
            prompt: In pixels of an image of any size.

        Returns:
            The segmenter's candidates, of which the one with the highest score is taken; see :meth:`choose`.

        Raises:
            SA3DError: The prompt selects nothing.
        """
        trace, asked = self.trace(view), prompt
        prompt = prompt.resized(trace.height, trace.width)
        if prompt.mask is not None:
            candidates = Candidates(prompt.mask[None], torch.ones(1))
        else:
            candidates = self._segmenter.predict(view, prompt)
        choice = int(candidates.scores.argmax())
        if prompt.is_empty or not candidates.masks[choice].any():
            raise SA3DError(
                f"the prompt selects nothing in {self.name(view)}: "
                "put a point on the object, add more points, or choose another view."
            )
        self.prompted[view] = PromptedMask(prompt, candidates, choice)
        self._asked[view] = asked
        return candidates

    def choose(self, view: ViewKey, candidate: int) -> None:
        """Take another of the candidates of a prompted view (for SAM: part, object, whole)."""
        self.prompted[view].choice = candidate

    def mask_of(self, view: ViewKey) -> Bool[Tensor, "height width"]:
        """The 2D mask of a view that the user has prompted."""
        return self.prompted[view].mask

    def name(self, view: ViewKey) -> str:
        """File name of a training view's image, or name of a free view."""
        return self._views.name(view)

    def trace(self, view: ViewKey) -> ViewTrace:
        """The trace of a training view or a free view."""
        return self._views.trace(view)

    def position(self, view: ViewKey) -> Float[Tensor, "3"]:
        """Where a view was taken from."""
        return self._views.pose(view)[:, 3]

    def embed(self, view: ViewKey) -> Any:
        """What the segmenter embeds of a view; done once, and done by the first prompt if not before."""
        return self._segmenter.embed(view)

    def lift_prompts(self, base: MaskField | None = None) -> None:
        """Fill the grid with what the prompted views say by themselves: at once, and 3D already.

        Args:
            base: Evidence of other views to add it to; without it, the grid is placed around what is prompted.
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
        """Do all steps and return the report."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Generator[ViewRecord, None, None]:
        """Segment in 3D, one view a step. Whoever iterates may stop at any step: the grid holds what is known by then.

        Raises:
            SA3DError: Nothing has been prompted.
        """
        if not self.prompted:
            raise SA3DError("nothing to segment: prompt a view first.")
        self._choose_size()
        yield from self._passes()
        fits = self.settings.lifting == "evidence" and self.settings.likelihood_steps > 0
        if fits and self.lifting is not None and self._lifter.masks:
            self.report.likelihood = self._lifter.fit(self.lifting.field)
            if self.lifting.field is not self.grid:
                self.grid.copy_from(self.lifting.field)

    def _choose_size(self) -> None:
        """Take larger views where the object is small in those that have been prompted."""
        if self._sized is None or not self.prompted.keys() <= self._asked.keys() or self._lifter.ray_weight < 1:
            return
        usual = self.views
        views, embeddings = self._sized(magnification(prompted.mask for prompted in self.prompted.values()))
        if views is usual:
            return
        self._look_at(views, embeddings)
        for view, prompted in dict(self.prompted).items():
            self.prompt(view, self._asked[view])
            if prompted.picked:
                self.choose(view, prompted.choice)
            now, before = self.prompted[view].mask.numel(), prompted.mask.numel()
            self._lifter.ray_weight = before / now

    def _passes(self) -> Iterator[ViewRecord]:
        self._place_around_prompts()
        guide = lifting = self.new_lifting(self.grid)
        for number in range(1, self.settings.max_passes + 1):
            self.lifting = lifting
            before = self._lifter.masks
            for record in self._pass(number, lifting, guide):
                self.report.records.append(record)
                yield record
            coming = lifting.field.placed_again(self._lifter.spacing())
            if number > 1:
                if not lifting.field.holds_object(self.settings.threshold):
                    # What an earlier pass has found is better than nothing.
                    self._lifter.forget()
                    return
                change = self._change(before, guide.field, lifting.field, coming)
                self.report.changes.append(change)
                self.grid.copy_from(lifting.field)
                if change < self.settings.tolerance:
                    self.report.converged = True
                    return
            # The first pass has filled the grid itself, view by view; a copy stays behind to compare with.
            guide, lifting = lifting, self.new_lifting(coming)

    def _change(
        self, masks: dict[ViewKey, Bool[Tensor, " num_rays"]], before: MaskField, after: MaskField, coming: MaskField
    ) -> float:
        """How much a pass has changed: relative L1 change of the masks that were lifted, or else of the field.

        Args:
            masks: Of the pass before.
            before: Its field.
            after: The field of this pass.
            coming: Where the next pass would put its cells.
        """
        # The same masks make the same field, wherever its cells have moved meanwhile. Where they are to move again,
        # some of the object may be beyond their reach as yet.
        if coming.same_cells(after):
            change = masks_change(masks, self._lifter.masks)
            if change < self.settings.tolerance:
                return change
        return field_change(before.resampled(after), after)

    def new_lifting(self, field: MaskField) -> Lifting:
        """How masks go to a field, as the settings say."""
        return make_lifting(self.settings.lifting, field)

    def _pass(self, number: int, lifting: Lifting, guide: Lifting) -> Iterator[ViewRecord]:
        """Visit every view once; masks rendered from ``guide`` prompt, what they find goes to ``lifting``."""
        self._lifter.begin_pass(None if guide is lifting else guide.field)
        for view, prompted in self.prompted.items():
            self._lifter.lift_prompted(lifting, view, prompted)
            yield ViewRecord(view, self.name(view), number, "prompt")
        order = self._route.of(self.prompted, guide.field.center)
        with self._segmenter.prefetching() as ahead:
            for place, view in enumerate(order):
                coming = order[place + 1 :]
                ahead.begin(view, coming)
                state, reason, iou = self._visit(view, lifting, guide, coming)
                yield ViewRecord(view, self.name(view), number, state, reason, iou)

    def _visit(
        self, view: int, lifting: Lifting, guide: Lifting, coming: Sequence[int]
    ) -> tuple[ViewState, str, float | None]:
        trace = self.trace(view)
        shape = (trace.height, trace.width)
        with self.report.timed("lift"):
            probability, known = (image.reshape(shape) for image in guide.render(trace))
            prompt = self_prompt(
                probability, known, trace.depth[..., 0], self.settings.num_prompts, self.settings.threshold
            )
        if prompt is None:
            return "skipped", "object not in view", None
        self._segmenter.embed(view, coming, lambda other: self._shows(other, guide))
        candidates = self._segmenter.predict(view, prompt)
        candidates = Candidates(candidates.masks.to(known.device), candidates.scores)
        if not candidates.masks.any():
            return "rejected", "the segmenter found nothing", None
        ious = [agreement(mask, probability, known, self.settings.threshold) for mask in candidates.masks]
        chosen = int(candidates.scores.argmax())
        # Part, object or whole: where the user has picked another than the segmenter's favourite, that decides in all
        # views. Else the favourite does: what agrees best with a field that is too small is too small as well.
        if any(prompted.picked for prompted in self.prompted.values()):
            chosen = ious.index(max(ious))
        mask, iou = candidates.masks[chosen], ious[chosen]
        if iou < self.settings.min_agreement:
            return "rejected", f"IoU with the rendered mask is {iou:.2f}", iou
        self._lifter.lift_self_prompted(lifting, view, mask, known & (probability > self.settings.threshold))
        return "used", "", iou

    def _shows(self, view: int, guide: Lifting) -> bool:
        """Whether a view shows the object, as far as that is known by now."""
        trace = self.trace(view)
        with self.report.timed("lift"):
            probability, known = guide.render(trace)
            return bool((known & (probability > self.settings.threshold)).any())

    @property
    def num_visits(self) -> int:
        """How many views each pass goes through, the prompted ones included."""
        return len(self.prompted) + self._route.count(self.prompted)

    def _place_around_prompts(self) -> None:
        surface = self._lifter.surface(self.prompted.items())
        self.grid.prepare(surface, self._lifter.spacing())


@dataclass
class Progress:
    """How far a segmentation has got."""

    number_of_pass: int
    done: int
    """Views visited in this pass."""
    total: int
    """Views to visit in this pass."""
    used: int
    rejected: int
    name: str
    """Of the view just visited."""


def followed(session: SegmentationSession) -> Iterator[Progress]:
    """Do a session's steps, one at a time, and count them."""
    progress = Progress(0, 0, 0, 0, 0, "")
    for record in session.steps():
        if record.number_of_pass != progress.number_of_pass:
            progress = Progress(record.number_of_pass, 0, session.num_visits, 0, 0, "")
        progress.done += 1
        progress.used += record.state in ("used", "prompt")
        progress.rejected += record.state == "rejected"
        progress.name = record.name
        yield progress
