"""Likelihood lifting: fits a mask field to all masks by logistic regression.

Rendering a mask is linear in the field, so the trace is the design matrix of a logistic regression. With a logit ``v``
in each cell, a ray has the logit ``M = (A v + l light) / known`` of
:func:`sa3d_nerfstudio.traces.base.render_probability` and the probability ``σ(M)``, and the masks m have the negative
log likelihood

    L(v) = Σ w (log(1 + exp M) - m M),    ∇L = Aᵀ w (σ(M) - m) / known,

which is convex. The averages ``hit / seen`` blur where rays that end on the object share cells with rays that pass it.
Logits have no bounds, so that the fit can put the outline where most pixels of the masks have it.

Steps divide the gradient by ``seen / 4`` cell by cell: the curvature of a logistic loss is at most 1/4 (D. Böhning,
B. Lindsay, "Monotonicity of quadratic-approximation algorithms", Ann. Inst. Statist. Math. 40, 1988), and a row of A
sums to at most one, so that ``seen / 4`` bounds the Hessian as in the separable surrogates of tomography (H. Erdoğan,
J. Fessler, "Ordered subsets algorithms for transmission tomography", Phys. Med. Biol. 44, 1999): no step overshoots.
Nesterov's acceleration restarts where it would climb (B. O'Donoghue, E. Candès, "Adaptive restart for accelerated
gradient schemes", Found. Comput. Math. 15, 2015).

Descent starts from the averages and stops before the field fits the noise of the masks: every fifth view is held out,
and the number of steps is the one that explains the held-out views; about fifteen for exact outlines, a few for
outlines that differ from view to view. All views are then fitted with as many steps from the averages; with many views,
where the held-out ones add little, by a few more steps from the logits reached without them.

Some masks are wrong: the segmenter takes another object, or a part. Before some of the steps, each view is weighted by
how well the renders explain its mask, with a redescending weight as in robust regression (P. Holland, R. Welsch,
"Robust regression using iteratively reweighted least-squares", Commun. Stat. 6, 1977), but of whole views instead of
single observations, since the errors within a mask are correlated. The scale is the median over the views.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sa3d_nerfstudio.distributed.ranks import Ranks
from sa3d_nerfstudio.fields.base import LIGHT_LOGIT, MIN_EVIDENCE, SHARPNESS, MaskField
from sa3d_nerfstudio.segmentation.neighborhoods import dilated
from sa3d_nerfstudio.traces.atoms import AtomRows
from sa3d_nerfstudio.traces.base import MIN_KNOWN, TraceRows, ViewTrace

OPEN = 0.1
"""Difference between a ray's average probability and its mask from which on the ray takes part in the fit."""
NEIGHBORS = 3
"""Pixels around such a ray that take part as well."""
MARGIN = 8
"""Pixels on either side of a mask's outline that take part, in an image of 160 pixels."""
WEIGHTED_BEFORE = (0, 5, 10)
"""Steps before which the views are weighted."""
TOLERATED = 3.0
"""Misfit of a view that has lost half of its weight, relative to the median misfit."""
LEAST_MISFIT = 0.02
"""Least value of the median misfit: where renders are exact, all views are trusted."""
FEW_PIXELS = 4.0
"""Pixels of mask and render together up to which a view keeps its weight: too few to measure a misfit."""
HELD_OUT = 5
"""One view of so many is held out to choose the number of steps."""
FEWEST_VIEWS = 8
"""Least number of views for that; with fewer, the number of steps is ``UNCHECKED``."""
UNCHECKED = 8
GOOD_ENOUGH = 1.01
"""The number of steps is the least with a held-out loss of at most so many times the lowest."""
PATIENCE = 3
"""Number of steps over which the held-out loss must fall."""
HARDLY_LESS = 1.003
"""Factor by which it must fall over them for the search to go on."""
MANY_VIEWS = 32
"""Number of views from which on the fit of all views continues from the fit without the held-out views."""
FURTHER = 6
"""Number of steps of that continuation."""
CPU_ATOMS, CUDA_ATOMS = 1 << 15, 1 << 22
"""Approximate number of atoms whose rows are multiplied together."""
BYTES_PER_RAY = 10 * 32 + 40
"""Approximate memory of a ray that takes part: ten atoms, and its equation."""
DAMPING = 0.05
"""Evidence added to that of each cell in step lengths, as a share of the median: cells with little move less."""


