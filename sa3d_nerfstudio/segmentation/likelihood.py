"""Likelihood lifting: the field whose renders explain the masks best.

Rendering a mask is linear in the field, so a mask is explained by logistic regression whose design matrix is the trace.
With a logit ``v`` in each cell, a ray has the logit ``M = (A v + l light) / known`` of
:func:`sa3d_nerfstudio.traces.base.render_probability` and the probability ``σ(M)``, and the masks m the negative log
likelihood

    L(v) = Σ w (log(1 + exp M) - m M),    ∇L = Aᵀ w (σ(M) - m) / known,

which is convex. ``hit / seen`` averages over rays and blurs where rays that end on the object share cells with rays
that pass it; the likelihood has no bounds to v, and puts the outline where most pixels agree with it.

Steps divide the gradient by ``seen / 4`` cell by cell: the curvature of a logistic loss is at most 1/4 (D. Böhning,
B. Lindsay, "Monotonicity of quadratic-approximation algorithms", Ann. Inst. Statist. Math. 40, 1988), and a row of A
sums to at most one, so that ``seen / 4`` bounds the Hessian as in the separable surrogates of tomography (H. Erdoğan,
J. Fessler, "Ordered subsets algorithms for transmission tomography", Phys. Med. Biol. 44, 1999): no step overshoots.
Nesterov's acceleration restarts where it would climb (B. O'Donoghue, E. Candès, "Adaptive restart for accelerated
gradient schemes", Found. Comput. Math. 15, 2015).

The steps begin at the averages, and end before the field learns the masks' noise by heart: with every fifth view left
out, as many are taken as explain the views left out; exact outlines bear some fifteen, those that wobble from view to
view a few. Then as many are taken with all views, from the averages again; or, where views are so many that those left
out say little that is new, a few from there on.

Views err: the segmenter takes another object there, or a part of it. Before some of the steps each view is weighed
anew by how much of its mask the renders leave unexplained, with a redescending weight as in robust regression
(P. Holland, R. Welsch, "Robust regression using iteratively reweighted least-squares", Commun. Stat. 6, 1977), of whole
views instead of single observations: within a view, errors come together. The scale is the median over the views.
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
from sa3d_nerfstudio.traces.atoms import AtomRows
from sa3d_nerfstudio.traces.base import MIN_KNOWN, TraceRows, ViewTrace

OPEN = 0.1
"""Difference of a ray's averaged probability from its mask above which its answer is open."""
NEIGHBORS = 3
"""Pixels around open rays that take part as well."""
MARGIN = 8
"""Pixels on either side of a mask's outline that take part, in an image of 160."""
WEIGHED = (0, 5, 10)
"""Steps before which the views are weighed."""
TOLERATED = 3.0
"""How many times as much as the median view a view may leave unexplained until it has lost half of its weight."""
LEAST_MISFIT = 0.02
"""Median misfit below which it is taken for this: where renders are exact, all views are trusted."""
FEW_PIXELS = 4.0
"""Views in which mask and render together have no more pixels than this say too little to be weighed."""
HELD_OUT = 5
"""Of so many views one is left out to tell how many steps to take."""
FEWEST_VIEWS = 8
"""Views that there must be for that; where there are fewer, ``UNCHECKED`` steps are taken."""
UNCHECKED = 8
GOOD_ENOUGH = 1.01
"""The least steps are taken after which the loss in the views left out is no more than so many times the lowest."""
PATIENCE = 3
"""Steps that are taken in search of a lower loss."""
HARDLY_LESS = 1.003
"""The search ends where so many steps have not made it lower by this factor."""
MANY_VIEWS = 32
"""Views from which on the steps with all views go on from those without the views left out."""
FURTHER = 6
"""Steps that are taken then; all views bear more than fewer do."""
CPU_ATOMS, CUDA_ATOMS = 1 << 15, 1 << 22
"""Atoms whose rows are worked on together, about."""
DAMPING = 0.05
"""Evidence that every cell is taken to have besides its own, as a share of the median: cells seen least move least."""


@dataclass
class MaskedView:
    """The mask of one view, which the field is to explain: all of what the segmenter has found.

    What depth leaves out of a mask before it is lifted is the object here. It is left out so that views do not lead
    each other astray; once they agree, what most of them show is explained, and a slip of one view is outvoted.
    """

    trace: ViewTrace
    mask: Bool[Tensor, " num_rays"]
    weight: Float[Tensor, " num_rays"] | float = 1.0
    """What its rays count, as when they were lifted."""
    prompted: bool = False
    """Whether the user has prompted it: then it keeps its weight, however little the field explains it."""
    lifted: Bool[Tensor, " num_rays"] | None = None
    """What of the mask is in the field's evidence; all of it by default."""


