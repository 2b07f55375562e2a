"""The loop over views: prompt, segment, lift, render, prompt again, until the field stops changing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sa3d_nerfstudio.chunks import within_memory
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.ahead import Ahead
from sa3d_nerfstudio.segmentation.lifting import (
    EvidenceLifting,
    Lifting,
    Weight,
    field_change,
    make_lifting,
    masks_change,
)
from sa3d_nerfstudio.segmentation.mask_depth import in_one_piece, sees_past
from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmentation.report import SessionReport, ViewRecord, ViewState
from sa3d_nerfstudio.segmentation.self_prompting import agreement, self_prompt
from sa3d_nerfstudio.segmentation.session_views import FreeView, Views
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmentation.sharpening import Sharpening
from sa3d_nerfstudio.segmentation.surface import pixel_spacing, surface_of
from sa3d_nerfstudio.segmentation.view_choice import covering_views, view_order
from sa3d_nerfstudio.segmentation.working_size import magnification
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter, SegmenterImage
from sa3d_nerfstudio.segmenters.batches import CUDA_BATCH, BatchSegmenter, embed_all
from sa3d_nerfstudio.traces.base import ViewTrace

SMALLER = "segment with a smaller --pipeline.segmenter, keep less in it (--pipeline.cache-gb), or close other programs"
"""What to do where a segmenter does not fit into the GPU's memory."""


