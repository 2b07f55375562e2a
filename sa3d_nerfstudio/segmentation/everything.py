"""Segmentation of a whole scene: proposals of a few views, each segmented by a session, until none is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.fields.object_tree import ObjectTree, TreeBuilder
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.mask_depth import FoundMask, pixel_spacing, without_far_parts
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.proposals import Proposal, ProposalPool, Rendered
from sa3d_nerfstudio.segmentation.self_prompting import self_prompt
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import Views
from sa3d_nerfstudio.segmentation.view_selection import covering_views, focus
from sa3d_nerfstudio.segmenters.base import Candidates
from sa3d_nerfstudio.traces.base import render_probability

Stage = Literal["proposals", "object", "kept", "dropped"]
Ending = Literal["nothing is left", "as many objects as wanted", "out of time"]


@dataclass
class SceneSettings:
    """Settings for segmenting a whole scene."""

    num_views: int = 8
    """Number of views in which proposals are made."""
    min_share: float = 0.001
    """Least area of a proposal, as a share of the image's pixels."""
    max_objects: int = 200
    """Greatest number of objects, parts and wholes included."""
    max_seconds: float | None = None
    """Seconds after which no new object is begun, and the current one is given up; the first is segmented in any case,
    so that a job that is repeated goes on. None for no limit."""
    threshold: float = 0.5
    """Probability above which a pixel or cell is on an object."""
    min_agreement: float = 0.5
    """Least mean IoU of an object's rendered masks with the proposals of the views for the object to be kept."""
    part_gap: float = 0.1
    """Parts of a proposal that are farther from the rest in 3D than this share of its size are dropped."""


@dataclass
class SceneObject:
    """One object of a segmented scene."""

    name: str
    field: MaskField
    support: float
    """Mean IoU of its rendered masks with the best proposal of each view: how well the views agree on the object."""
    area: int
    """Number of pixels that it covers in all views with proposals."""
    confidence: float = 1.0
    """The support, with each proposal weighted by a power of the segmenter's score for it."""


@dataclass
class SceneProgress:
    """Progress of segmenting a whole scene."""

    stage: Stage
    explained: float
    """Share of the proposals' pixels that objects cover."""
    objects: int
    """Number of objects so far."""
    note: str = ""
    """Description of the current step, for display."""
    found: SceneObject | None = None
    """The object that this step has finished."""


@dataclass
class SceneReport:
    """Result of segmenting a whole scene."""

    sessions: int = 0
    """Number of proposals that were segmented."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Number of objects dropped, by reason."""
    ending: Ending | None = None
    """Reason for the end; None where the iteration was stopped."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent in "render", "segment" and "lift" by all sessions, and in "proposals"."""


