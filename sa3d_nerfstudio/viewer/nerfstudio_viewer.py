"""Adapter to nerfstudio's viewer. All uses of the viewer's private parts are in this module.

Checked against nerfstudio 1.1.5; the parts in use have the same names on its main branch.
"""

from __future__ import annotations

import logging
import math
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import viser
import viser.transforms as vtf
import yaml
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine
from nerfstudio.viewer.utils import CameraState, get_camera
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO, Viewer
from torch import Tensor

from sa3d_nerfstudio.base_run.checkpoint import checkpoints_in
from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.segmenters.base import Segmenter
from sa3d_nerfstudio.segmenters.text import TextOptions
from sa3d_nerfstudio.viewer.viser_compat import end_after_errors
from sa3d_nerfstudio.views.training_views import TrainingViews

MODEL_DIR = "nerfstudio_models"
"""Folder of a run's checkpoints; nerfstudio's default, which ``ns-viewer`` does not pass on."""


class PanelPipeline(Protocol):
    """Pipeline, as the panel uses it."""

    config: Any
    """Settings of the sessions, and ``resolution``, the vertices of the mask grid along each axis."""

    @property
    def model(self) -> MaskOutputs:
        """The base model with masks."""
        ...

    @property
    def views(self) -> TrainingViews:
        """The training views, at the working size."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        ...

    def make_segmenter(self) -> Segmenter:
        """The 2D segmenter that the configuration names."""
        ...

    def text_options(self) -> TextOptions:
        """Options of the network that finds words in images."""
        ...

    def save_checkpoint(self, path: Path, step: int) -> None:
        """Write a checkpoint; if that fails, an existing one is unchanged."""
        ...


class FairLock:
    """Lock with a pause after each release, in which other threads can take it.

    Python's locks are not fair: a loop that takes one again at once starves all other threads.
    """

    def __init__(self, lock: threading.Lock, pause: float = 0.002) -> None:
        self._lock = lock
        self._pause = pause

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()
        time.sleep(self._pause)


class _Gone:
    """Stand-in for the render state machine of a closed tab."""

    running = False

    def action(self, action: RenderAction) -> None:
        """Ignore the action."""


class RenderMachines(dict[int, Any]):
    """nerfstudio's render state machines by tab; those of closed or unknown tabs ignore all actions.

    nerfstudio looks up tabs while they leave, within a batch of messages that viser sends together. The resulting
    KeyError left viser, and all other tabs, waiting for the end of the batch for ever.
    """

    def __missing__(self, client_id: int) -> _Gone:
        return _Gone()

    def pop(self, client_id: int, default: Any = None) -> Any:  # type: ignore[override]
        """Remove a tab, if it is present."""
        return super().pop(client_id, default)


class NerfstudioViewer:
    """The viewer of ``ns-train`` or ``ns-viewer`` that holds the panel."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.server = viewer.viser_server
        viewer.render_statemachines = RenderMachines(viewer.render_statemachines)
        end_after_errors(self.server)
        self.lock = FairLock(viewer.train_lock or threading.Lock())
        self._marks: viser.PointCloudHandle | None = None
        self._closed = threading.Event()

    @property
    def trains(self) -> bool:
        """Whether this is ``ns-train``, which makes a new run, and not ``ns-viewer``, which shows one."""
        return self.viewer.trainer is not None

    @property
    def run_dir(self) -> Path:
        """Folder of the run. ``ns-train`` writes to another one than the viewer was opened for if that has no room."""
        trainer: Any = self.viewer.trainer
        return self.viewer.log_filename.parent if trainer is None else trainer.base_dir

    @property
    def is_elsewhere(self) -> bool:
        """Whether the run is in another folder than the viewer was opened for."""
        return self.run_dir != self.viewer.log_filename.parent

    @property
    def config(self) -> Path:
        """The run's config.yml."""
        return self.run_dir / "config.yml"

    def close(self) -> None:
        """Stop rendering for all tabs: a thread that renders while the process ends would abort it."""
        self._closed.set()
        self._stop_rendering()
        # Tabs still send messages while the server closes, and websockets would print a traceback for each.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        self.server.stop()
        # A tab may have connected meanwhile.
        self._stop_rendering()

    def _stop_rendering(self) -> None:
        # render_statemachines lacks tabs that have just left, while their last images are still being rendered.
        machines = [
            thread
            for thread in threading.enumerate()
            if isinstance(thread, RenderStateMachine) and thread.viewer is self.viewer
        ]
        for machine in machines:
            machine.running, machine.interrupt_render_flag = False, True
        for machine in machines:
            machine.join(30)

    def prepare(self, max_res: int | None) -> None:
        """Hide the controls for training, and restrict renders to the outputs on display.

        Args:
            max_res: Longer side of the viewport's renders, where nerfstudio's 512 would take too long; None for 512.
        """
        self.viewer.pause_train.visible = self.viewer.resume_train.visible = False
        panel = self.viewer.control_panel
        panel._train_speed.set_hidden(True)
        panel._train_util.set_hidden(True)
        if max_res is not None:
            panel._max_res.value = max(max_res, 64)
        model: Any = self.viewer.pipeline.model
        model.wanted_outputs = lambda: {panel.output_render, panel.split_output_render}

    def rerender(self, client: viser.ClientHandle) -> None:
        """Make a tab render again."""
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is not None and self.viewer.ready:
            machine.action(RenderAction("move", self.viewer.get_camera_state(client)))

    def shows(self, output: str) -> bool:
        """Whether tabs show this output only, without a split, a crop or a preview, as their own cameras see it."""
        panel = self.viewer.control_panel
        special = panel.split or panel.crop_viewport or self.viewer.render_tab_state.preview_render
        return panel.output_render == output and not special

    def hold(self, client: viser.ClientHandle) -> None:
        """Stop rendering one tab until its camera moves: the panel sends its image."""
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is None:
            return
        # Set the state that follows a full render of a still camera, and interrupt the current render.
        machine.state = "high"
        machine.interrupt_render_flag = True
        with self.lock:
            machine.interrupt_render_flag = False

    def send(self, client: viser.ClientHandle, image: Float[Tensor, "height width 3"]) -> None:
        """Show an image in a tab's viewport."""
        pixels = (image.clamp(0, 1) * 255).byte().cpu().numpy()
        client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=95)

    def show_output(self, name: str) -> None:
        """Choose one of the model's outputs in nerfstudio's selector."""
        dropdown = self.viewer.control_panel._output_render
        # The selector has no outputs before the first render.
        if dropdown.gui_handle is not None and name in dropdown.gui_handle.options and dropdown.value != name:
            dropdown.value = name

    @property
    def output(self) -> str | None:
        """The model's output chosen in nerfstudio's selector; None before the first render."""
        output = self.viewer.control_panel.output_render
        return None if output == "not set" else output

    def wait_for_output(self, seconds: float = 30.0) -> bool:
        """Wait for the first render, and return whether there was one; closing the viewer ends the wait."""
        deadline = time.monotonic() + seconds
        while self.output is None and time.monotonic() < deadline and not self._closed.wait(0.1):
            pass
        return self.output is not None

    def on_output(self, changed: Callable[[], None]) -> None:
        """Call a function when another output is chosen in nerfstudio's selector."""
        element = self.viewer.control_panel._output_render
        before = element.cb_hook

        def hook(changed_element: Any) -> None:
            before(changed_element)
            changed()

        # Not a second callback of the handle: viser 0.2.7 calls only the last one, once for each callback.
        element.cb_hook = hook

    def hide_cameras(self) -> None:
        """Hide the training cameras, which are in the way of clicks; nerfstudio's button shows them again."""
        deadline = time.monotonic() + 30
        # A tab may open before all cameras have been added; nerfstudio sets this attribute afterwards.
        while not hasattr(self.viewer, "train_state") and time.monotonic() < deadline and not self._closed.wait(0.05):
            pass
        if self.viewer.hide_images.visible:
            self.viewer.set_camera_visibility(False)
            self.viewer.toggle_cameravis_button()

    def camera(self, client: viser.ClientHandle, long_side: int) -> Cameras:
        """A tab's camera, for an image of the tab's shape.

        It is read from the tab itself, since the server forgets a tab as soon as that closes.
        """
        rotation = vtf.SO3(wxyz=client.camera.wxyz) @ vtf.SO3.from_x_radians(np.pi)
        position = np.asarray(client.camera.position) / VISER_NERFSTUDIO_SCALE_RATIO
        pose = torch.from_numpy(np.concatenate([rotation.as_matrix(), position[:, None]], axis=1))
        state = CameraState(
            fov=client.camera.fov, aspect=client.camera.aspect, c2w=pose, camera_type=CameraType.PERSPECTIVE
        )
        return get_camera(state, *self.size(client, long_side))

    def size(self, client: viser.ClientHandle, long_side: int) -> tuple[int, int]:
        """Height and width of an image of the tab's shape, with at most the pixels of a 3:2 image of that side."""
        aspect = client.camera.aspect
        long_side = min(long_side, self.viewer.control_panel.max_res)
        width = min(long_side * min(1.0, aspect), (long_side**2 / 1.5 * aspect) ** 0.5)
        return max(round(width / aspect), 1), max(round(width), 1)

    def render_from(self, client: viser.ClientHandle, view: int) -> None:
        """Move a tab's camera to that of a training image."""
        dataset = self.viewer.pipeline.datamanager.train_dataset
        assert dataset is not None
        camera = dataset.cameras[view % len(dataset)]
        pose = camera.camera_to_worlds.cpu().numpy()
        rotation = vtf.SO3.from_matrix(pose[:3, :3]) @ vtf.SO3.from_x_radians(np.pi)
        with client.atomic():
            client.camera.position = pose[:3, 3] * VISER_NERFSTUDIO_SCALE_RATIO
            client.camera.wxyz = rotation.wxyz
            client.camera.fov = 2 * math.atan(float(camera.height) / 2 / float(camera.fy))

    def mark(self, points: Float[np.ndarray, "num 3"], colors: Float[np.ndarray, "num 3"]) -> None:
        """Show points in the scene, in place of earlier ones."""
        if self._marks is not None:
            self._marks.remove()
            self._marks = None
        if len(points):
            self._marks = self.server.scene.add_point_cloud(
                "/sa3d/points",
                points=points * VISER_NERFSTUDIO_SCALE_RATIO,
                colors=colors,
                point_size=0.08,
                point_shape="circle",
            )

    def commands(self) -> dict[str, tuple[str, str]]:
        """Commands for this run, to copy: by label, a description and the command."""
        config = f"--load-config {shlex.quote(str(self.config.absolute()))}"
        model: Any = self.viewer.pipeline.model
        return {
            "Shape": (
                "nerfstudio's own command that writes the object alone",
                f"ns-export {model.EXPORT} {config} --output-dir exports",
            ),
            "Points": (
                "Command that writes each object's points, with normals and probabilities",
                f"sa3d export points {config} --output-dir exports",
            ),
            "Masks": (
                "Command that writes 2D masks for the images of the data set",
                f"sa3d masks {config} --output-dir masks",
            ),
            "Video": (
                "Command that renders the object along the training cameras",
                f"ns-render interpolate {config} --rendered-output-names object_rgb --output-path exports/object.mp4",
            ),
            "Viewer": (
                "Command that opens this run again, for this machine only",
                f"ns-viewer {config} --viewer.websocket-host 127.0.0.1",
            ),
        }

    def save(self, pipeline: PanelPipeline) -> Path:
        """Write the run, and return the path of its config.yml.

        ``ns-train`` makes a new run. ``ns-viewer`` writes masks and prompts into the checkpoint that it has loaded, and
        the threshold into config.yml; each file is replaced as a whole or not at all.

        Raises:
            SA3DError: The run's checkpoint is missing, or cannot be written.
        """
        trainer: Any = self.viewer.trainer
        if trainer is not None:
            trainer.save()
            return self.config
        folder, step = self.run_dir / MODEL_DIR, self.viewer.step
        checkpoint = checkpoints_in(folder).get(step) if folder.is_dir() else None
        if checkpoint is None:
            raise SA3DError(f"there is no checkpoint of step {step} in {folder} to save to: put the run back.")
        try:
            pipeline.save_checkpoint(checkpoint, step)
            self._save_threshold(pipeline.config.threshold)
        except OSError as error:
            raise SA3DError(
                f"the run cannot be written to ({one_line(error)}): see that its folder may be written to and has room."
            ) from error
        return self.config

    def _save_threshold(self, threshold: float) -> None:
        # Loaded with code, as nerfstudio does; this process has read the same file before.
        config = yaml.load(self.config.read_text("utf8"), Loader=yaml.Loader)
        if config.pipeline.threshold != threshold:
            config.pipeline.threshold = threshold
            config.write(self.run_dir)