@dataclass
class Given:
    """A view that the user has prompted, with the mask that came of it."""

    prompt: Prompt
    candidates: Candidates
    choice: int
    correcting: bool = False
    """Whether the user has corrected what the other views say, and not just pointed at the object."""

    @property
    def mask(self) -> Bool[Tensor, "height width"]:
        return self.candidates.masks[self.choice]

    @property
    def picked(self) -> bool:
        """Whether the user has taken another candidate than the segmenter's favourite."""
        return self.choice != int(self.candidates.scores.argmax())


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
    """

    def __init__(
        self,
        views: Views,
        segmenter: Segmenter,
        grid: MaskField,
        settings: SessionSettings,
        embeddings: MutableMapping[int | str, Any] | None = None,
        sized: Callable[[float], tuple[Views, MutableMapping[int | str, Any]]] | None = None,
    ) -> None:
        self.views = views
        self.segmenter = segmenter
        self.grid = grid
        self.settings = settings
        self.report = SessionReport()
        self.given: dict[int | str, Given] = {}
        self.free: dict[str, FreeView] = {}
        """Views beside the training views that may be prompted, by name."""
        self.lifting: Lifting | None = None
        """What the newest pass has lifted."""
        self._embeddings: MutableMapping[int | str, Any] = {} if embeddings is None else embeddings
        self._lifted: dict[int | str, tuple[Bool[Tensor, " num_rays"], float]] = {}
        """Masks and weights of the newest pass."""
        self._ahead: Ahead | None = None
        self._sized = sized
        self._asked: dict[int | str, Prompt] = {}
        """Prompts as they were given, at the size of their images."""
        self._ray_weight = 1.0
        """What a ray counts: larger images have more of them, and say no more for it."""
        self._chosen: tuple[tuple[int | str, ...], set[int]] | None = None
        self._spacings: dict[int | str, float] = {}
        """Distance between the rays of neighbouring pixels at the object, in each view that has shown it."""

    def prompt(self, view: int | str, prompt: Prompt) -> Candidates:
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
            candidates = self._predict(view, prompt)
        choice = int(candidates.scores.argmax())
        if prompt.is_empty or not candidates.masks[choice].any():
            raise SA3DError(
                f"the prompt selects nothing in {self.name(view)}: "
                "put a point on the object, add more points, or choose another view."
            )
        self.given[view] = Given(prompt, candidates, choice)
        self._asked[view] = asked
        return candidates

    def choose(self, view: int | str, candidate: int) -> None:
        """Take another of the candidates of a prompted view (for SAM: part, object, whole)."""
        self.given[view].choice = candidate

    def mask_of(self, view: int | str) -> Bool[Tensor, "height width"]:
        """The 2D mask of a view that the user has prompted."""
        return self.given[view].mask

    def name(self, view: int | str) -> str:
        """File name of a training view's image, or name of a free view."""
        return view if isinstance(view, str) else self.views.name(view)

    def trace(self, view: int | str) -> ViewTrace:
        """The trace of a training view or a free view."""
        if isinstance(view, str):
            return self.free[view].trace
        with self.report.timed("render"):
            return self.views.trace(view)

    def lift_prompts(self, base: MaskField | None = None) -> None:
        """Fill the grid with what the prompted views say by themselves: at once, and 3D already.

        Args:
            base: Evidence of other views to add it to; without it, the grid is placed around what is prompted.
        """
        if base is not None:
            if self.given:
                base = base.with_room_for(self._prompted_surface(), self._spacing(), len(self.views))
            self.grid.copy_from(base)
        elif self.given:
            self._place_around_prompts()
        else:
            self.grid.copy_from(self.grid.fresh())
        lifting = EvidenceLifting(self.grid)
        for view, given in self.given.items():
            self._lift(lifting, view, self.trace(view), self._solid(view), self._weight(given))

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
        if not self.given:
            raise SA3DError("nothing to segment: prompt a view first.")
        self._choose_size()
        yield from self._passes()
        self._sharpen()

    def _passes(self) -> Iterator[ViewRecord]:
        self._place_around_prompts()
        guide = lifting = self.new_lifting(self.grid)
        for number in range(1, self.settings.max_passes + 1):
            self.lifting = lifting
            before = self._masks()
            for record in self._pass(number, lifting, guide):
                self.report.records.append(record)
                yield record
            coming = lifting.field.placed_again(self._spacing())
            if number > 1:
                if not lifting.field.holds_object(self.settings.threshold):
                    # What an earlier pass has found is better than nothing.
                    self._lifted.clear()
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
        self, masks: dict[int | str, Bool[Tensor, " num_rays"]], before: MaskField, after: MaskField, coming: MaskField
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
            change = masks_change(masks, self._masks())
            if change < self.settings.tolerance:
                return change
        return field_change(before.resampled(after), after)

    def _masks(self) -> dict[int | str, Bool[Tensor, " num_rays"]]:
        """The masks of the newest pass, by view."""
        return {view: mask for view, (mask, _) in self._lifted.items()}

    def _sharpen(self) -> None:
        if self.settings.lifting != "evidence" or self.lifting is None or not self._lifted:
            return
        field = self.lifting.field
        for _ in range(self.settings.sharpening):
            sweep = Sharpening(field)
            for view, (mask, weight) in self._lifted.items():
                trace = self.trace(view)
                with self.report.timed("lift"):
                    sweep.add(trace, mask, weight)
            sweep.finish()
        if field is not self.grid:
            self.grid.copy_from(field)

    def _choose_size(self) -> None:
        """Take larger views where the object is small in those that have been prompted."""
        if self._sized is None or not self.given.keys() <= self._asked.keys() or self._ray_weight < 1:
            return
        usual = self.views
        self.views, self._embeddings = self._sized(magnification(given.mask for given in self.given.values()))
        if self.views is usual:
            return
        for view, given in dict(self.given).items():
            self.prompt(view, self._asked[view])
            if given.picked:
                self.choose(view, given.choice)
            now, before = self.given[view].mask.numel(), given.mask.numel()
            self._ray_weight = before / now

    def new_lifting(self, field: MaskField) -> Lifting:
        """How masks go to a field, as the settings say."""
        return make_lifting(self.settings.lifting, field)

    def _pass(self, number: int, lifting: Lifting, guide: Lifting) -> Iterator[ViewRecord]:
        """Visit every view once; masks rendered from ``guide`` prompt, what they find goes to ``lifting``."""
        self._lifted.clear()
        for view, given in self.given.items():
            # The published update has no such weight.
            weight = self._weight(given) if self.settings.lifting == "evidence" else 1.0
            self._lift(lifting, view, self.trace(view), self._solid(view), weight)
            yield ViewRecord(view, self.name(view), number, "prompt")
        order = self._order(guide)
        with Ahead(self._preload, max(2, self._batch())) as self._ahead:
            for place, view in enumerate(order):
                coming = order[place + 1 :]
                self._ahead.begin(view, coming)
                state, reason, iou = self._visit(view, lifting, guide, coming)
                yield ViewRecord(view, self.views.name(view), number, state, reason, iou)

    def _preload(self, view: int) -> None:
        self.views.preload(view, picture=view not in self._embeddings)

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
        if view not in self._embeddings:
            self._embed([view, *(other for other in coming[: self._batch() - 1] if self._shows(other, guide))])
        candidates = self._predict(view, prompt)
        candidates = Candidates(candidates.masks.to(known.device), candidates.scores)
        if not candidates.masks.any():
            return "rejected", "the segmenter found nothing", None
        ious = [agreement(mask, probability, known, self.settings.threshold) for mask in candidates.masks]
        chosen = int(candidates.scores.argmax())
        # Part, object or whole: where the user has picked another than the segmenter's favourite, that decides in all
        # views. Else the favourite does: what agrees best with a field that is too small is too small as well.
        if any(given.picked for given in self.given.values()):
            chosen = ious.index(max(ious))
        mask, iou = candidates.masks[chosen], ious[chosen]
        if iou < self.settings.min_agreement:
            return "rejected", f"IoU with the rendered mask is {iou:.2f}", iou
        with self.report.timed("lift"):
            spacing = pixel_spacing(trace, mask)
            surface = known & (probability > self.settings.threshold)
            solid = in_one_piece(trace, mask, self._gap, spacing, known=surface)
        self._lift(lifting, view, trace, solid, spacing=spacing)
        return "used", "", iou

    def _weight(self, given: Given) -> float:
        settings = self.settings
        return max(settings.prompt_weight, given.correcting * settings.correction_weight * len(self.views))

    @property
    def num_visits(self) -> int:
        """How many views each pass goes through, the prompted ones included."""
        others = len(self.views) - sum(isinstance(view, int) for view in self.given)
        count = self.settings.num_views
        return len(self.given) + (others if count is None else min(count, others))

    def _order(self, guide: Lifting) -> list[int]:
        order, count = self._order_of_all(guide), self.settings.num_views
        if count is None:
            return order
        key = tuple(self.given)
        if self._chosen is None or self._chosen[0] != key:
            # Once for all passes: each view costs a render.
            start = [view for view in self.given if isinstance(view, int)]
            chosen = covering_views(self.views.camera_to_worlds, guide.field.center, start, count)
            self._chosen = (key, set(chosen))
        return [view for view in order if view in self._chosen[1]]

    def _order_of_all(self, guide: Lifting) -> list[int]:
        if self.settings.view_order == "file":
            return [view for view in range(len(self.views)) if view not in self.given]
        poses = self.views.camera_to_worlds
        start = [view for view in self.given if isinstance(view, int)]
        free = [self.free[view].camera_to_world.to(poses) for view in self.given if isinstance(view, str)]
        start += range(len(poses), len(poses) + len(free))
        return view_order(torch.cat([poses, torch.stack(free)]) if free else poses, guide.field.center, start)

    def _place_around_prompts(self) -> None:
        points = self._prompted_surface()
        self.grid.prepare(points, self._spacing())

    def _prompted_surface(self) -> Float[Tensor, "num_points 3"]:
        """Points of the object's surface in the views that the user has prompted."""
        points = []
        for view in self.given:
            trace, mask = self.trace(view), self._solid(view)
            points.append(surface_of(trace, mask, self.position(view)))
            self._spacings[view] = pixel_spacing(trace, mask)
        return torch.cat(points)

    def position(self, view: int | str) -> Float[Tensor, "3"]:
        """Where a view was taken from."""
        pose = self.free[view].camera_to_world if isinstance(view, str) else self.views.camera_to_worlds[view]
        return pose[:, 3]

    def _spacing(self) -> float:
        return median(self._spacings.values())

    def embed(self, view: int | str) -> Any:
        """What the segmenter embeds of a view; done once, and done by the first prompt if not before."""
        if view not in self._embeddings:
            self._embed([view])
        return self._embeddings[view]

    def _embed(self, views: Sequence[int | str]) -> None:
        """Embed views, at once where the segmenter can. The first stays in memory, however little there is."""
        images = []
        for view in views:
            trace = self.trace(view)
            with self.report.timed("segment"):
                if isinstance(view, int) and self._ahead is not None:
                    self._ahead.check(view)
                rgb = trace.rgb if isinstance(view, str) else self.views.picture(view)
                images.append(SegmenterImage(rgb, self.name(view), trace.depth[..., 0]))
        with self.report.timed("segment"):
            with within_memory(SMALLER):
                found = embed_all(self.segmenter, images)
            for view, embedding in zip(reversed(views), reversed(found), strict=True):
                self._embeddings[view] = embedding

    def _batch(self) -> int:
        """How many views are embedded at once."""
        if not isinstance(self.segmenter, BatchSegmenter):
            return 1
        return self.settings.encode_batch or (CUDA_BATCH if self.grid.hit.is_cuda else 1)

    def _shows(self, view: int, guide: Lifting) -> bool:
        """Whether a view that has not been embedded shows the object, as far as that is known by now."""
        if view in self._embeddings:
            return False
        trace = self.trace(view)
        with self.report.timed("lift"):
            probability, known = guide.render(trace)
            return bool((known & (probability > self.settings.threshold)).any())

    def _predict(self, view: int | str, prompt: Prompt) -> Candidates:
        embedding = self.embed(view)
        with self.report.timed("segment"), within_memory(SMALLER):
            return self.segmenter.predict(embedding, prompt)

    def _lift(
        self,
        lifting: Lifting,
        view: int | str,
        trace: ViewTrace,
        mask: Tensor,
        weight: float = 1.0,
        spacing: float | None = None,
    ) -> None:
        with self.report.timed("lift"):
            mask = mask.to(trace.depth.device)
            self._spacings[view] = pixel_spacing(trace, mask) if spacing is None else spacing
            counted: Weight = weight
            if self.settings.lifting == "evidence":
                # The published update has no such weights.
                counted = weight = weight * self._ray_weight
                if self.settings.trim_outline:
                    counted = weight * ~sees_past(trace, mask, self._spacings[view]).reshape(-1)
            lifting.add(trace, mask.reshape(-1), counted)
            # All of the mask: sharpening is to bring the renders to it.
            self._lifted[view] = (mask.reshape(-1), weight)

    @property
    def _gap(self) -> float:
        """Beyond which parts of masks are left out; never by the published update."""
        return self.settings.part_gap if self.settings.lifting == "evidence" else 0.0

    def _solid(self, view: int | str) -> Bool[Tensor, "height width"]:
        """The mask of a prompted view, without what is elsewhere in space. One that the user gave stays as it is."""
        given, trace = self.given[view], self.trace(view)
        if given.prompt.mask is not None:
            return given.mask
        spacing = pixel_spacing(trace, given.mask)
        return in_one_piece(trace, given.mask, self._gap, spacing, given.prompt.positive.long())
