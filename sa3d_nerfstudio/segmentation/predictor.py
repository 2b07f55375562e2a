"""The 2D segmenter of a session: masks for prompts in its views, each of which is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from typing_extensions import Self

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.gpu_memory import within_memory
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.photo_windows import candidates_between, prompt_between
from sa3d_nerfstudio.segmentation.session_views import PromptedMask, SessionViews, ViewKey
from sa3d_nerfstudio.segmenters.base import (
    BatchSegmenter,
    Candidates,
    Segmenter,
    SegmenterImage,
    embed_all,
    input_side,
    predict_all,
    predictions_at_once,
)
from sa3d_nerfstudio.segmenters.proposals import no_proposals, propose
from sa3d_nerfstudio.traces.window import Window


class Prefetcher:
    """Prepares the next views on another thread, in their order, while the calling thread works on a view.

    A context manager: at its end, on Ctrl-C too, it cancels jobs that have not begun and waits for the running one.

    Args:
        prepare: Makes a view ready, beside all other work: it must not render, as renders share the model.
        count: Number of views that may be ready and unused, at most.
    """

    def __init__(self, prepare: Callable[[int], None], count: int = 2) -> None:
        self._prepare = prepare
        self._count = count
        self._jobs: dict[int, Future[None]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sa3d-ahead")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._jobs.clear()

    def begin(self, views: Sequence[int], coming: Sequence[int]) -> None:
        """Prepare the first of the ``coming`` views, and wait until ``views`` are ready if they are being prepared."""
        next_views = coming[: self._count]
        self._jobs = {view: job for view, job in self._jobs.items() if view in views or view in next_views}
        for view in next_views:
            if view not in self._jobs:
                self._jobs[view] = self._thread.submit(self._prepare, view)
        wait([self._jobs[view] for view in views if view in self._jobs])

    def check(self, view: int) -> None:
        """Wait until a view is ready, if it is being prepared.

        Raises:
            Exception: The error of its preparation.
        """
        job = self._jobs.pop(view, None)
        if job is not None:
            job.result()


MEMORY_REMEDY = (
    "segment with a smaller --pipeline.segmenter, keep less in it (--pipeline.cache-gb), or close other programs"
)
"""Remedy for a segmenter that does not fit into the GPU's memory."""


SAME_OBJECT = 0.5
"""IoU from which on a mask in a window of the photo shows the same object as the mask in the whole photo."""


