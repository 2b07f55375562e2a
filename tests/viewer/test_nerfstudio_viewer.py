"""Who can reach nerfstudio's viewer, and what becomes of those who leave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import viser
from nerfstudio.viewer.viewer import Viewer

from sa3d_nerfstudio.trainer import default_config
from sa3d_nerfstudio.viewer.nerfstudio_viewer import NerfstudioViewer
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