class SceneSegmentation:
    """Segmentation of a whole scene, one proposal after another.

    Each object is segmented by an ordinary session, from its proposed mask. Iteration over :meth:`steps` may stop at
    any step, and continue later with :meth:`resume`.

    Args:
        views: The training views, at the size at which proposals are made.
        predictor: The segmenter of these views.
        new_session: Makes a session for one object.
        settings: Settings for the scene.
        propose: Returns the proposals of a view, on the pixels of its trace; by default the segmenter's.
    """

    def __init__(
        self,
        views: Views,
        predictor: MaskPredictor,
        new_session: Callable[[], SegmentationSession],
        settings: SceneSettings,
        propose: Callable[[int], Candidates] | None = None,
    ) -> None:
        self.views = views
        self.settings = settings
        self.objects: dict[str, SceneObject] = {}
        """The objects found, by name."""
        self.is_resumed = False
        """Whether the steps so far have added the objects of an earlier run, if there was one."""
        self.report = SceneReport()
        self.pool = ProposalPool(settings.min_share, settings.threshold, settings.min_agreement)
        self._propose = predictor.propose if propose is None else propose
        self._predictor = predictor
        self._asks = propose is None
        """Whether the segmenter is prompted where its proposals missed an object; proposals from words are complete."""
        self._new_session = new_session
        self._builder = TreeBuilder(settings.threshold)
        self._known: dict[str, MaskField] = {}
        self._struck: list[tuple[int, int]] = []
        self._taken: set[str] = set()

    @property
    def tree(self) -> ObjectTree:
        """The tree of parts and wholes."""
        return self._builder.tree()

    @property
    def cut(self) -> list[str]:
        """Names of the objects into which the scene is divided; none is a part of another."""
        return self.tree.cut({item.name: item.confidence * item.area for item in self.objects.values()})

    @property
    def tried(self) -> list[tuple[int, int]]:
        """View and index of all proposals that have been segmented or given up, for :meth:`resume`."""
        return [item.key for item in self.pool.proposals if item.tried]

    def resume(
        self, fields: Mapping[str, MaskField], tried: Iterable[tuple[int, int]] = (), taken: Iterable[str] = ()
    ) -> None:
        """Add the objects of an earlier run, before the first step.

        Args:
            fields: Mask fields by name, in the order in which they were found.
            tried: Value of :attr:`tried` at the end of that run.
            taken: Further names that no new object gets.
        """
        self._known = dict(fields)
        self._struck = list(tried)
        self._taken = {*fields, *taken}

    def run(self) -> SceneReport:
        """Do all steps and return the report."""
        for _ in self.steps():
            pass
        return self.report

    def steps(self) -> Generator[SceneProgress, None, None]:
        """Segment the scene, one view per step. An object that is unfinished when the iteration stops is left out."""
        begun = time.monotonic()
        limit = self.settings.max_seconds

        def is_late() -> bool:
            return limit is not None and self.report.sessions > 0 and time.monotonic() - begun > limit

        for view in self._proposal_views():
            with self._timed("proposals"):
                self.pool.add(view, self._proposals(view))
            yield self._progress("proposals", f"{len(self.pool.proposals)} masks in {len(self.pool.views)} views")
        self.pool.strike(self._struck)
        for name, mask_field in self._known.items():
            yield self._progress("kept", f"{name} is there already", self._add(name, mask_field))
        self.is_resumed = True
        self.report.ending = None
        while (proposal := self.pool.next(self._support)) is not None:
            if len(self.objects) >= self.settings.max_objects or is_late():
                self.report.ending = "out of time" if is_late() else "as many objects as wanted"
                return
            session = self._prompted(proposal)
            name = self._next_name()
            for record in session.steps():
                yield self._progress("object", f"{name}: pass {record.number_of_pass}, {record.name}")
                if is_late():
                    self.report.ending = "out of time"
                    return
            yield self._finish(proposal, session, name)
        self.report.ending = "nothing is left"

    def _proposal_views(self) -> list[int]:
        """Views all around the point that the cameras look at."""
        poses = self.views.camera_to_worlds
        return covering_views(poses, focus(poses), [], self.settings.num_views)

    def _proposals(self, view: int) -> Candidates:
        """Proposals of a view, on the pixels of its trace."""
        return self._solid(view, self._propose(view))

    def _solid(self, view: int, found: Candidates) -> Candidates:
        """Masks of a view, without parts that are far from the rest in 3D."""
        trace = self.views.trace(view)
        masks = found.masks.to(trace.depth.device)
        pieces = [FoundMask(trace, mask, pixel_spacing(trace, mask)) for mask in masks]
        solid = without_far_parts(pieces, self.settings.part_gap)
        return replace(found, masks=torch.stack(solid) if solid else masks)

    def _prompted(self, proposal: Proposal) -> SegmentationSession:
        session = self._new_session()
        session.prompt(proposal.view, Prompt(*proposal.size, mask=proposal.mask.cpu()))
        # In all views the mask must be what was proposed here (part, object or whole), whatever the segmenter prefers.
        session.prompted[proposal.view].picked = True
        return session

    def _support(self, proposal: Proposal) -> float | None:
        """Support of a proposal by the other views with proposals, from the evidence of its own view alone."""
        session = self._prompted(proposal)
        session.lift_prompts()
        rendered = self._rendered(session.grid)
        self._add_witnesses(proposal, rendered)
        return self.pool.support_of(rendered, but=proposal.view)

    def _add_witnesses(self, proposal: Proposal, rendered: Rendered) -> None:
        """Prompt the segmenter in views whose proposals may have missed the object because it is small."""
        for view in self.pool.overlooked(proposal, rendered) if self._asks else ():
            probability, known = (image.cpu() for image in rendered[view])
            depth = self.views.trace(view).depth[..., 0].cpu()
            prompt = self_prompt(probability, known, depth, threshold=self.settings.threshold)
            if prompt is not None:
                answer = self._predictor.predict(view, prompt)
                self.pool.add(view, self._solid(view, answer), as_witness=True)

    def _finish(self, proposal: Proposal, session: SegmentationSession, name: str) -> SceneProgress:
        """Keep the object of a finished session, or drop it and record the reason."""
        proposal.tried = True
        self.report.sessions += 1
        for activity, seconds in session.report.seconds.items():
            self.report.seconds[activity] = self.report.seconds.get(activity, 0.0) + seconds
        if not session.grid.holds_object(self.settings.threshold):
            return self._drop("empty")
        rendered = self._rendered(session.grid)
        self._add_witnesses(proposal, rendered)
        support = self.pool.support_of(rendered)
        if support is None or support < self.settings.min_agreement:
            return self._drop("other views show something else there")
        if (same := self._builder.same(session.grid)) is not None:
            self.pool.explain(rendered)
            return self._drop("found before", f"the same as {same}")
        self._taken.add(name)
        return self._progress("kept", name, self._add(name, session.grid, rendered))

    def _drop(self, reason: str, note: str = "") -> SceneProgress:
        self.report.dropped[reason] = self.report.dropped.get(reason, 0) + 1
        return self._progress("dropped", note or reason)

    def _add(self, name: str, mask_field: MaskField, rendered: Rendered | None = None) -> SceneObject:
        rendered = self._rendered(mask_field) if rendered is None else rendered
        support, area = self.pool.support_of(rendered), self.pool.explain(rendered)
        confidence = self.pool.confidence_of(rendered)
        self._builder.add(name, mask_field)
        scene_object = self.objects[name] = SceneObject(name, mask_field, support or 0.0, area, confidence)
        mask_field.rest()
        return scene_object

    def _rendered(self, mask_field: MaskField) -> Rendered:
        """Render the mask of an object in all views with proposals."""
        rendered = {}
        for view in self.pool.views:
            trace = self.views.trace(view)
            probability, known = render_probability(trace, mask_field)
            shape = (trace.height, trace.width)
            rendered[view] = (probability.reshape(shape), known.reshape(shape))
        return rendered

    def _next_name(self) -> str:
        number = len(self.objects) + 1
        while f"object {number}" in self._taken:
            number += 1
        return f"object {number}"

    def _progress(self, stage: Stage, note: str = "", found: SceneObject | None = None) -> SceneProgress:
        return SceneProgress(stage, self.pool.explained, len(self.objects), note, found)

    def _timed(self, what: str) -> _Timer:
        return _Timer(self.report.seconds, what)


class _Timer:
    """Context manager that adds its duration to a named account."""

    def __init__(self, accounts: dict[str, float], name: str) -> None:
        self._accounts, self._name = accounts, name

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._accounts[self._name] = self._accounts.get(self._name, 0.0) + time.perf_counter() - self._begun
