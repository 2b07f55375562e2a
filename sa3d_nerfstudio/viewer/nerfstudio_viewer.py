"""nerfstudio's viewer, where the panel needs more than it offers. All of its private parts that we touch are here.

Checked against nerfstudio 1.1.5; what is used has the same names on its main branch.
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

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.models.outputs import MaskOutputs
from sa3d_nerfstudio.segmenters.base import Segmenter
from sa3d_nerfstudio.segmenters.text import TextOptions
from sa3d_nerfstudio.viewer.viser_compat import end_after_errors
from sa3d_nerfstudio.views.training_views import TrainingViews

MODEL_DIR = "nerfstudio_models"
"""Folder of a run's checkpoints; nerfstudio's default, which ``ns-viewer`` does not pass on."""


class PanelPipeline(Protocol):
    """What the panel asks of the pipeline."""

    config: Any
    """The settings of sessions, with ``resolution``, the vertices of the mask grid along each axis."""

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
        """Where the model is."""
        ...

    def make_segmenter(self) -> Segmenter:
        """The 2D segmenter that the configuration names."""
        ...

    def text_options(self) -> TextOptions:
        """What finds words in images."""
        ...

    def save_checkpoint(self, path: Path, step: int) -> None:
        """Write a checkpoint, or leave the one that is there as it is."""
        ...


class FairLock:
    """A lock that is let go long enough for others to take it.

    Python's locks are not fair: a loop that takes one again at once starves everybody else.
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
    """What is left of the rendering for a tab that was closed."""

    running = False

    def action(self, action: RenderAction) -> None:
        """Nobody looks at it any more."""


class RenderMachines(dict[int, Any]):
    """nerfstudio's renderings by tab; a tab that is not there, or not any more, is told things in vain.

    nerfstudio looks tabs up while they leave, in the midst of messages that viser sends together. The KeyError that
    came of it left viser waiting for the end of these messages for ever, and all other tabs with it.
    """

    def __missing__(self, client_id: int) -> _Gone:
        return _Gone()

    def pop(self, client_id: int, default: Any = None) -> Any:  # type: ignore[override]
        """Forget a tab, if it is there."""
        return super().pop(client_id, default)


