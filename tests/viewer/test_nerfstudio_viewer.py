"""Who can reach the viewer."""

from __future__ import annotations

import sys

import pytest
from nerfstudio.configs.base_config import ViewerConfig

from sa3d_nerfstudio.trainer import default_config

EVERYWHERE = "0.0.0.0"


@pytest.mark.parametrize(
    ("command", "host", "listens"),
    [
        (["/usr/bin/ns-viewer", "--load-config", "c.yml"], EVERYWHERE, "127.0.0.1"),
        (["x/scripts/viewer/run_viewer.py"], EVERYWHERE, "127.0.0.1"),
        (["ns-viewer", "--viewer.websocket-host", EVERYWHERE], EVERYWHERE, EVERYWHERE),
        (["ns-viewer", f"--viewer.websocket_host={EVERYWHERE}"], EVERYWHERE, EVERYWHERE),
        (["ns-viewer"], "10.0.0.7", "10.0.0.7"),
        (["my_own_script.py"], EVERYWHERE, EVERYWHERE),
    ],
)
def test_ns_viewer_listens_where_it_was_told_or_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, command: list[str], viewer: str, listens: str
):
    config = default_config()
    monkeypatch.setattr(sys, "argv", command)
    # As nerfstudio's ns-viewer does with its options.
    config.viewer = ViewerConfig(websocket_host=viewer, websocket_port=7)
    assert (config.viewer.websocket_host, config.viewer.websocket_port) == (listens, 7)


def test_ns_train_listens_on_this_machine_only():
    assert default_config().viewer.websocket_host == "127.0.0.1"