@dataclass
class MaskedView:
    """The whole mask of one view, for the fit.

    The depth check leaves out pixels before masks are lifted, so that an error does not spread from view to view. They
    are part of the mask here: once the views agree, errors of single views are outvoted.
    """

    trace: ViewTrace
    mask: Bool[Tensor, " num_rays"]
    weight: Float[Tensor, " num_rays"] | float = 1.0
    """Weight of its rays, as in lifting."""
    prompted: bool = False
    """Whether the user has prompted the view, which then keeps its weight."""
    lifted: Bool[Tensor, " num_rays"] | None = None
    """Pixels of the mask that are in the field's evidence; all of them by default."""


@dataclass
class LikelihoodReport:
    """Report of a fit."""

    steps: int
    """Number of steps with all views."""
    num_rays: int
    """Number of rays that took part."""
    losses: list[float]
    """Negative log likelihood before each step with all views, and after the last."""
    trust: list[float] = field(default_factory=list)
    """Share of its weight that each view keeps."""
    held_out: list[float] = field(default_factory=list)
    """Loss of the held-out views before the first step and after each, of a fit without them; empty without held-out
    views."""
    begun: int = 0
    """Number of its steps that was chosen."""
    outline_offset: float = 0.0
    """Distance, in pixels of an image of 160 pixels, by which outlines that were too wide in all views were moved
    inwards; negative where they were too narrow."""


@dataclass
class _Equations:
    """Equations of the rays of one view or of several."""

    rows: TraceRows
    mask: Float[Tensor, " num"]
    light: Float[Tensor, " num"]
    """Logit of the light that passes the whole scene, times its share of the ray."""
    known: Float[Tensor, " num"]
    """Share of the ray's weight that lies in cells with evidence or passes the whole scene."""
    weight: Float[Tensor, " num"]
    view: Int[Tensor, " num"]
    """Index of the ray's view, in the order in which views were added."""
    held_out: bool = False
    """Whether their views are held out."""
    trusted: Float[Tensor, " num"] = field(init=False)
    """Weight of each ray, times the share that its view keeps."""
    _newest: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    """The cells that were rendered last, and the rays' logits: weighting and step render the same cells."""

    def __post_init__(self) -> None:
        self.trusted = self.weight

    @classmethod
    def joined(cls, parts: Sequence[_Equations]) -> _Equations:
        """Join the equations of several views, either all of them held out or none."""
        if len(parts) == 1:
            return parts[0]
        names = ("mask", "light", "known", "weight", "view")
        columns = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        rows = AtomRows.joined([part.rows for part in parts if isinstance(part.rows, AtomRows)])
        return cls(rows, *columns, held_out=parts[0].held_out)

    def logits(self, cells: Float[Tensor, " num_cells"]) -> Float[Tensor, " num"]:
        """Logits of the rays, from those of the cells, which must not be changed in place afterwards."""
        if self._newest is None or self._newest[0] is not cells:
            self._newest = cells, (self.rows.render(cells) + self.light) / self.known
        return self._newest[1]

    def loss(self, rays: Float[Tensor, " num"]) -> Float[Tensor, ""]:
        """Negative log likelihood of the masks, from the rays' logits."""
        return F.binary_cross_entropy_with_logits(rays, self.mask, self.trusted, reduction="sum")


