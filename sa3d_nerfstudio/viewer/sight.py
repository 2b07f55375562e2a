"""Views of any camera, as the segmenter sees them: rendered once, embedded once, asked about often."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.mask_outputs import MaskOutputs
from sa3d_nerfstudio.segmentation.session import FreeView, Given, SegmentationSession, SessionSettings
from sa3d_nerfstudio.segmenters.base import Segmenter
from sa3d_nerfstudio.viewer.state import ViewPrompt
from sa3d_nerfstudio.views import TrainingViews, trace_camera


class Sight:
    """What the viewer's cameras have seen, and what the segmenter makes of it.

    Args:
        model: The base model with masks.
        views: The training views.
        segmenter: Builds the 2D segmenter when it is first needed.
        settings: Of the sessions.
        lock: Held when the model renders.
    """

    def __init__(
        self,
        model: MaskOutputs,
        views: TrainingViews,
        segmenter: Callable[[], Segmenter],
        settings: SessionSettings,
        lock: AbstractContextManager[Any],
    ) -> None:
        self.model = model
        self.views = views
        self.settings = settings
        self.lock = views.lock = lock
        self.free: dict[str, FreeView] = {}
        """Views beside the training views, by name."""
        self._make_segmenter = segmenter
        self._segmenter: Segmenter | None = None
        self._cameras: dict[str, Float[Tensor, " camera"]] = {}
        self._embeddings: dict[int | str, Any] = {}
        self._answers: dict[ViewPrompt, Given] = {}

    @property
    def segmenter(self) -> Segmenter:
        """The 2D segmenter."""
        if self._segmenter is None:
            self._segmenter = self._make_segmenter()
        return self._segmenter

    def look(self, camera: Cameras) -> str:
        """Make a camera's view ready for prompts.

        Args:
            camera: One camera.

        Returns:
            The view's name, which is the same for the same camera.
        """
        known = self.known(camera)
        if known is not None:
            return known
        name = f"viewer {len(self._cameras) + 1}"
        # First what may fail: without its weights there is no need to wait for a render.
        _ = self.segmenter
        trace = trace_camera(self.model, camera.to(self.model.device), self.lock)
        self.free[name] = FreeView(trace, camera.camera_to_worlds[0])
        self._cameras[name] = _key(camera)
        self.session(self.model.new_field(2)).embed(name)
        return name

    def known(self, camera: Cameras) -> str | None:
        """The view of a camera that has been looked through."""
        key = _key(camera)
        return next((name for name, other in self._cameras.items() if torch.allclose(other, key, atol=1e-5)), None)

    def session(self, grid: MaskField) -> SegmentationSession:
        """A session that may be prompted in all of these views, and shares what has been embedded."""
        session = SegmentationSession(self.views, self.segmenter, grid, self.settings, self._embeddings)
        session.free = self.free
        return session

    def answer(self, prompt: ViewPrompt) -> Given:
        """The mask that comes of a prompt; asked for once."""
        if prompt not in self._answers:
            trace = self.free[prompt.view].trace
            session = self.session(self.model.new_field(2))
            session.prompt(prompt.view, prompt.pixels(trace.height, trace.width))
            if prompt.choice is not None:
                session.choose(prompt.view, prompt.choice)
            session.given[prompt.view].correcting = prompt.correcting
            self._answers[prompt] = session.given[prompt.view]
        return self._answers[prompt]


def _key(camera: Cameras) -> Float[Tensor, " camera"]:
    """Pose, focal length and size in a row."""
    values = [camera.camera_to_worlds[0], camera.fx, camera.fy, camera.height, camera.width]
    return torch.cat([value.reshape(-1).cpu().float() for value in values])
