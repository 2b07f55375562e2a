"""Visits of views: what is known of the object prompts the segmenter, and what that finds is compared and lifted.

A GPU is told what to do long before it does it, unless the host has to know a result. That takes three waits: where in
the view the object is, what its rendered mask is, and how well the segmenter's candidates agree with that. Where what
is known does not change meanwhile, views are visited together, and wait together.
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
"""Which of the candidates is the object, by their agreement with what is known; None if none is."""
Begin = Callable[[Sequence[int], Sequence[int]], None]
"""Told which views are visited now, and which come after them."""


@dataclass
class Outcome:
    """What became of a view."""

    view: ViewKey
    state: ViewState
    reason: str = ""
    agreement: float | None = None

    def record(self, name: str, number_of_pass: int) -> ViewRecord:
        """What is noted of it."""
        return ViewRecord(self.view, name, number_of_pass, self.state, self.reason, self.agreement)


@dataclass
class _Rendered:
    """What is known of the object in a view."""

    view: ViewKey
    trace: ViewTrace
    probability: Float[Tensor, "height width"]
    known: Bool[Tensor, "height width"]
    prompt: Prompt | None = None
    """What that prompts the segmenter with; None if the object is not in view."""

    def prior(self) -> Float[Tensor, "height width"]:
        """The probability, NaN where nothing is known."""
        return torch.where(self.known, self.probability, torch.nan)

    def on(self, threshold: float) -> Bool[Tensor, "height width"]:
        """The rendered mask."""
        return self.known & (self.probability > threshold)


@dataclass
class _Answer:
    """What the segmenter has found in a view, and how that compares with what is known."""

    rendered: _Rendered
    candidates: Candidates
    agreement: Agreement
    touched: list[list[bool]]
    """Whether each candidate reaches each side of the window."""
    is_empty: bool
    """Whether no candidate has any pixel."""


class Visits:
    """Visits views in one pass.

    Args:
        views: The views of the session.
        predictor: The segmenter, for these.
        lifter: Lifts what is found.
        settings: Of the session.
        choose: Which candidate is taken.
        lifting: Takes up what is found.
        guide: What is known of the object: ``lifting`` itself, or what an earlier pass has lifted.
        beside: What the user has pointed at that is not the object, in space.
        surface: What the user's views show; None where they show nothing.
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

    def of(self, order: Sequence[int], together: int, begin: Begin) -> Iterator[Outcome]:
        """Visit views; they are lifted in their order, each before its outcome is told.

        Args:
            order: The views.
            together: How many to visit together, where ``guide`` does not change by what is lifted.
            begin: Called with views before they are visited, and with those that come after them.
        """
        if self._guide is self._lifting:
            yield from self._in_turn(order, begin)
            return
        for place in range(0, len(order), together):
            views, coming = order[place : place + together], order[place + together :]
            begin(views, coming)
            yield from self._together(views, coming)

    def at(self, view: ViewKey) -> Outcome:
        """Visit a view that is known to show the object."""
        answers = self._ask([view], ())
        return self._take(answers[0], ()) if answers else Outcome(view, "skipped", "object not in view")

    def _together(self, views: Sequence[int], coming: Sequence[int]) -> Iterator[Outcome]:
        located = self._views.locate(views, self._guide)
        there = [view for view, shows in zip(views, located, strict=True) if shows]
        answers = {answer.rendered.view: answer for answer in self._ask(there, coming)}
        outcomes: dict[ViewKey, Outcome] = {}
        found: dict[ViewKey, SelfPromptedMask] = {}
        for view, answer in answers.items():
            outcome, chosen = self._judged(answer)
            if outcome.state == "used" and not self._views.leaves(view, answer.touched[chosen]):
                outcomes[view], found[view] = outcome, self._found(answer.rendered, answer.candidates.masks[chosen])
        checked = dict(zip(found, self._lifter.checked(list(found.items())), strict=True))
        for view in views:
            if view in checked:
                self._lifter.lift_self_prompted(self._lifting, view, checked.pop(view))
                yield outcomes[view]
                continue
            answer = answers.get(view)
            yield Outcome(view, "skipped", "object not in view") if answer is None else self._take(answer, coming)

    def _in_turn(self, order: Sequence[int], begin: Begin) -> Iterator[Outcome]:
        """Visit views one by one, each prompted by what has been lifted of those before it.

        On a GPU a view is lifted before the host knows how well it agrees, so that this is read together with where in
        the next view the object is. Where that was rash, it is taken back.
        """
        is_there: bool | None = None
        rendered: _Rendered | None = None
        for place, view in enumerate(order):
            coming = order[place + 1 :]
            begin([view], coming)
            if is_there is None:
                (is_there,) = self._views.locate([view], self._guide)
            if is_there and rendered is None:
                (rendered,) = self._prompted(self._render([view]))
            now, is_there, rendered = rendered, None, None
            if now is None or now.prompt is None:
                yield Outcome(view, "skipped", "object not in view")
                continue
            (candidates,) = self._find([now], coming)
            numbers = self._compared(now, candidates)
            if not (coming and numbers.is_cuda and isinstance(self._lifting, EvidenceLifting)):
                yield self._take(self._answer(now, candidates, numbers.cpu()), coming)
                continue
            field, state = self._lifting.field, self._lifter.state_of(view)
            before = field.hit.clone(), field.seen.clone()
            likely = _likely(numbers, fits_prior(self._predictor.segmenter))
            self._lift(now, candidates.masks.index_select(0, likely)[0])
            begin(coming[:1], coming[1:])
            search = self._views.search(coming[:1], self._guide)
            # Where the next view is looked at as a whole, its rendered mask can be read as well.
            following = self._render(coming[:1]) if search.found is None else []
            reading = [numbers, likely, *[each.prior() for each in following]]
            host = fetched(reading if search.found is None else [*reading, search.found])
            answer = self._answer(now, candidates, host[0])
            outcome, chosen = self._judged(answer)
            if (
                outcome.state == "used"
                and chosen == int(host[1])
                and not self._views.leaves(view, answer.touched[chosen])
            ):
                (is_there,) = search.place(None if search.found is None else host[-1])
                rendered = next(iter(self._prompted(following, host[2:])), None) if following else None
            else:
                self._lifter.take_back(view, state)
                field.set(*before)
                outcome = self._take(answer, coming)
            yield outcome

    def _judged(self, answer: _Answer) -> tuple[Outcome, int]:
        """What is to become of a view, and which candidate is taken if it is used."""
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
        """Lift what has been found in a view, if it agrees with what is known."""
        outcome, chosen = self._judged(answer)
        if outcome.state != "used":
            return outcome
        if self._views.grow(outcome.view, answer.touched[chosen]):
            again = self._ask([outcome.view], coming)
            return self._take(again[0], coming) if again else Outcome(outcome.view, "skipped", "object not in view")
        self._lift(answer.rendered, answer.candidates.masks[chosen])
        return outcome

    def _found(self, rendered: _Rendered, mask: Bool[Tensor, "height width"]) -> SelfPromptedMask:
        return mask, rendered.on(self._settings.threshold)

    def _lift(self, rendered: _Rendered, mask: Bool[Tensor, "height width"]) -> None:
        (checked,) = self._lifter.checked([(rendered.view, self._found(rendered, mask))])
        self._lifter.lift_self_prompted(self._lifting, rendered.view, checked)

    def _ask(self, views: Sequence[ViewKey], coming: Sequence[int]) -> list[_Answer]:
        """What the segmenter finds in views; those that do not show the object are left out."""
        shown = [rendered for rendered in self._prompted(self._render(views)) if rendered.prompt is not None]
        device = self._find(shown, coming)
        with self._views.report.timed("lift"):
            numbers = fetched([self._compared(r, c) for r, c in zip(shown, device, strict=True)])
        return [self._answer(*each) for each in zip(shown, device, numbers, strict=True)]

    def _find(self, shown: Sequence[_Rendered], coming: Sequence[int]) -> list[Candidates]:
        """What the segmenter finds in views from their prompts, where what is known of them is."""
        self._predictor.embed_all([rendered.view for rendered in shown], coming, self._shows)
        found = self._predictor.predict_all([(each.view, each.prompt) for each in shown if each.prompt is not None])
        return [candidates.to(rendered.known.device) for rendered, candidates in zip(shown, found, strict=True)]

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
        """Choose prompts, by what is known as it is on the host, if it has been read before."""
        with self._views.report.timed("lift"):
            priors = fetched([each.prior() for each in rendered]) if priors is None else priors
            for each, prior in zip(rendered, priors, strict=True):
                each.prompt = self._self_prompt(each, prior)
        return rendered

    def _self_prompt(self, rendered: _Rendered, prior: Float[Tensor, "height width"]) -> Prompt | None:
        """What a rendered mask, here on the host and NaN where nothing is known, prompts the segmenter with."""
        settings, trace = self._settings, rendered.trace
        count, threshold, rule = settings.num_prompts, settings.threshold, settings.self_prompts
        depth = trace.depth[..., 0]
        depth = depth.cpu() if rule == "published" else torch.empty(0)
        prompt = self_prompt(prior.nan_to_num(), ~prior.isnan(), depth, count, threshold, rule)
        if prompt is None or self._beside is None or rule == "published":
            return prompt
        position = self._views.pose(rendered.view)[:, 3]
        return prompt.avoiding(points_in_view(self._beside, trace, position, rendered.on(threshold)))

    def _compared(self, rendered: _Rendered, candidates: Candidates) -> Float[Tensor, "num_candidates 11"]:
        """Of each candidate: union and intersection with the rendered mask; the same where pixels count by how much is
        known; whether it reaches each side; whether there is any pixel; its score; and how well it agrees with what the
        user's views show."""
        masks, threshold = candidates.masks, self._settings.threshold
        arguments = (masks, rendered.probability, rendered.known, threshold)
        plain = certain = overlaps(*arguments)
        prompted = plain.new_zeros(len(masks), 1)
        if len(masks) > 1:
            on = rendered.on(threshold)
            certain = overlaps(*arguments, certainty_of(rendered.trace, self._guide.field, on))
            if self._surface is not None:
                prompted = self._surface.agreement(masks, rendered.trace, on)[:, None]
        there = masks.flatten(1).any(1, keepdim=True)
        scores = candidates.scores[:, None].float()
        return torch.cat([plain, certain, touched_sides(masks).float(), there.float(), scores, prompted], dim=-1)

    def _answer(self, rendered: _Rendered, candidates: Candidates, numbers: Tensor) -> _Answer:
        rows = numbers.tolist()
        return _Answer(
            rendered,
            replace(candidates, scores=numbers[:, 9]),
            agreement=Agreement(
                plain=[row[1] / row[0] if row[0] else 0.0 for row in rows],
                certain=[row[3] / row[2] if row[2] else 0.0 for row in rows],
                prompted=[row[10] for row in rows],
            ),
            touched=[[side > 0 for side in row[4:8]] for row in rows],
            is_empty=not any(row[8] for row in rows),
        )

    def _shows(self, view: int) -> bool:
        """Whether a view shows the object, as far as that is known by now."""
        if not self._views.locate([view], self._guide)[0]:
            return False
        trace = self._views.trace(view)
        with self._views.report.timed("lift"):
            probability, known = self._guide.render(trace)
            return bool((known & (probability > self._settings.threshold)).any())


def _likely(numbers: Float[Tensor, "num_candidates 11"], by_prior: bool) -> Int[Tensor, "1"]:
    """The candidate that will most likely be taken, by what :meth:`Visits._compared` computes; told where that is."""
    certain = numbers[:, 3] / numbers[:, 2].clamp(min=1e-12)
    return merits_of(numbers[:, 9], certain, numbers[:, 10], by_prior).argmax(0, keepdim=True)


def fetched(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors on the host in single precision, which waits for them once."""
    if not tensors:
        return []
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