def _joined(equations: list[_Equations]) -> list[_Equations]:
    """Join equations whose rows are atoms: a few large products take less time than many small ones, on a CPU as long
    as they fit into its caches. Empties the list, so that no memory holds equations twice."""
    groups: dict[Any, list[_Equations]] = {}
    atoms: Counter[bool] = Counter()
    for number, each in enumerate(equations):
        key: Any = number
        if isinstance(each.rows, AtomRows):
            atoms[each.held_out] += len(each.rows.index)
            key = each.held_out, atoms[each.held_out] // (CUDA_ATOMS if each.mask.is_cuda else CPU_ATOMS)
        groups.setdefault(key, []).append(each)
    equations.clear()
    return [_Equations.joined(groups.pop(key)) for key in list(groups)]


class MaskLikelihood:
    """The likelihood of masks as a function of a field's logits.

    The rays near a mask's outline take part, and those near pixels where the averages and the mask differ.

    Args:
        field: Field with the evidence of these views, changed by :meth:`fit` alone.
        views: The masks.
        ranks: The processes that have other views of the object; losses, gradients and weights are sums over all.
        most_rays: Most rays of a view that take part. Of more, every second, third, ... one does, with the weight of
            those in between. None for no limit.
    """

    def __init__(
        self,
        field: MaskField,
        views: Iterable[MaskedView] = (),
        ranks: Ranks | None = None,
        most_rays: int | None = None,
    ) -> None:
        self.field = field
        self._most_rays = most_rays
        self._ranks = ranks or Ranks()
        self.start = field.start_logits()
        self._cells = torch.stack([self.start, field.known().float()]).T
        own = field.hit.clone(), field.seen.clone()
        self._hit, self._seen = own if self._ranks.is_first else [torch.zeros_like(part) for part in own]
        """Evidence of the views that are not held out; the sum over the ranks is that of all."""
        self._equations: list[_Equations] = []
        self._prompted: list[bool] = []
        """Whether the user has prompted each view."""
        self._num_held_out = 0
        self._trust = field.hit.new_ones(0)
        """Share of its weight that each view keeps."""
        for view in views:
            self.add(view)

    def add(self, view: MaskedView, number: int | None = None) -> None:
        """Add the mask of a view.

        Args:
            view: The view.
            number: Its index over all ranks; by default the next.
        """
        equations = self._of(view)
        number = len(self._prompted) if number is None else number
        if number % HELD_OUT == HELD_OUT // 2 and not view.prompted:
            equations.held_out = True
            self._num_held_out += 1
            counted = torch.as_tensor(view.weight, dtype=torch.float32, device=view.mask.device)
            lifted = view.mask if view.lifted is None else view.lifted
            image = torch.stack([counted * lifted, counted.expand(lifted.shape)], dim=-1)
            hit, seen = view.trace.backproject(self.field, image).unbind(-1)
            self._hit -= hit
            self._seen -= seen
        self._equations.append(equations)
        self._prompted.append(view.prompted)
        self._trust = torch.cat([self._trust, self._trust.new_ones(1)])

    def _of(self, view: MaskedView) -> _Equations:
        trace = view.trace
        total, weight = trace.render(self.field, self._cells).unbind(-1)
        share = (1 - trace.accumulation).clamp(min=0)
        known, light = weight + share, LIGHT_LOGIT * share
        average = 0.5 + (total + light) / known.clamp(min=MIN_KNOWN) / SHARPNESS
        counted = torch.as_tensor(view.weight, dtype=total.dtype, device=total.device)
        mask = view.mask.to(total)
        image = view.mask.reshape(trace.height, trace.width)
        margin = round(MARGIN * max(max(image.shape) / 160, 1))
        near = dilated(((average - mask).abs() > OPEN).reshape(image.shape), NEIGHBORS)
        near |= dilated(image, margin) & dilated(~image, margin)
        counted = counted.expand(mask.shape)
        rays = (near.reshape(-1) & (known > MIN_KNOWN) & (counted > 0)).nonzero()[:, 0]
        step = 1 if self._most_rays is None else max(math.ceil(len(rays) / self._most_rays), 1)
        rays, counted = rays[::step], counted * step
        rows, number = trace.rows(self.field, rays), torch.full_like(rays, len(self._prompted))
        return _Equations(rows, mask[rays], light[rays], known[rays], counted[rays], number)

    @property
    def num_rays(self) -> int:
        """Number of rays that take part."""
        return sum(self._ranks.gather(sum(len(equations.mask) for equations in self._equations)))

    def loss(self, logits: Float[Tensor, " num_cells"]) -> float:
        """Negative log likelihood of the masks: a convex function."""
        return self._loss(self._equations, logits)

    def gradient(self, logits: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_cells"]:
        """Gradient of the loss: the adjoint, applied to the difference between renders and masks."""
        return self._gradient(self._equations, logits)[1]

    def _loss(self, used: Sequence[_Equations], logits: Float[Tensor, " num_cells"]) -> float:
        return sum(self._ranks.gather(float(sum(equations.loss(equations.logits(logits)) for equations in used))))

    def _gradient(
        self, used: Sequence[_Equations], logits: Float[Tensor, " num_cells"]
    ) -> tuple[float, Float[Tensor, " num_cells"]]:
        """Loss and gradient."""
        loss, gradient = logits.new_zeros(()), torch.zeros_like(logits)
        for equations in used:
            rays = equations.logits(logits)
            loss += equations.loss(rays)
            excess = (rays.sigmoid() - equations.mask) * (equations.trusted / equations.known)
            equations.rows.backproject(excess, gradient)
        loss, gradient = self._ranks.sum(loss, gradient)
        return float(loss), gradient

    def weight_views(self, logits: Float[Tensor, " num_cells"], held_out: bool = True) -> None:
        """Weight each view by how well renders of the logits explain its mask: ``1 / (1 + (misfit / tolerated)^4)``.

        The misfit is the symmetric difference of render and mask over their intersection. Prompted views keep their
        weight: the user has seen their masks.

        Args:
            logits: Logit of each cell.
            held_out: Whether to weight held-out views, too.
        """
        sums = logits.new_zeros(len(self._prompted), 2)
        for equations in self._equations:
            probability, mask = equations.logits(logits).sigmoid(), equations.mask
            apart = torch.stack([torch.maximum(probability, mask), torch.minimum(probability, mask)], dim=-1)
            sums.index_add_(0, equations.view, apart)
        counts = self._ranks.gather(sums)
        union, common = torch.cat(counts).unbind(-1)
        shown = union > FEW_PIXELS
        if not bool(shown.any()):
            return
        misfit = (union - common) / common.clamp(min=1e-6)
        tolerated = TOLERATED * misfit[shown].median().clamp(min=LEAST_MISFIT)
        trust = torch.where(shown, 1 / (1 + (misfit / tolerated) ** 4), 1.0)
        own = sum(len(part) for part in counts[: self._ranks.rank])
        trust = trust[own : own + len(self._prompted)].to(logits)
        for number, prompted in enumerate(self._prompted):
            if prompted:
                trust[number] = 1.0
        for equations in self._equations:
            if held_out or not equations.held_out:
                self._trust[equations.view] = trust[equations.view]
                equations.trusted = equations.weight * trust[equations.view]

    def fit(self, most_steps: int) -> LikelihoodReport:
        """Fit the logits with at most so many steps, and set those of the field."""
        self._equations = _joined(self._equations)
        held_out, begun, logits = self._fit_without_held_out(most_steps)
        if held_out and sum(self._ranks.gather(len(self._prompted))) >= MANY_VIEWS:
            start, steps = logits, FURTHER
        else:
            start, steps = self.start, begun
        steps, losses = min(steps, most_steps), []
        for step, (loss, coming) in enumerate(self._descent(self.field, self._equations, start)):
            losses.append(loss)
            logits = coming
            if step == steps:
                break
        self.field.set_logits(logits)
        # Rank 0 decides for all, since logits round differently on other hardware. Its tensor is received on the host.
        tidied = self._ranks.share(self.field.logits_without_strays)
        self.field.set_logits(logits if tidied is None else tidied.to(logits))
        trust = [share for part in self._ranks.gather(self._trust.tolist()) for share in part]
        return LikelihoodReport(steps, self.num_rays, losses, trust, held_out, begun)

    def _fit_without_held_out(self, most_steps: int) -> tuple[list[float], int, Float[Tensor, " num_cells"]]:
        """Fit all views but the held-out ones.

        Returns:
            The loss of the held-out views after each step, the number of steps chosen by it, and the logits after these
            steps. With too few views: no losses, ``UNCHECKED``, and the averages.
        """
        rest = [equations for equations in self._equations if not equations.held_out]
        out = [equations for equations in self._equations if equations.held_out]
        num_out = sum(self._ranks.gather(self._num_held_out))
        num_rest = sum(self._ranks.gather(len(self._prompted))) - num_out
        if num_rest + num_out < FEWEST_VIEWS or not num_out or not num_rest:
            return [], UNCHECKED, self.start
        evidence = self.field.fresh()
        hit, seen = self._ranks.sum(self._hit, self._seen)
        # Lifting leaves out some pixels that take part here, so less than no evidence may remain.
        seen = torch.where(seen > MIN_EVIDENCE, seen, 0.0)
        evidence.set(hit.clamp(min=0).minimum(seen), seen)
        losses: list[float] = []
        candidates: dict[int, Tensor] = {}  # logits by the number of steps that may still be chosen
        for step, (_, logits) in enumerate(self._descent(evidence, rest, evidence.start_logits())):
            losses.append(self._loss(out, logits))
            candidates[step] = logits
            most = GOOD_ENOUGH * min(losses)
            candidates = {number: candidates[number] for number in candidates if losses[number] <= most}
            before = losses[max(step - PATIENCE, 0)]
            if step == most_steps or (step >= PATIENCE and before < HARDLY_LESS * min(losses[-PATIENCE:])):
                break
        chosen, logits = next(iter(candidates.items()))
        # Cells that only held-out views have seen keep their averages; so do all cells if no step is chosen.
        return losses, chosen, torch.where(evidence.known(), logits, self.start) if chosen else self.start

    def _descent(
        self, evidence: MaskField, used: Sequence[_Equations], start: Float[Tensor, " num_cells"]
    ) -> Iterator[tuple[float, Float[Tensor, " num_cells"]]]:
        """Losses and logits after 0, 1, ... steps from a start; the losses are those of the extrapolated logits."""
        known = evidence.known()
        typical = evidence.seen[known].median() if bool(known.any()) else evidence.seen.new_tensor(MIN_EVIDENCE)
        length = torch.where(known, 4 / (evidence.seen + DAMPING * typical), 0.0)
        logits = ahead = start
        momentum = 1.0
        for step in itertools.count():
            if step in WEIGHTED_BEFORE:
                self.weight_views(ahead, held_out=step == 0 or used is self._equations)
            loss, gradient = self._gradient(used, ahead)
            yield loss, logits
            new = torch.where(known, evidence.bounded(ahead - length * gradient), 0.0)
            # Rank 0 decides for all, since sums round differently on other hardware.
            if self._ranks.share(partial(_climbs, ahead - new, new - logits)):
                momentum = 1.0
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - logits)
            logits, momentum = new, following


def _climbs(up: Float[Tensor, " num_cells"], step: Float[Tensor, " num_cells"]) -> bool:
    """Whether the loss rises along a step, ``up`` being a multiple of the gradient."""
    return float((up * step).sum()) > 0
