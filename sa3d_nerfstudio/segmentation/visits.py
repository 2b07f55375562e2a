"""Visits of views: a rendered mask prompts the segmenter, and the candidate that agrees best with it is lifted.

A GPU runs behind the host until the host reads a result. A visit reads three: the position of the object in the view,
its rendered mask, and the agreement of the segmenter's candidates with that mask. Where the field that renders the
masks does not change meanwhile, views are visited together, and share each of these waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting, Lifting
from sa3d_nerfstudio.segmentation.mask_lifter import MaskLifter, SelfPromptedMask
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.prompted_surface import PromptedSurface
from sa3d_nerfstudio.segmentation.report import ViewRecord, ViewState
from sa3d_nerfstudio.segmentation.self_prompting import (
    Agreement,
    certainty_of,
    merits_of,
    overlaps,
    points_in_view,
    self_prompt,
)
from sa3d_nerfstudio.segmentation.session_views import SessionViews, ViewKey
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, fits_prior
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.traces.window import touched_sides

Choose = Callable[[Candidates, Agreement], int | None]
"""Returns the index of the candidate that is the object, by the candidates' agreement; None if none is."""
Begin = Callable[[Sequence[int], Sequence[int]], None]
"""Callback before a visit: views visited now, and those after them."""


@dataclass
class Outcome:
    """Outcome of visiting one view."""

    view: ViewKey
    state: ViewState
    reason: str = ""
    agreement: float | None = None

    def record(self, name: str, number_of_pass: int) -> ViewRecord:
        """Entry of the session's report."""
        return ViewRecord(self.view, name, number_of_pass, self.state, self.reason, self.agreement)


@dataclass
class _Rendered:
    """Rendered mask of one view."""

    view: ViewKey
    trace: ViewTrace
    probability: Float[Tensor, "height width"]
    known: Bool[Tensor, "height width"]
    prompt: Prompt | None = None
    """Self-prompt from the rendered mask; None if the object is not in view."""

    def prior(self) -> Float[Tensor, "height width"]:
        """Probability of each pixel, NaN where there is no evidence."""
        return torch.where(self.known, self.probability, torch.nan)

    def on(self, threshold: float) -> Bool[Tensor, "height width"]:
        """Pixels with evidence and a probability above the threshold."""
        return self.known & (self.probability > threshold)


@dataclass
class _Comparison:
    """Comparison of candidates with a rendered mask, as one tensor, so that the host reads it in one wait."""

    table: Float[Tensor, "num_candidates 11"]
    """Columns: union and intersection with the rendered mask; the same with pixels weighted by certainty; whether the
    candidate reaches each side of the window; whether it has any pixel; its score; its agreement with the surface that
    the prompted views show."""

    @classmethod
    def of(
        cls,
        plain: Float[Tensor, "num_candidates 2"],
        certain: Float[Tensor, "num_candidates 2"],
        touched: Bool[Tensor, "num_candidates 4"],
        has_pixels: Bool[Tensor, " num_candidates"],
        scores: Float[Tensor, " num_candidates"],
        prompted: Float[Tensor, " num_candidates"],
    ) -> _Comparison:
        """Join the columns, which are on one device."""
        columns = [plain, certain, touched.float(), torch.stack([has_pixels.float(), scores.float(), prompted], dim=-1)]
        return cls(torch.cat(columns, dim=-1))

    @property
    def scores(self) -> Float[Tensor, " num_candidates"]:
        """Scores of the candidates."""
        return self.table[:, 9]

    @property
    def agreement(self) -> Agreement:
        """Agreement of the candidates with the rendered mask, for a table on the host."""
        plain, certain = ([row[i + 1] / row[i] if row[i] else 0.0 for row in self.table.tolist()] for i in (0, 2))
        return Agreement(plain, certain, self.table[:, 10].tolist())

    @property
    def touched(self) -> list[list[bool]]:
        """Whether each candidate reaches each side of the window."""
        return (self.table[:, 4:8] > 0).tolist()

    @property
    def is_empty(self) -> bool:
        """Whether no candidate has any pixel."""
        return not bool(self.table[:, 8].any())

    def likely(self, by_prior: bool) -> Int[Tensor, "1"]:
        """Index of the candidate likeliest to be chosen, on the table's device; see :func:`merits_of`."""
        certain = self.table[:, 3] / self.table[:, 2].clamp(min=1e-12)
        return merits_of(self.scores, certain, self.table[:, 10], by_prior).argmax(0, keepdim=True)