@dataclass
class LikelihoodReport:
    """How a fit went."""

    steps: int
    """With all views."""
    num_rays: int
    """Rays that took part."""
    losses: list[float]
    """Negative log likelihood before each step with all views, and after the last."""
    trust: list[float] = field(default_factory=list)
    """Share of its weight that each view has kept."""
    held_out: list[float] = field(default_factory=list)
    """Loss in views left out, before the first step and after each, of a fit without them; empty if there was none."""
    begun: int = 0
    """Of its steps, those that were enough."""


@dataclass
class _Equations:
    """The rays of one view that take part, or of several."""

    rows: TraceRows
    mask: Float[Tensor, " num"]
    light: Float[Tensor, " num"]
    """Logit of the light that passes everything, times its share of the ray."""
    known: Float[Tensor, " num"]
    """Share of the ray's weight that lies in cells with evidence, light that passes everything included."""
    weight: Float[Tensor, " num"]
    view: Int[Tensor, " num"]
    """Number of the ray's view among those that were added."""
    held_out: bool = False
    """Whether they are left out to tell how many steps to take."""
    trusted: Float[Tensor, " num"] = field(init=False)
    """Their weight as far as their view is trusted."""
    _newest: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)
    """The cells that were rendered last, and the logits of the rays: views are weighed where a step is taken."""

    def __post_init__(self) -> None:
        self.trusted = self.weight

    @classmethod
    def joined(cls, parts: Sequence[_Equations]) -> _Equations:
        """Those of several views, which are either all left out or all not."""
        if len(parts) == 1:
            return parts[0]
        names = ("mask", "light", "known", "weight", "view")
        columns = (torch.cat([getattr(part, name) for part in parts]) for name in names)
        rows = AtomRows.joined([part.rows for part in parts if isinstance(part.rows, AtomRows)])
        return cls(rows, *columns, held_out=parts[0].held_out)

    def logits(self, cells: Float[Tensor, " num_cells"]) -> Float[Tensor, " num"]:
        """Of the rays; the cells must not be changed in place."""
        if self._newest is None or self._newest[0] is not cells:
            self._newest = cells, (self.rows.render(cells) + self.light) / self.known
        return self._newest[1]

    def loss(self, rays: Float[Tensor, " num"]) -> Float[Tensor, ""]:
        """Of the rays' logits."""
        return F.binary_cross_entropy_with_logits(rays, self.mask, self.trusted, reduction="sum")


