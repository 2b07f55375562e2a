"""Detection of the objects that words name, in one training view or in several from all around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.instances import match_instances, spread_views
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session_views import SessionViews, Views
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.proposals import no_proposals, without_duplicates
from sa3d_nerfstudio.segmenters.text import TextMatch, TextOptions, choose_box, describe_boxes, find_boxes, gives_masks
from sa3d_nerfstudio.terminal import say

NUM_VIEWS = 6
"""Number of views from all around that are searched where the prompt names no view."""
LONGEST_SIDE = 1333
"""Longer side of the searched images, in pixels: the largest that Grounding DINO sees."""


class TextViews(Views, Protocol):
    """Training views with the sizes of their original images."""

    def image_size(self, view: int) -> tuple[int, int]:
        """Height and width of the view's original image."""
        ...


class TextFinder:
    """Finder of the objects that words name in the photos of training views, at the size of the photos.

    Args:
        views: The training views.
        options: Options of the network that detects words.
        predictor: Makes the segmenter that turns boxes into masks, for networks that return boxes only.
        new_field: Makes an empty field, for matching instances in several views.
        threshold: Probability above which a pixel is on an object.
    """

    def __init__(
        self,
        views: TextViews,
        options: TextOptions,
        predictor: Callable[[SessionViews], MaskPredictor],
        new_field: Callable[[], MaskField],
        threshold: float = 0.5,
    ) -> None:
        self._training = views
        self._views = SessionViews(views, {}, SessionReport())
        self._options = options
        self._predictor = predictor
        self._new_field = new_field
        self._threshold = threshold
        self._mask_predictor: MaskPredictor | None = None
        """Segmenter for :meth:`proposals`, made at its first use."""

    def box(self, view: int | None, text: str, index: int | None = None) -> tuple[int, tuple[float, ...]]:
        """Find the box that matches words, in one view or in the view of several with the best match.

        Args:
            view: Index of the training view; None to search several.
            text: The words.
            index: Index of the box to take in that view; by default the best.

        Returns:
            The view, and x0, y0, x1, y1 in pixels of its original image.

        Raises:
            SA3DError: Nothing matches the words, or the network cannot be loaded.
        """
        views = self._training
        searched = [view] if view is not None else spread_views(self._views, NUM_VIEWS)
        matches = {view_index: self._matches(view_index, text) for view_index in searched}
        best = max(matches, key=lambda each: max((match.score for match in matches[each]), default=-1.0))
        if view is None and not matches[best]:
            raise self._nothing(searched, text)
        chosen = choose_box(matches[best], text, views.name(best), index)
        if len(matches[best]) > 1 and index is None:
            described = describe_boxes(matches[best], text, views.name(best))
            say(f"note        {described}; the best is taken, --pipeline.prompt.box-index takes another")
        (height, width), (rows, columns) = views.image_size(best), views.picture_size(best, LONGEST_SIDE)
        scale = (width / columns, height / rows) * 2
        return best, tuple(coordinate * factor for coordinate, factor in zip(chosen.box, scale, strict=True))

    def objects(self, view: int | None, text: str, every: bool) -> list[dict[int, Prompt]] | None:
        """Find the objects that words name in several views from all around, and match them in 3D.

        Args:
            view: Index of the only training view to search; None to search several.
            text: The words.
            every: Whether to return all objects, instead of the best match only.

        Returns:
            For each object, from the best match to the worst, its masks by training view; None where
            :meth:`box` suffices: for one object, with a network that returns no masks.

        Raises:
            SA3DError: Nothing matches the words, or a network cannot be loaded.
        """
        has_masks = gives_masks(self._options)
        if not (every or has_masks):
            return None
        searched = [view] if view is not None else spread_views(self._views, NUM_VIEWS)
        predictor = None if has_masks else self._predictor(self._views)
        masks: dict[int, list[tuple[Tensor, float]]] = {}
        for index in searched:
            scored = [(self._mask(index, match, predictor), match.score) for match in self._matches(index, text)]
            masks[index] = [(mask, score) for mask, score in scored if bool(mask.any())]
        objects = match_instances(self._views, masks, self._new_field, self._threshold)
        if not objects:
            raise self._nothing(searched, text)
        # An object found in one of several views only may be a false detection, and is used where there is no other.
        confirmed = [instance for instance in objects if len(instance.masks) > 1] or objects
        return [
            {key: Prompt(mask.shape[0], mask.shape[1], mask=mask.cpu()) for key, mask in instance.masks.items()}
            for instance in (confirmed if every else confirmed[:1])
        ]

    def proposals(self, view: int, text: str) -> Candidates:
        """Find all objects that words name in a view, as proposals for segmenting a whole scene; there may be none.

        Args:
            view: Index of the training view.
            text: The words; several phrases are separated by full stops.

        Returns:
            Masks on the pixels of the view's trace, with the network's scores.

        Raises:
            SA3DError: A network cannot be loaded.
        """
        if self._mask_predictor is None and not gives_masks(self._options):
            self._mask_predictor = self._predictor(self._views)
        # One phrase at a time: for several at once, a network does not find all objects that match them.
        phrases = [phrase for phrase in text.split(".") if phrase.strip()]
        matches = [match for phrase in phrases for match in self._matches(view, phrase)]
        if not matches:
            trace = self._views.trace(view)
            return no_proposals(trace.height, trace.width)
        masks = torch.stack([self._mask(view, match, self._mask_predictor) for match in matches]).cpu()
        scores = torch.tensor([match.score for match in matches])
        indices = without_duplicates(masks, scores)
        return Candidates(masks[indices], scores[indices])

    def _matches(self, view: int, text: str) -> list[TextMatch]:
        """Matches of the words in a view, in pixels of its photo at up to :data:`LONGEST_SIDE`."""
        picture = self._training.picture(view, LONGEST_SIDE)
        return find_boxes(SegmenterImage(picture, self._training.name(view)), text, self._options)

    def _mask(self, view: int, match: TextMatch, predictor: MaskPredictor | None) -> Tensor:
        """The mask of a match, on the pixels of the view's trace."""
        if match.mask is not None:
            trace = self._views.trace(view)
            return Candidates(match.mask[None], torch.ones(1)).at(trace.height, trace.width).masks[0]
        assert predictor is not None
        trace, size = self._views.trace(view), self._training.picture_size(view, LONGEST_SIDE)
        prompt = Prompt.from_points(*size, box=match.box).resized(trace.height, trace.width)
        return predictor.predict(view, prompt).best()

    def _nothing(self, looked: list[int], text: str) -> SA3DError:
        where = self._training.name(looked[0]) if len(looked) == 1 else f"{len(looked)} views"
        return SA3DError(
            f'nothing in {where} looks like "{text}": try other words, or point at it with --pipeline.prompt.points.'
        )
