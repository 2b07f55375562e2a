"""Who can reach the viewer."""

from __future__ import annotations

from sa3d_nerfstudio.trainer import default_config


def test_ns_train_listens_on_this_machine_only():
    assert default_config().viewer.websocket_host == "127.0.0.1"