def _joined(equations: list[_Equations]) -> list[_Equations]:
    """Equations of several views as one, where their rows are kept as atoms: few large sums take less than many small
    ones. On a CPU as many as its caches hold. Takes them out of the list, so that no memory holds them twice."""
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

    Args:
        field: Holds the evidence of these views; it is left alone until :meth:`fit`.
        views: The masks. Of their rays, those take part whose answer is open by the evidence or that pass near the
            object.
        ranks: The processes that have other views of it; losses, gradients and weights are of all of them.
    """

    def __init__(self, field: MaskField, views: Iterable[MaskedView] = (), ranks: Ranks | None = None) -> None:
        self.field = field
        self._ranks = ranks or Ranks()
        self.start = field.start_logits()
        self._cells = torch.stack([self.start, field.known().float()]).T
        own = field.hit.clone(), field.seen.clone()
        self._hit, self._seen = own if self._ranks.is_first else [torch.zeros_like(part) for part in own]
        """Evidence of the views that are not left out: the sum over all ranks."""
        self._equations: list[_Equations] = []
        self._prompted: list[bool] = []
        """Of each view, whether the user has prompted it."""
        self._num_held_out = 0
        self._trust = field.hit.new_ones(0)
        """Of each view, the share of its weight that it keeps."""
        for view in views:
            self.add(view)

    def add(self, view: MaskedView, number: int | None = None) -> None:
        """Let a view take part.

        Args:
            view: The view.
            number: Which one it is, counted from 0 over all ranks; by default the next.
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
        near = _widened(((average - mask).abs() > OPEN).reshape(image.shape), NEIGHBORS)
        near |= _widened(image, margin) & _widened(~image, margin)
        counted = counted.expand(mask.shape)
        rays = (near.reshape(-1) & (known > MIN_KNOWN) & (counted > 0)).nonzero()[:, 0]
        rows, number = trace.rows(self.field, rays), torch.full_like(rays, len(self._prompted))
        return _Equations(rows, mask[rays], light[rays], known[rays], counted[rays], number)

    @property
    def num_rays(self) -> int:
        """How many rays take part."""
        return sum(self._ranks.gather(sum(len(equations.mask) for equations in self._equations)))

    def loss(self, logits: Float[Tensor, " num_cells"]) -> float:
        """Negative log likelihood of the masks: a convex function."""
        return self._loss(self._equations, logits)

    def gradient(self, logits: Float[Tensor, " num_cells"]) -> Float[Tensor, " num_cells"]:
        """Derivative of the loss: the adjoint of what the renders have too much of the masks."""
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

    def weigh(self, logits: Float[Tensor, " num_cells"], held_out: bool = True) -> None:
        """Trust each view as far as renders of the logits explain its mask: ``1 / (1 + (misfit / tolerated)^4)``.

        The misfit is what render and mask have apart, over what they have in common. Views that the user has prompted
        are trusted: what they say, the user has seen.

        Args:
            logits: Of the cells.
            held_out: Whether to weigh views that are left out, too.
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
        """Descend for at most so many steps, and give the field the logits."""
        self._equations = _joined(self._equations)
        held_out, begun, logits = self._fit_without_some(most_steps)
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
        # Rank 0 says so for all: on other hardware, logits round otherwise. What it says comes from the host.
        tidied = self._ranks.share(self.field.logits_without_strays)
        self.field.set_logits(logits if tidied is None else tidied.to(logits))
        trust = [share for part in self._ranks.gather(self._trust.tolist()) for share in part]
        return LikelihoodReport(steps, self.num_rays, losses, trust, held_out, begun)

    def _fit_without_some(self, most_steps: int) -> tuple[list[float], int, Float[Tensor, " num_cells"]]:
        """Descend without the views that are left out.

        Returns:
            Loss in these views after each step; none if there are too few views. How many steps are enough, and the
            logits after them; ``UNCHECKED`` and the averages then.
        """
        rest = [equations for equations in self._equations if not equations.held_out]
        out = [equations for equations in self._equations if equations.held_out]
        num_out = sum(self._ranks.gather(self._num_held_out))
        num_rest = sum(self._ranks.gather(len(self._prompted))) - num_out
        if num_rest + num_out < FEWEST_VIEWS or not num_out or not num_rest:
            return [], UNCHECKED, self.start
        evidence = self.field.fresh()
        hit, seen = self._ranks.sum(self._hit, self._seen)
        # What has been lifted may lack a pixel here and there that takes part.
        seen = torch.where(seen > MIN_EVIDENCE, seen, 0.0)
        evidence.set(hit.clamp(min=0).minimum(seen), seen)
        losses: list[float] = []
        kept: dict[int, Tensor] = {}  # after steps that may be enough yet
        for step, (_, logits) in enumerate(self._descent(evidence, rest, evidence.start_logits())):
            losses.append(self._loss(out, logits))
            kept[step] = logits
            most = GOOD_ENOUGH * min(losses)
            kept = {number: kept[number] for number in kept if losses[number] <= most}
            before = losses[max(step - PATIENCE, 0)]
            if step == most_steps or (step >= PATIENCE and before < HARDLY_LESS * min(losses[-PATIENCE:])):
                break
        enough, logits = next(iter(kept.items()))
        # Of what only views left out have seen, the averages know more; and of all, where no step has been enough.
        return losses, enough, torch.where(evidence.known(), logits, self.start) if enough else self.start

    def _descent(
        self, evidence: MaskField, used: Sequence[_Equations], start: Float[Tensor, " num_cells"]
    ) -> Iterator[tuple[float, Float[Tensor, " num_cells"]]]:
        """Losses and logits after 0, 1, ... steps from a start; the losses are those of the point ahead."""
        known = evidence.known()
        typical = evidence.seen[known].median() if bool(known.any()) else evidence.seen.new_tensor(MIN_EVIDENCE)
        length = torch.where(known, 4 / (evidence.seen + DAMPING * typical), 0.0)
        logits = ahead = start
        momentum = 1.0
        for step in itertools.count():
            if step in WEIGHED:
                self.weigh(ahead, held_out=step == 0 or used is self._equations)
            loss, gradient = self._gradient(used, ahead)
            yield loss, logits
            new = torch.where(known, evidence.bounded(ahead - length * gradient), 0.0)
            # Rank 0 says so for all: on other hardware, sums round otherwise.
            if self._ranks.share(partial(_climbs, ahead - new, new - logits)):
                momentum = 1.0
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - logits)
            logits, momentum = new, following


def _climbs(up: Float[Tensor, " num_cells"], step: Float[Tensor, " num_cells"]) -> bool:
    """Whether a step leads to where the loss is higher."""
    return float((up * step).sum()) > 0


def _widened(mask: Bool[Tensor, "height width"], pixels: int) -> Bool[Tensor, "height width"]:
    """The pixels of a mask, and those around."""
    wide, side = mask[None].float(), 2 * pixels + 1
    for kernel, padding in (((side, 1), (pixels, 0)), ((1, side), (0, pixels))):
        wide = F.max_pool2d(wide, kernel, stride=1, padding=padding)
    return wide[0] > 0
