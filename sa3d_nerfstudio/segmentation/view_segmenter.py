"""The 2D segmenter of a session: asked about its views, each of which is embedded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from sa3d_nerfstudio.chunks import within_memory
from sa3d_nerfstudio.segmentation.ahead import Ahead
from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmentation.session_views import SessionViews, ViewKey
from sa3d_nerfstudio.segmenters.base import Candidates, Segmenter, SegmenterImage
from sa3d_nerfstudio.segmenters.batches import BatchSegmenter, embed_all

SMALLER = "segment with a smaller --pipeline.segmenter, keep less in it (--pipeline.cache-gb), or close other programs"
"""What to do where a segmenter does not fit into the GPU's memory."""


class ViewSegmenter:
    """A segmenter, and what it has embedded of the views.

    Args:
        segmenter: The 2D segmenter.
        views: What it is asked about.
        embeddings: What it has embedded already, by view; what it embeds is put there too.
        batch: How many views to embed at once, where it can.
    """

    def __init__(
        self, segmenter: Segmenter, views: SessionViews, embeddings: MutableMapping[ViewKey, Any], batch: int
    ) -> None:
        self.segmenter = segmenter
        self.batch = batch if isinstance(segmenter, BatchSegmenter) else 1
        self._views = views
        self._embeddings = embeddings
        self._ahead: Ahead | None = None

    def predict(self, view: ViewKey, prompt: Prompt) -> Candidates:
        """Segment a view."""
        embedding = self.embed(view)
        with self._views.report.timed("segment"), within_memory(SMALLER):
            return self.segmenter.predict(embedding, prompt)

    def embed(self, view: ViewKey, coming: Sequence[ViewKey] = (), wanted: Callable[[Any], bool] | None = None) -> Any:
        """What the segmenter embeds of a view; done once.

        Args:
            view: The view.
            coming: Views that will be asked about soon: those of the next few that are wanted are embedded with it.
            wanted: Says of a view that has not been embedded whether it will be asked about.
        """
        if view not in self._embeddings:
            others = [other for other in coming[: self.batch - 1] if other not in self._embeddings]
            self._embed([view, *(other for other in others if wanted is None or wanted(other))])
        return self._embeddings[view]

    def _embed(self, views: Sequence[ViewKey]) -> None:
        images = []
        for view in views:
            trace = self._views.trace(view)
            with self._views.report.timed("segment"):
                if isinstance(view, int) and self._ahead is not None:
                    self._ahead.check(view)
                images.append(SegmenterImage(self._views.picture(view), self._views.name(view), trace.depth[..., 0]))
        with self._views.report.timed("segment"):
            with within_memory(SMALLER):
                found = embed_all(self.segmenter, images)
            # The first comes last, and so stays in memory, however little there is.
            for view, embedding in zip(reversed(views), reversed(found), strict=True):
                self._embeddings[view] = embedding

    @contextmanager
    def prefetching(self) -> Iterator[Ahead]:
        """Get views ready on another thread, as they come, for as long as this lasts."""
        with Ahead(self._preload, max(2, self.batch)) as self._ahead:
            yield self._ahead

    def _preload(self, view: int) -> None:
        self._views.training.preload(view, picture=view not in self._embeddings)
