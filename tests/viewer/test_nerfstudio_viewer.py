"""Who can reach nerfstudio's viewer, and what becomes of those who leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import viser
import yaml
from nerfstudio.viewer.viewer import Viewer

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.trainer import default_config
from sa3d_nerfstudio.viewer.export_section import ExportSection
from sa3d_nerfstudio.viewer.nerfstudio_viewer import MODEL_DIR, NerfstudioViewer
from sa3d_nerfstudio.viewer.viser_compat import literal
from tests.viewer.browser import HANG, free_port


def test_ns_train_listens_on_this_machine_only():
    assert default_config().viewer.websocket_host == "127.0.0.1"


def test_a_tab_that_leaves_while_its_camera_moves_takes_nobody_along():
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        viewer = Viewer.__new__(Viewer)
        viewer.viser_server, viewer.render_statemachines, viewer.train_lock = server, {}, None
        # Renders nothing by itself.
        viewer.ready, viewer.current_camera_idx = False, 0
        viewer.render_tab_state = SimpleNamespace(preview_render=False)  # type: ignore[assignment]
        NerfstudioViewer(viewer)
        moved: list[Callable[[Any], None]] = []
        camera = SimpleNamespace(
            wxyz=np.array([1.0, 0, 0, 0]), position=np.zeros(3), fov=1.0, aspect=1.0, on_update=moved.append
        )
        client: Any = SimpleNamespace(client_id=3, camera=camera)
        viewer.handle_new_client(client)
        machine = viewer.render_statemachines[3]
        viewer.ready = True
        viewer.handle_disconnect(client)
        machine.join(HANG)
        assert not machine.is_alive() and not viewer.render_statemachines
        # viser works off each message of a tab on a thread of its own: this one comes too late.
        moved[0](camera)
        assert can_send_together(server)
        viewer.handle_disconnect(client)
    finally:
        server.stop()


def test_closing_waits_for_the_last_image_of_a_tab_that_has_left():
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    viewer = Viewer.__new__(Viewer)
    viewer.viser_server, viewer.render_statemachines, viewer.train_lock = server, {}, None
    viewer.ready, viewer.include_time, viewer.current_camera_idx = True, False, 0
    viewer.render_tab_state = SimpleNamespace(preview_render=False)  # type: ignore[assignment]
    viewer.control_panel = SimpleNamespace(crop_viewport=False, max_res=8)  # type: ignore[assignment]
    viewer.step = 0
    rendering = threading.Event()

    def render(camera: Any, obb_box: None) -> None:
        rendering.set()
        end = time.monotonic() + HANG
        while time.monotonic() < end:
            time.sleep(0.01)

    model: Any = SimpleNamespace(device="cpu", training=False, eval=lambda: None, get_outputs_for_camera=render)
    viewer.get_model = lambda: model
    camera = SimpleNamespace(
        wxyz=np.array([1.0, 0, 0, 0]), position=np.zeros(3), fov=1.0, aspect=1.0, on_update=lambda moved: None
    )
    client: Any = SimpleNamespace(client_id=3, camera=camera)
    ours = NerfstudioViewer(viewer)
    viewer.handle_new_client(client)
    machine = viewer.render_statemachines[3]
    assert rendering.wait(HANG)
    viewer.handle_disconnect(client)
    assert machine.is_alive() and not viewer.render_statemachines
    ours.close()
    # Else the process ends while it renders, and aborts.
    assert not machine.is_alive()


def test_what_is_saved_is_the_checkpoint_that_was_loaded(tmp_path: Path):
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        viewer = Viewer.__new__(Viewer)
        viewer.viser_server, viewer.render_statemachines, viewer.train_lock = server, {}, None
        viewer.trainer, viewer.log_filename, viewer.step = None, tmp_path / "log.txt", 1
        ours, saved = NerfstudioViewer(viewer), []
        pipeline: Any = SimpleNamespace(
            config=SimpleNamespace(threshold=0.5), save_checkpoint=lambda path, step: saved.append((path.name, step))
        )
        ours.config.write_text(yaml.dump(SimpleNamespace(pipeline=SimpleNamespace(threshold=0.5))))
        with pytest.raises(SA3DError, match="put the run back"):
            ours.save(pipeline)
        # A user's copy, and a later step than the one that was asked for.
        for name in ("step-000000001.ckpt", "step-000000001.old.ckpt", "step-000000002.ckpt"):
            folder = tmp_path / MODEL_DIR
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
        assert ours.save(pipeline) == tmp_path / "config.yml"
        assert saved == [("step-000000001.ckpt", 1)]
    finally:
        server.stop()


def test_the_run_is_where_it_was_written():
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        viewer = Viewer.__new__(Viewer)
        viewer.viser_server, viewer.render_statemachines, viewer.train_lock = server, {}, None
        viewer.log_filename, trainer = Path("outputs/scene/sa3d/T/log.txt"), SimpleNamespace()
        viewer.trainer = trainer  # type: ignore[assignment]
        ours, section = NerfstudioViewer(viewer), ExportSection.__new__(ExportSection)
        section._context = SimpleNamespace(viewer=ours)  # type: ignore[assignment]

        def save() -> None:
            trainer.base_dir = folder

        trainer.save = save
        folder = Path("outputs/scene/sa3d/T")
        assert section._named(ours.save(SimpleNamespace())) == literal("sa3d/T/config.yml")  # type: ignore[arg-type]
        # As the trainer does without room for the run.
        folder = Path("/tmp/sa3d-1/scene/sa3d/T")
        assert section._named(ours.save(SimpleNamespace())) == literal(folder / "config.yml")  # type: ignore[arg-type]
    finally:
        server.stop()


def test_messages_sent_together_end_after_an_error():
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        viewer = Viewer.__new__(Viewer)
        viewer.viser_server, viewer.render_statemachines, viewer.train_lock = server, {}, None
        NerfstudioViewer(viewer)
        with pytest.raises(KeyError, match="gone"), server.atomic():
            raise KeyError("gone")
        assert can_send_together(server)
    finally:
        server.stop()


def can_send_together(server: viser.ViserServer) -> bool:
    """Whether another thread gets to send messages of a server together."""
    done = threading.Event()

    def send() -> None:
        with server.atomic():
            done.set()

    threading.Thread(target=send, daemon=True).start()
    return done.wait(60)
