"""Views of any camera that can be prompted: each is rendered once, embedded once, and prompted often."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.prompts.view_prompt import Mark, ViewPrompt
from sa3d_nerfstudio.segmentation.mask_depth import marker_position
from sa3d_nerfstudio.segmentation.predictor import MaskPredictor
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.segmentation.session_views import FreeView, PromptedMask, SessionViews
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterImage, input_side
from sa3d_nerfstudio.segmenters.text import TextOptions, find_boxes
from sa3d_nerfstudio.traces.base import ViewTrace
from sa3d_nerfstudio.views.cache import Embeddings
from sa3d_nerfstudio.views.training_views import TrainingViews


class FreeViews:
    """Traces of the views of any camera, and the segmenter's masks in them. Views are identified by name.

    Args:
        model: The base model with masks.
        views: The training views.
        segmenter: Builds the 2D segmenter when it is first needed.
        settings: Settings of the sessions.
        lock: Lock that is held while the model renders; shared with all other code that renders with it.
    """

    def __init__(
        self,
        model: MaskOutputs,
        views: TrainingViews,
        segmenter: Callable[[], Segmenter],
        settings: SessionSettings,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.model = model
        self.views = views
        self.settings = settings
        self.lock = views.lock = nullcontext() if lock is None else lock
        self.cameras: dict[str, Cameras] = {}
        """Cameras of all views beside the training views, traced or not."""
        self.free: dict[str, FreeView] = {}
        """Those of these views that have been traced."""
        self._make_segmenter = segmenter
        self._segmenter: Segmenter | None = None
        self._training: dict[str, int] = {}
        self._embeddings: Embeddings | None = None
        self._predictor: MaskPredictor | None = None
        self._answers: dict[ViewPrompt, PromptedMask] = {}

    @property
    def segmenter(self) -> Segmenter:
        """The 2D segmenter."""
        if self._segmenter is None:
            self._segmenter = self._make_segmenter()
        return self._segmenter

    def look(self, camera: Cameras) -> str:
        """Trace and embed a camera's view, so that it can be prompted.

        Args:
            camera: One camera.

        Returns:
            Name of the view, the same for the same camera.
        """
        # The segmenter comes first: if its weights are missing, the user need not wait for a render.
        _ = self.segmenter
        name = self.remember(camera)
        if name not in self.free:
            self.trace(name)
            self.predictor.embed(name)
        return name

    def remember(self, camera: Cameras) -> str:
        """Name a camera's view, without tracing it yet."""
        key = _key(camera)
        for name, stored in self.cameras.items():
            if torch.allclose(_key(stored), key, atol=1e-5):
                return name
        name = f"view {len(self.cameras) + 1}"
        self.cameras[name] = camera
        return name

    def find_training_view(self, name: str) -> str:
        """Name a training view by its image's file name, without rendering it yet.

        Raises:
            SA3DError: No training view has that name.
        """
        view = self.views.find(name)
        self._training[self.views.name(view)] = view
        return self.views.name(view)

    def key(self, name: str) -> int | str:
        """A view's key in sessions: the index of a training view, or the name of any other."""
        return self._training.get(name, name)

    def known(self, camera: Cameras) -> str | None:
        """Name of a camera's view, if it has been traced."""
        key = _key(camera)
        traced = ((name, stored) for name, stored in self.cameras.items() if name in self.free)
        return next((name for name, stored in traced if torch.allclose(_key(stored), key, atol=1e-5)), None)

    def trace(self, name: str) -> ViewTrace:
        """Trace of a whole view; rendered once. It has no window, since users click in any part of its image, and
        segmenters see all of it."""
        if name in self._training:
            return self.views.trace(self._training[name])
        if name not in self.free:
            camera = self.cameras[name]
            trace = self.model.compressed_view(camera.to(self.model.device), self.lock)
            self.free[name] = FreeView(trace, camera.camera_to_worlds[0])
        return self.free[name].trace

    def placed(self, name: str, mark: Mark) -> tuple[float, float, float]:
        """World position of a mark in a view, a little in front of the surface."""
        trace = self.trace(name)
        pose = self.views.camera_to_worlds[self._training[name]] if name in self._training else None
        pose = self.free[name].camera_to_world if pose is None else pose
        return marker_position(trace, pose[:, 3], *mark.pixel(trace.height, trace.width))

    def find(self, name: str, text: str, options: TextOptions) -> dict[str, tuple[float, float, float, float]]:
        """Find the boxes in a view that match the words.

        Returns:
            Boxes by label, from the best match to the worst: x0, y0, x1, y1 as shares of width and height.

        Raises:
            SA3DError: The text is empty, nothing matches it, or the network is unavailable.
        """
        trace = self.trace(name)
        matches = find_boxes(SegmenterImage(trace.rgb, name, trace.depth[..., 0]), text, options)
        if not matches:
            raise SA3DError(f"nothing here looks like {text}: try other words or another view, or use + point.")
        boxes = {}
        for number, match in enumerate(matches, start=1):
            x0, y0, x1, y1 = match.box
            label = f"{number}: {match.label} {match.score:.2f}"
            boxes[label] = (x0 / trace.width, y0 / trace.height, x1 / trace.width, y1 / trace.height)
        return boxes

    @property
    def predictor(self) -> MaskPredictor:
        """Predictor of masks in these views; sessions share its embeddings."""
        if self._predictor is None:
            key = partial(self.views.picture_key, side=input_side(self.segmenter))
            self._embeddings = Embeddings(self.views.cache, self.segmenter, key)
            views = SessionViews(self.views, self.free, SessionReport())
            self._predictor = MaskPredictor(self.segmenter, views, self._embeddings)
        return self._predictor

    def session(self, grid: MaskField, prompts: Sequence[ViewPrompt] = ()) -> SegmentationSession:
        """Make a session in these views that starts from the masks of these prompts and shares the embeddings."""
        prompted = {self.key(prompt.view): self.answer(prompt) for prompt in prompts}
        segmenter = self.predictor.segmenter
        # A copy: the user may move the threshold while the session runs.
        settings = copy.copy(self.settings)
        return SegmentationSession(
            self.views, segmenter, grid, settings, self._embeddings, free=self.free, prompted=prompted
        )

    def answer(self, prompt: ViewPrompt) -> PromptedMask:
        """Mask of a prompt; predicted once."""
        if prompt not in self._answers:
            trace, view = self.trace(prompt.view), self.key(prompt.view)
            answer = self.predictor.answer(view, prompt.pixels(trace.height, trace.width))
            if prompt.choice is not None:
                answer.choice = min(prompt.choice, len(answer.candidates.masks) - 1)
                answer.picked = True
            answer.correcting = prompt.correcting
            self._answers[prompt] = answer
        return self._answers[prompt]

    def answered(self, prompt: ViewPrompt) -> PromptedMask | None:
        """Mask of a prompt, if it has been predicted."""
        return self._answers.get(prompt)


def _key(camera: Cameras) -> Float[Tensor, " camera"]:
    """Pose, focal lengths and size in one vector."""
    values = [camera.camera_to_worlds[0], camera.fx, camera.fy, camera.height, camera.width]
    return torch.cat([value.reshape(-1).cpu().float() for value in values])