class NerfstudioViewer:
    """The viewer that the panel lives in, of ``ns-train`` or of ``ns-viewer``."""

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
        """Folder of the run."""
        return self.viewer.log_filename.parent

    @property
    def config(self) -> Path:
        """The run's config.yml."""
        return self.run_dir / "config.yml"

    def close(self) -> None:
        """Render no more, for any tab: a thread that renders while the process ends would have it abort."""
        self._closed.set()
        self._stop_rendering()
        # Tabs go on talking while the server closes, and websockets would print a traceback for each.
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        self.server.stop()
        # For a tab that came meanwhile.
        self._stop_rendering()

    def _stop_rendering(self) -> None:
        # Not what is in render_statemachines: a tab that has just left is not, while its last image is still rendered.
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
        """Put away what only makes sense while a model is trained, and have no more rendered than is looked at.

        Args:
            max_res: Longer side of the viewport's renders, where nerfstudio's 512 would take too long.
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
        """Have a tab render again."""
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is not None and self.viewer.ready:
            machine.action(RenderAction("move", self.viewer.get_camera_state(client)))

    def shows(self, output: str) -> bool:
        """Whether tabs show an output, and nothing but that, from where their cameras are."""
        panel = self.viewer.control_panel
        special = panel.split or panel.crop_viewport or self.viewer.render_tab_state.preview_render
        return panel.output_render == output and not special

    def hold(self, client: viser.ClientHandle) -> None:
        """Stop rendering one tab until its camera moves: what it shows is sent by the panel."""
        machine = self.viewer.render_statemachines.get(client.client_id)
        if machine is None:
            return
        # Rendered in full and still, as far as the state machine knows; what it is rendering now is given up.
        machine.state = "high"
        machine.interrupt_render_flag = True
        with self.lock:
            machine.interrupt_render_flag = False

    def send(self, client: viser.ClientHandle, image: Float[Tensor, "height width 3"]) -> None:
        """Show an image in a tab's viewport."""
        pixels = (image.clamp(0, 1) * 255).byte().cpu().numpy()
        client.scene.set_background_image(pixels, format="jpeg", jpeg_quality=95)

    def show_output(self, name: str) -> None:
        """Choose one of the model's outputs in nerfstudio's own selector."""
        dropdown = self.viewer.control_panel._output_render
        # Until something has been rendered, the selector knows of no outputs.
        if dropdown.gui_handle is not None and name in dropdown.gui_handle.options and dropdown.value != name:
            dropdown.value = name

    @property
    def output(self) -> str | None:
        """The model's output that nerfstudio's own selector shows; None until something has been rendered."""
        output = self.viewer.control_panel.output_render
        return None if output == "not set" else output

    def wait_for_output(self, seconds: float = 30.0) -> bool:
        """Wait until something has been rendered, and say whether it has; in vain once the viewer closes."""
        deadline = time.monotonic() + seconds
        while self.output is None and time.monotonic() < deadline and not self._closed.wait(0.1):
            pass
        return self.output is not None

    def on_output(self, changed: Callable[[], None]) -> None:
        """Call something when another output is chosen in nerfstudio's own selector."""
        element = self.viewer.control_panel._output_render
        before = element.cb_hook

        def hook(changed_element: Any) -> None:
            before(changed_element)
            changed()

        # Not a second callback of the handle: viser 0.2.7 calls the last one only, as often as there are callbacks.
        element.cb_hook = hook

    def hide_cameras(self) -> None:
        """Hide the training cameras, which are in the way of clicks; nerfstudio's button shows them again."""
        deadline = time.monotonic() + 30
        # A tab may open before all of them have been added, which ends with this attribute.
        while not hasattr(self.viewer, "train_state") and time.monotonic() < deadline and not self._closed.wait(0.05):
            pass
        if self.viewer.hide_images.visible:
            self.viewer.set_camera_visibility(False)
            self.viewer.toggle_cameravis_button()

    def camera(self, client: viser.ClientHandle, long_side: int) -> Cameras:
        """A tab's camera, for an image of its shape.

        Taken from the tab itself, and not asked of the server, which forgets a tab at once when it closes.
        """
        rotation = vtf.SO3(wxyz=client.camera.wxyz) @ vtf.SO3.from_x_radians(np.pi)
        position = np.asarray(client.camera.position) / VISER_NERFSTUDIO_SCALE_RATIO
        pose = torch.from_numpy(np.concatenate([rotation.as_matrix(), position[:, None]], axis=1))
        state = CameraState(
            fov=client.camera.fov, aspect=client.camera.aspect, c2w=pose, camera_type=CameraType.PERSPECTIVE
        )
        return get_camera(state, *self.size(client, long_side))

    def size(self, client: viser.ClientHandle, long_side: int) -> tuple[int, int]:
        """Height and width of an image of the tab's shape, with no more pixels than one of 3:2 would have."""
        aspect = client.camera.aspect
        long_side = min(long_side, self.viewer.control_panel.max_res)
        width = min(long_side * min(1.0, aspect), (long_side**2 / 1.5 * aspect) ** 0.5)
        return max(round(width / aspect), 1), max(round(width), 1)

    def look_from(self, client: viser.ClientHandle, view: int) -> None:
        """Put a tab's camera where a training image was taken."""
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
        """Show points in the scene; those of before are gone."""
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
        """Commands for this run, to copy: a label, what each is for, and the command."""
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
        """Write the run, and say where its config.yml is.

        ``ns-train`` makes a run; ``ns-viewer`` writes masks and prompts into the checkpoint that it has loaded, which
        is replaced as a whole or not at all, and the threshold into its config.yml, likewise.

        Raises:
            SA3DError: The run's checkpoint is not where it was, or cannot be written.
        """
        trainer: Any = self.viewer.trainer
        if trainer is not None:
            trainer.save()
            return self.config
        checkpoints = sorted((self.run_dir / MODEL_DIR).glob("step-*.ckpt"))
        if not checkpoints:
            raise SA3DError(f"there is no checkpoint in {self.run_dir / MODEL_DIR} to save to: put the run back.")
        try:
            pipeline.save_checkpoint(checkpoints[-1], int(checkpoints[-1].stem.removeprefix("step-")))
            self._save_threshold(pipeline.config.threshold)
        except OSError as error:
            raise SA3DError(
                f"the run cannot be written to ({one_line(error)}): see that its folder may be written to and has room."
            ) from error
        return self.config

    def _save_threshold(self, threshold: float) -> None:
        # As nerfstudio reads it; it is the very file that this process has read already.
        config = yaml.load(self.config.read_text("utf8"), Loader=yaml.Loader)
        if config.pipeline.threshold != threshold:
            config.pipeline.threshold = threshold
            config.write(self.run_dir)