@dataclass
class _Answer:
    """The segmenter's candidates for one view, and their agreement with the rendered mask."""

    rendered: _Rendered
    candidates: Candidates
    agreement: Agreement
    touched: list[list[bool]]
    """Whether each candidate reaches each side of the window."""
    is_empty: bool
    """Whether no candidate has any pixel."""


class Visits:
    """Visits to the views of one pass.

    Args:
        views: The views of the session.
        predictor: The segmenter, for these views.
        lifter: Checks masks by depth, and lifts them.
        settings: Settings of the session.
        choose: Chooses the candidate to lift.
        lifting: Receives the masks of this pass.
        guide: Renders the masks that prompt the segmenter: ``lifting`` itself, or the lifting of an earlier pass.
        beside: World positions of surface points under the user's negative points; None if there are none.
        surface: Surface that the prompted views show; None if they show none.
    """

    def __init__(
        self,
        views: SessionViews,
        predictor: MaskPredictor,
        lifter: MaskLifter,
        settings: SessionSettings,
        choose: Choose,
        lifting: Lifting,
        guide: Lifting,
        beside: Float[Tensor, "num 3"] | None,
        surface: PromptedSurface | None,
    ) -> None:
        self._views = views
        self._predictor = predictor
        self._lifter = lifter
        self._settings = settings
        self._choose = choose
        self._lifting = lifting
        self._guide = guide
        self._beside = beside
        self._surface = surface

    def visit_all(self, order: Sequence[int], together: int, begin: Begin) -> Iterator[Outcome]:
        """Visit views; they are lifted in their order, each before its outcome is yielded.

        Args:
            order: The views.
            together: Number of views to visit together; always one where ``guide`` is ``lifting``.
            begin: Called before views are visited, with these and with those after them.
        """
        if self._guide is self._lifting:
            yield from self._in_turn(order, begin)
            return
        for start in range(0, len(order), together):
            views, coming = order[start : start + together], order[start + together :]
            begin(views, coming)
            yield from self._together(views, coming)

    def visit_one(self, view: ViewKey) -> Outcome:
        """Visit a view that is known to show the object, without a search for it."""
        answers = self._ask([view], ())
        return self._take(answers[0], ()) if answers else Outcome(view, "skipped", "object not in view")

    def _together(self, views: Sequence[int], coming: Sequence[int]) -> Iterator[Outcome]:
        located = self._views.locate(views, self._guide)
        showing = [view for view, may_show in zip(views, located, strict=True) if may_show]
        answers = {answer.rendered.view: answer for answer in self._ask(showing, coming)}
        outcomes: dict[ViewKey, Outcome] = {}
        masks: dict[ViewKey, SelfPromptedMask] = {}
        for view, answer in answers.items():
            outcome, chosen = self._judged(answer)
            if outcome.state == "used" and not self._views.leaves(view, answer.touched[chosen]):
                outcomes[view], masks[view] = outcome, self._found(answer.rendered, answer.candidates.masks[chosen])
        checked = dict(zip(masks, self._lifter.checked(list(masks.items())), strict=True))
        for view in views:
            if view in checked:
                self._lifter.lift_self_prompted(self._lifting, view, checked.pop(view))
                yield outcomes[view]
                continue
            answer = answers.get(view)
            yield Outcome(view, "skipped", "object not in view") if answer is None else self._take(answer, coming)

    def _in_turn(self, order: Sequence[int], begin: Begin) -> Iterator[Outcome]:
        """Visit views one by one, each prompted by the evidence of those before it.

        On a GPU the likeliest candidate is lifted before the host has read its agreement, so that one read brings both
        this agreement and the position of the object in the next view. If another candidate or none is to be lifted, or
        the mask leaves its window, that lifting is taken back.
        """
        is_located: bool | None = None
        rendered: _Rendered | None = None
        for position, view in enumerate(order):
            coming = order[position + 1 :]
            begin([view], coming)
            if is_located is None:
                (is_located,) = self._views.locate([view], self._guide)
            if is_located and rendered is None:
                (rendered,) = self._prompted(self._render([view]))
            current, is_located, rendered = rendered, None, None
            if current is None or current.prompt is None:
                yield Outcome(view, "skipped", "object not in view")
                continue
            (candidates,) = self._find([current], coming)
            comparison = self._compare(current, candidates)
            if not (coming and comparison.table.is_cuda and isinstance(self._lifting, EvidenceLifting)):
                yield self._take(_answer(current, candidates, comparison.table.cpu()), coming)
                continue
            field, state = self._lifting.field, self._lifter.state_of(view)
            before = field.hit.clone(), field.seen.clone()
            likely = comparison.likely(fits_prior(self._predictor.segmenter))
            self._lift(current, candidates.masks.index_select(0, likely)[0])
            begin(coming[:1], coming[1:])
            search = self._views.search(coming[:1], self._guide)
            # Without windows there is no search, and the next view's rendered mask is read in the same wait.
            following = self._render(coming[:1]) if search.found is None else []
            reading = [comparison.table, likely, *[next_rendered.prior() for next_rendered in following]]
            host = to_host(reading if search.found is None else [*reading, search.found])
            answer = _answer(current, candidates, host[0])
            outcome, chosen = self._judged(answer)
            if (
                outcome.state == "used"
                and chosen == int(host[1])
                and not self._views.leaves(view, answer.touched[chosen])
            ):
                (is_located,) = search.place(None if search.found is None else host[-1])
                rendered = next(iter(self._prompted(following, host[2:])), None) if following else None
            else:
                self._lifter.take_back(view, state)
                field.set(*before)
                outcome = self._take(answer, coming)
            yield outcome

    def _judged(self, answer: _Answer) -> tuple[Outcome, int]:
        """Outcome of a view, and the index of the candidate to lift if the view is used."""
        view = answer.rendered.view
        if answer.is_empty:
            return Outcome(view, "rejected", "the segmenter found nothing"), 0
        agreements = answer.agreement.plain
        chosen = self._choose(answer.candidates, answer.agreement)
        if chosen is None:
            best = max(agreements)
            return Outcome(view, "rejected", f"IoU with the rendered mask is {best:.2f}", best), 0
        return Outcome(view, "used", "", agreements[chosen]), chosen

    def _take(self, answer: _Answer, coming: Sequence[int]) -> Outcome:
        """Lift the chosen candidate of a view, if any; if it leaves the window, ask again in a wider one first."""
        outcome, chosen = self._judged(answer)
        if outcome.state != "used":
            return outcome
        if self._views.grow(outcome.view, answer.touched[chosen]):
            answers = self._ask([outcome.view], coming)
            return self._take(answers[0], coming) if answers else Outcome(outcome.view, "skipped", "object not in view")
        self._lift(answer.rendered, answer.candidates.masks[chosen])
        return outcome

    def _found(self, rendered: _Rendered, mask: Bool[Tensor, "height width"]) -> SelfPromptedMask:
        return mask, rendered.on(self._settings.threshold)

    def _lift(self, rendered: _Rendered, mask: Bool[Tensor, "height width"]) -> None:
        (checked,) = self._lifter.checked([(rendered.view, self._found(rendered, mask))])
        self._lifter.lift_self_prompted(self._lifting, rendered.view, checked)

    def _ask(self, views: Sequence[ViewKey], coming: Sequence[int]) -> list[_Answer]:
        """The segmenter's answers to the self-prompts of views; views that do not show the object are left out."""
        showing = [rendered for rendered in self._prompted(self._render(views)) if rendered.prompt is not None]
        candidates = self._find(showing, coming)
        with self._views.report.timed("lift"):
            tables = to_host([self._compare(r, c).table for r, c in zip(showing, candidates, strict=True)])
        return [_answer(*parts) for parts in zip(showing, candidates, tables, strict=True)]

    def _find(self, shown: Sequence[_Rendered], coming: Sequence[int]) -> list[Candidates]:
        """Candidates for the self-prompts of views, on the devices of the rendered masks."""
        self._predictor.embed_all([rendered.view for rendered in shown], coming, self._shows)
        answers = self._predictor.predict_all([(item.view, item.prompt) for item in shown if item.prompt is not None])
        return [candidates.to(rendered.known.device) for rendered, candidates in zip(shown, answers, strict=True)]

    def _render(self, views: Sequence[ViewKey]) -> list[_Rendered]:
        """Render the masks of views."""
        rendered = []
        for view in views:
            trace = self._views.trace(view)
            with self._views.report.timed("lift"):
                shape = (trace.height, trace.width)
                probability, known = (image.reshape(shape) for image in self._guide.render(trace))
                rendered.append(_Rendered(view, trace, probability, known))
        return rendered

    def _prompted(self, rendered: list[_Rendered], priors: Sequence[Tensor] | None = None) -> list[_Rendered]:
        """Set the self-prompts of rendered masks; ``priors`` are these masks on the host, if they have been read."""
        with self._views.report.timed("lift"):
            priors = to_host([item.prior() for item in rendered]) if priors is None else priors
            for item, prior in zip(rendered, priors, strict=True):
                item.prompt = self._self_prompt(item, prior)
        return rendered

    def _self_prompt(self, rendered: _Rendered, prior: Float[Tensor, "height width"]) -> Prompt | None:
        """Self-prompt from a rendered mask; ``prior`` is this mask on the host, NaN where there is no evidence."""
        settings, trace = self._settings, rendered.trace
        count, threshold, rule = settings.num_prompts, settings.threshold, settings.self_prompts
        depth = trace.depth[..., 0]
        depth = depth.cpu() if rule == "published" else torch.empty(0)
        prompt = self_prompt(prior.nan_to_num(), ~prior.isnan(), depth, count, threshold, rule)
        if prompt is None or self._beside is None or rule == "published":
            return prompt
        position = self._views.pose(rendered.view)[:, 3]
        return prompt.avoiding(points_in_view(self._beside, trace, position, rendered.on(threshold)))

    def _compare(self, rendered: _Rendered, candidates: Candidates) -> _Comparison:
        """Compare candidates with a rendered mask, on their device."""
        masks, threshold = candidates.masks, self._settings.threshold
        arguments = (masks, rendered.probability, rendered.known, threshold)
        plain = certain = overlaps(*arguments)
        prompted = plain.new_zeros(len(masks))
        if len(masks) > 1:
            on = rendered.on(threshold)
            certain = overlaps(*arguments, certainty_of(rendered.trace, self._guide.field, on))
            if self._surface is not None:
                prompted = self._surface.agreement(masks, rendered.trace, on)
        has_pixels = masks.flatten(1).any(1)
        return _Comparison.of(plain, certain, touched_sides(masks), has_pixels, candidates.scores, prompted)

    def _shows(self, view: int) -> bool:
        """Whether the rendered mask of a view has any pixel, by the evidence so far."""
        if not self._views.locate([view], self._guide)[0]:
            return False
        trace = self._views.trace(view)
        with self._views.report.timed("lift"):
            probability, known = self._guide.render(trace)
            return bool((known & (probability > self._settings.threshold)).any())


def _answer(rendered: _Rendered, candidates: Candidates, table: Float[Tensor, "num_candidates 11"]) -> _Answer:
    """The answer for one view, from the table of its :class:`_Comparison` on the host."""
    comparison = _Comparison(table)
    candidates = replace(candidates, scores=comparison.scores)
    return _Answer(rendered, candidates, comparison.agreement, comparison.touched, comparison.is_empty)


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors to the host in single precision, with one wait for all of them."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu()
    copies = flat.split([tensor.numel() for tensor in tensors])
    return [copy.reshape(tensor.shape) for copy, tensor in zip(copies, tensors, strict=True)]