class MaskPredictor:
    """Answers prompts in views with 2D masks; each view is embedded once, for any number of prompts.

    Like ``SamPredictor`` of Segment Anything, for any segmenter and any number of views.

    Args:
        segmenter: The 2D segmenter.
        views: The views of the session.
        embeddings: Embeddings made already, by view; new ones are added.
        batch: Number of views to embed at once, if the segmenter can.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        views: SessionViews,
        embeddings: MutableMapping[Any, Any] | None = None,
        batch: int = 1,
    ) -> None:
        self.segmenter = segmenter
        self.side = input_side(segmenter)
        """Longer side up to which the segmenter is shown photos; None for images as large as the renders."""
        self.batch = batch if isinstance(segmenter, BatchSegmenter) else 1
        self._views = views
        self._embeddings = {} if embeddings is None else embeddings
        self._ahead: Prefetcher | None = None

    def answer(self, view: ViewKey, prompt: Prompt) -> PromptedMask:
        """Segment a view from the user's prompt.

        Args:
            view: Index of a training view, or name of a free view.
            prompt: Prompt in pixels of an image of any size. A mask is taken as it is, resized to the view's trace.

        Returns:
            The segmenter's candidates, and the choice of one: by the size that the prompt names, or else the
            segmenter's favourite.

        Raises:
            SA3DError: The prompt selects nothing.
        """
        trace = self._views.trace(view)
        resized = prompt.resized(trace.height, trace.width)
        if resized.mask is not None:
            candidates = Candidates(resized.mask[None], torch.ones(1))
        else:
            candidates = self.predict(view, resized).to("cpu")
        choice = candidates.of_size(prompt.candidate)
        if resized.is_empty or not candidates.masks[choice].any():
            raise SA3DError(
                f"the prompt selects nothing in {self._views.name(view)}: "
                "put a point on the object, add more points, or choose another view."
            )
        return PromptedMask(resized, candidates, choice, picked=prompt.candidate != "auto", original=prompt)

    def look_closer(self, view: ViewKey, prompted: PromptedMask) -> PromptedMask:
        """Segment a small object of a prompted view again, in a window of the photo around it.

        Args:
            view: The view.
            prompted: The prompt and its candidates in the whole photo.

        Returns:
            The same with a finer outline of the chosen mask; unchanged where the object is not small, or where no
            candidate in the window is like that mask.
        """
        closer = self._views.closer_photo(view, prompted.mask, self.side)
        prompt = prompted.original or prompted.prompt
        if closer is None or prompt.mask is not None:
            return prompted
        frame, window = closer.whole, closer.part
        prompt = _within(prompt_between(prompt.moved(*frame.size), frame, window))
        if prompt.is_empty:
            return prompted
        key = (view, window)
        with self._views.report.timed("segment"):
            if key not in self._embeddings:
                name, depth = self._views.name(view), self._views.trace(view).depth[..., 0]
                image = SegmenterImage(closer.picture(), name, depth, window.shares)
                (self._embeddings[key],) = within_memory(lambda: embed_all(self.segmenter, [image]), MEMORY_REMEDY)
            answer = within_memory(lambda: self.segmenter.predict(self._embeddings[key], prompt), MEMORY_REMEDY)
            closer_candidates = candidates_between(answer, window, frame).to("cpu")
        mask = closer_candidates.masks[closer_candidates.most_like(prompted.mask)]
        if (mask & prompted.mask).sum() < SAME_OBJECT * (mask | prompted.mask).sum():
            return prompted
        masks = prompted.candidates.masks.clone()
        masks[prompted.choice] = mask
        return replace(prompted, candidates=replace(prompted.candidates, masks=masks, logits=None))

    def predict(self, view: ViewKey, prompt: Prompt) -> Candidates:
        """Segment a view. Prompt and candidates are in pixels of its trace, whatever size the segmenter sees."""
        return self.predict_all([(view, prompt)])[0]

    def predict_all(self, asked: Sequence[tuple[ViewKey, Prompt]]) -> list[Candidates]:
        """:meth:`predict` for several views, all at once where the segmenter can."""
        questions, on_trace = [], []
        for view, prompt in asked:
            embedding, window = self.embed(view), self._views.window(view)
            # In a view with a window, networks see the photo or a window of it; other segmenters see the view's window.
            photo_window = self._views.photo_window(view, self.side)
            if window is not None and photo_window is not None:
                questions.append((embedding, prompt_between(prompt, window, photo_window)))
                on_trace.append(partial(candidates_between, part=photo_window, window=window))
                continue
            crop = window if self.side is not None else None
            prompt = prompt if crop is None else prompt.placed(crop.top, crop.left, *crop.size)
            questions.append((embedding, prompt.moved(*self._views.picture_size(view, self.side))))
            on_trace.append(partial(_resized, height=prompt.height, width=prompt.width, part=crop))
        with self._views.report.timed("segment"):
            answers = within_memory(lambda: predict_all(self.segmenter, questions), MEMORY_REMEDY)
            return [move(answer) for move, answer in zip(on_trace, answers, strict=True)]

    def propose(self, view: ViewKey) -> Candidates:
        """All masks that the segmenter proposes in a view, on the pixels of its trace; the result may be empty."""
        embedding, trace = self.embed(view), self._views.trace(view)
        with self._views.report.timed("segment"):
            size = self._views.picture_size(view, self.side)
            proposals = within_memory(lambda: propose(self.segmenter, embedding, *size), MEMORY_REMEDY)
        if len(proposals.masks) == 0:
            return no_proposals(trace.height, trace.width)
        return proposals.at(trace.height, trace.width)

    def embed(self, view: ViewKey, coming: Sequence[ViewKey] = (), wanted: Callable[[Any], bool] | None = None) -> Any:
        """Embedding of a view; made once.

        Args:
            view: The view.
            coming: Views that follow: the next few of them are embedded in the same batch, if they are wanted.
            wanted: Whether a view without an embedding will need one; by default each will.
        """
        if self._key(view) not in self._embeddings:
            missing = [later for later in coming[: self.batch - 1] if self._key(later) not in self._embeddings]
            if self.side is None and self._views.window(view) is not None:
                missing = []  # windows of later views have not been placed yet
            self._embed([view, *(later for later in missing if wanted is None or wanted(later))])
        return self._embeddings[self._key(view)]

    def embed_all(
        self, views: Sequence[ViewKey], coming: Sequence[ViewKey], wanted: Callable[[Any], bool] | None = None
    ) -> None:
        """Embed views before their prompts are answered; see :meth:`embed`."""
        if self.at_once > 1:
            missing = [view for view in views if self._key(view) not in self._embeddings]
            for start in range(0, len(missing), self.at_once):
                self._embed(missing[start : start + self.at_once])
            return
        for index, view in enumerate(views):
            self.embed(view, [*views[index + 1 :], *coming], wanted)

    @property
    def at_once(self) -> int:
        """Number of prompts that the segmenter answers at once."""
        return predictions_at_once(self.segmenter)

    def _key(self, view: ViewKey) -> ViewKey | tuple[int, Window]:
        """Key of a view's embedding: the view itself, or the window that the segmenter sees of it."""
        return self._views.embedding_key(view, self.side)

    def _embed(self, views: Sequence[ViewKey]) -> None:
        images = []
        for view in views:
            trace = self._views.trace(view)
            with self._views.report.timed("segment"):
                if isinstance(view, int) and self._ahead is not None:
                    self._ahead.check(view)
                picture = self._views.picture(view, self.side)
                images.append(SegmenterImage(picture, self._views.name(view), trace.depth[..., 0]))
                window = self._views.window(view) if self.side is None else self._views.photo_window(view, self.side)
                if window is not None:
                    images[-1].window = window.shares
        with self._views.report.timed("segment"):
            embeddings = within_memory(lambda: embed_all(self.segmenter, images), MEMORY_REMEDY)
            # The first view's embedding is stored last, so that a small cache keeps it.
            for view, embedding in zip(reversed(views), reversed(embeddings), strict=True):
                self._embeddings[self._key(view)] = embedding

    @contextmanager
    def prefetching(self) -> Iterator[Prefetcher]:
        """Prepare coming views on another thread during a pass."""
        self._views.training.begin_pass()
        with Prefetcher(self._preload, max(2, self.batch)) as self._ahead:
            yield self._ahead

    def _preload(self, view: int) -> None:
        self._views.training.preload(view, picture=self._key(view) not in self._embeddings)


def _resized(candidates: Candidates, height: int, width: int, part: Window | None) -> Candidates:
    """Resize candidates to an image, and crop them to a part of it, if one is given."""
    candidates = candidates.at(height, width)
    return candidates if part is None else replace(candidates, masks=candidates.masks[:, part.rows, part.columns])


def _within(prompt: Prompt) -> Prompt:
    """Remove the points outside of a prompt's image, and clip its box to the image; empty if a positive point lies
    outside."""
    size = torch.tensor([prompt.width, prompt.height])
    inside = ((prompt.points >= -0.5) & (prompt.points < size - 0.5)).all(-1)
    if not inside[prompt.labels].all():
        return Prompt.from_points(prompt.height, prompt.width)
    box = None if prompt.box is None else torch.minimum(prompt.box.clamp(min=0), size.repeat(2))
    return replace(prompt, points=prompt.points[inside], labels=prompt.labels[inside], box=box)
