"""Python interface: load a run, prompt, segment, render, save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from numpy.typing import NDArray
from torch import Tensor

from sa3d_nerfstudio.base_run.checkpoint import allow_nerfstudio_checkpoints
from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.jobs import segment_scene
from sa3d_nerfstudio.pipeline import SA3DPipeline
from sa3d_nerfstudio.prompts.images import read_mask, read_scribble
from sa3d_nerfstudio.prompts.prompt import CANDIDATES, CandidateName, Prompt
from sa3d_nerfstudio.segmentation.everything import SceneReport
from sa3d_nerfstudio.segmentation.report import SessionReport
from sa3d_nerfstudio.segmentation.session import SegmentationSession
from sa3d_nerfstudio.trainer import SA3DTrainer, default_config


def load(
    run: str | Path,
    *,
    step: int | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    output_dir: str | Path = "outputs",
    **options: Any,
) -> Run:
    """Load a trained nerfstudio run, or a sa3d run with its objects.

    Args:
        run: The run's folder, its checkpoint folder, or its config.yml. Code that config.yml names is run, as in
            nerfstudio itself.
        step: Step of the checkpoint; the newest by default.
        data: Path of the data set, if it has moved.
        device: "cuda" or "cpu"; by default CUDA where it is available.
        output_dir: Parent of the folder that :meth:`Run.save` makes for the new run.
        options: Other fields of :class:`~sa3d_nerfstudio.pipeline.SA3DPipelineConfig`, such as
            ``segmenter="grabcut"`` or ``working_size=320``.

    Raises:
        SA3DError: The run cannot be used; the message names the reason and the remedy.
    """
    allow_nerfstudio_checkpoints()
    config = default_config()
    config.load_dir, config.load_step = Path(run), step
    config.data = None if data is None else Path(data)
    config.output_dir = Path(output_dir)
    config.vis = "tensorboard"
    if device is not None:
        config.machine.device_type = device  # type: ignore[assignment]
    for name, value in options.items():
        if not hasattr(config.pipeline, name):
            raise SA3DError(f"there is no option {name}: see the fields of SA3DPipelineConfig.")
        setattr(config.pipeline, name, value)
    config.set_timestamp()
    # Each of several processes on a machine has one GPU.
    on_cuda = config.machine.device_type == "cuda" and torch.cuda.is_available()
    trainer = SA3DTrainer(config, local_rank=torch.cuda.current_device() if on_cuda else 0)
    trainer.restore()
    return Run(trainer)


class Run:
    """Loaded run: prompt an object, segment it, render it, save."""

    def __init__(self, trainer: SA3DTrainer) -> None:
        self._trainer = trainer
        self._session: SegmentationSession | None = None
        self._name = ""

    @property
    def pipeline(self) -> SA3DPipeline:
        """The nerfstudio pipeline, with its model and data."""
        return self._trainer.pipeline

    @property
    def objects(self) -> list[str]:
        """Names of the objects segmented so far."""
        return self.pipeline.model.masks.names

    def prompt(
        self,
        view: str | int | None = None,
        points: object = (),
        negative_points: object = (),
        box: object = None,
        name: str | None = None,
        text: str | None = None,
        box_index: int | None = None,
        candidate: CandidateName = "auto",
        scribble: str | Path | None = None,
        mask: str | Path | Bool[np.ndarray, "height width"] | None = None,
    ) -> Bool[Tensor, "height width"]:
        """Prompt an object in one training view. Several views may be prompted before :meth:`segment` is called.

        Args:
            view: File name of the image, or index of the training view; without one, words are looked for in several
                views from all around.
            points: (x, y) pairs on the object, in pixels of the original image from the top left.
            negative_points: (x, y) pairs beside the object, likewise.
            box: x0, y0, x1, y1 around the object, likewise.
            name: Name of the object; a new name begins a new object. :meth:`segment` replaces one of the same name.
            text: Words for the object, such as "a mug", instead of a box.
            box_index: Index of the box, from 0, if the words match several; the best match by default.
            candidate: Candidate to take where the segmenter returns several: the one that it prefers ("auto"), or the
                "small", "medium" or "large" one.
            scribble: PNG with brush strokes: white or green on the object, red beside it.
            mask: The object, taken as it is, without a segmenter: a PNG with the object in white, of any size, or an
                array of the size of the original image. Beside it, points on the object and boxes have no effect.

        Returns:
            The 2D mask, at the working size.

        Raises:
            SA3DError: The view is unknown, the prompt or an image of it selects nothing, or the words match nothing.
        """
        views = self.pipeline.views
        if candidate not in CANDIDATES:
            raise SA3DError(f"a candidate is one of {', '.join(CANDIDATES)}, and not {candidate!r}.")
        painted = scribble is not None or mask is not None
        if view is None and (text is None or painted or len(np.asarray(points)) or len(np.asarray(negative_points))):
            raise SA3DError("points, boxes, scribbles and masks need a view: name the image that they are in.")
        index = None if view is None else views.find(view)
        if text is not None:
            if box is not None:
                raise SA3DError(f'give a box, or words to find one ("{text}"), not both.')
            index, box = self.pipeline.text_finder().box(index, text, box_index)
        assert index is not None
        height, width = views.image_size(index)
        prompt = Prompt.from_points(height, width, points, negative_points, box, candidate=candidate)
        if scribble is not None:
            prompt = prompt.with_points(*read_scribble(Path(scribble), height, width))
        if mask is not None:
            prompt.mask = torch.from_numpy(_mask_array(mask, height, width))
        session = self._session
        if session is None or name not in (None, self._name):
            name = name or self.pipeline.config.object_name
            session = self.pipeline.session(name, register=False)
        session.prompt(index, prompt)
        # A prompt that fails changes nothing.
        self._session, self._name = session, name or self._name
        return session.mask_of(index)

    def segment(self) -> SessionReport:
        """Lift the prompted object to 3D, view after view, until it stops changing.

        Raises:
            SA3DError: Nothing has been prompted.
        """
        if self._session is None:
            raise SA3DError("nothing to segment: call prompt() first.")
        self.pipeline.model.masks[self._name] = self._session.grid
        report = self._session.run()
        self.pipeline.remember(self._name, self._session)
        return report

    def segment_everything(self) -> SceneReport:
        """Segment all objects of the scene that the segmenter proposes, or those that remain of an earlier job.

        The options ``everything_*`` of :func:`load` bound the job. Each object is added when it is finished; parts and
        wholes of shown objects are hidden.

        Returns:
            Report of the job.
        """
        return segment_scene(self.pipeline, self.pipeline.make_segmenter())

    def mask(self, camera: Cameras | str | int) -> Float[Tensor, "height width"]:
        """Render the probability of the objects for any camera.

        Args:
            camera: One nerfstudio camera of any size, or name or index of a training view, rendered at full size.
        """
        if not isinstance(camera, Cameras):
            index = self.pipeline.views.find(camera)
            camera = self.pipeline.views.cameras[index : index + 1]
        trace = self.pipeline.model.trace_view(camera.to(self.pipeline.device))
        with torch.no_grad():
            return self.pipeline.model.render_mask(trace).reshape(trace.height, trace.width)

    def render(self, camera: Cameras) -> dict[str, Tensor]:
        """Render all outputs for one camera, the object alone and the scene without it included."""
        return self.pipeline.model.get_outputs_for_camera(camera.to(self.pipeline.device))

    def save(self, output_dir: str | Path | None = None) -> Path:
        """Write the run as ``ns-train sa3d`` would, and return its config.yml for nerfstudio's other tools.

        Args:
            output_dir: Parent of the run's folder; by default that given to :func:`load`.
        """
        if output_dir is not None:
            self._trainer.config.output_dir = Path(output_dir)
            self._trainer.base_dir = self._trainer.config.get_base_dir()
            self._trainer.checkpoint_dir = self._trainer.config.get_checkpoint_dir()
        self._trainer.save(None if self._session is None else {self._name: self._session})
        return self._trainer.base_dir / "config.yml"


def _mask_array(mask: str | Path | Bool[np.ndarray, "height width"], height: int, width: int) -> NDArray[np.bool_]:
    if isinstance(mask, (str, Path)):
        return read_mask(Path(mask), height, width)
    array = np.array(mask, dtype=bool)
    if array.shape != (height, width) or not array.any():
        raise SA3DError(f"a mask of this image is an array of {height} x {width} values, True on the object.")
    return array
