"""What words name, looked for in one training view or in several from all around."""

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
from sa3d_nerfstudio.segmenters.proposals import distinct, no_proposals
from sa3d_nerfstudio.segmenters.text import TextBox, TextOptions, choose_box, describe_boxes, find_boxes, gives_masks
from sa3d_nerfstudio.terminal import say

NUM_VIEWS = 6
"""Views from all around in which words are looked for, where no view is named."""
LONGEST_SIDE = 1333
"""Longer side of the images in which they are looked for: the largest that Grounding DINO sees."""


class TextViews(Views, Protocol):
    """Training views whose original images are known."""

    def image_size(self, view: int) -> tuple[int, int]:
        """Height and width of the view's original image."""
        ...


class TextFinder:
    """Looks for words in the photos of training views, at their own size.

    Args:
        views: The training views.
        options: The network that finds words.
        predictor: Makes what turns boxes into masks, where the network knows of boxes only.
        new_field: Makes an empty field, by which instances in several views are matched.
        threshold: Probability above which something is on an object.
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
        """Of proposals, once it has been asked for."""

    def box(self, view: int | None, text: str, index: int | None = None) -> tuple[int, tuple[float, ...]]:
        """Where the words are: in one view, or in the one of several with the best match.

        Args:
            view: Index of the training view; None to look in several.
            text: The words.
            index: Which box to take in that view, if not the best.

        Returns:
            The view, and x0, y0, x1, y1 in pixels of its original image.

        Raises:
            SA3DError: The words fit nothing, or the network cannot be had.
        """
        views = self._training
        looked = [view] if view is not None else spread_views(self._views, NUM_VIEWS)
        matches = {each: self._matches(each, text) for each in looked}
        best = max(matches, key=lambda each: max((match.score for match in matches[each]), default=-1.0))
        if view is None and not matches[best]:
            raise self._nothing(looked, text)
        chosen = choose_box(matches[best], text, views.name(best), index)
        if len(matches[best]) > 1 and index is None:
            described = describe_boxes(matches[best], text, views.name(best))
            say(f"note        {described}; the best is taken, --pipeline.prompt.box-index takes another")
        (height, width), (rows, columns) = views.image_size(best), views.picture_size(best, LONGEST_SIDE)
        scale = (width / columns, height / rows) * 2
        return best, tuple(a * b for a, b in zip(chosen.box, scale, strict=True))

    def objects(self, view: int | None, text: str, every: bool) -> list[dict[int, Prompt]] | None:
        """The objects that words name, found in several views from all around and matched in 3D.

        Args:
            view: Look in this training view only.
            text: The words.
            every: Whether all objects are wanted, and not just the best match.

        Returns:
            For each object, from the best match to the worst, its masks by training view; None where a box will do: of
            one object, by a network that knows of no masks.

        Raises:
            SA3DError: The words fit nothing, or a network cannot be had.
        """
        has_masks = gives_masks(self._options)
        if not (every or has_masks):
            return None
        looked = [view] if view is not None else spread_views(self._views, NUM_VIEWS)
        predictor = None if has_masks else self._predictor(self._views)
        masks: dict[int, list[tuple[Tensor, float]]] = {}
        for each in looked:
            answers = [(self._mask(each, match, predictor), match.score) for match in self._matches(each, text)]
            masks[each] = [(mask, score) for mask, score in answers if bool(mask.any())]
        objects = match_instances(self._views, masks, self._new_field, self._threshold)
        if not objects:
            raise self._nothing(looked, text)
        # What only one of several views has seen may be a slip, if there is anything else.
        sure = [each for each in objects if len(each.masks) > 1] or objects
        return [
            {each: Prompt(mask.shape[0], mask.shape[1], mask=mask.cpu()) for each, mask in instance.masks.items()}
            for instance in (sure if every else sure[:1])
        ]

    def proposals(self, view: int, text: str) -> Candidates:
        """All that words name in a view, as proposals for a scene that is taken apart; there may be none.

        Args:
            view: Index of the training view.
            text: The words; several things are divided by full stops.

        Returns:
            Masks on the pixels of the view's trace, with the network's scores.

        Raises:
            SA3DError: A network cannot be had.
        """
        if self._mask_predictor is None and not gives_masks(self._options):
            self._mask_predictor = self._predictor(self._views)
        # Of several phrases at once, a network would name the words but not all that they fit.
        phrases = [phrase for phrase in text.split(".") if phrase.strip()]
        found = [match for phrase in phrases for match in self._matches(view, phrase)]
        if not found:
            trace = self._views.trace(view)
            return no_proposals(trace.height, trace.width)
        masks = torch.stack([self._mask(view, match, self._mask_predictor) for match in found]).cpu()
        scores = torch.tensor([match.score for match in found])
        kept = distinct(masks, scores)
        return Candidates(masks[kept], scores[kept])

    def _matches(self, view: int, text: str) -> list[TextBox]:
        """What the words may be in a view, in pixels of its photo at up to :data:`LONGEST_SIDE`."""
        picture = self._training.picture(view, LONGEST_SIDE)
        return find_boxes(SegmenterImage(picture, self._training.name(view)), text, self._options)

    def _mask(self, view: int, match: TextBox, predictor: MaskPredictor | None) -> Tensor:
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
