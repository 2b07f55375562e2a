"""Who can reach the viewer: nobody but this machine, unless the user says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from nerfstudio.configs.base_config import ViewerConfig

LOCAL = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
NS_VIEWER = ("ns-viewer", "run_viewer.py")


def kept_local(viewer: ViewerConfig, command: Sequence[str]) -> ViewerConfig:
    """A viewer's configuration, listening on this machine only where ``ns-viewer`` was not told where to listen.

    nerfstudio's ``ns-viewer`` puts its own options in the place of the run's, and the default of these is to listen on
    all addresses. Whoever types ``--viewer.websocket-host`` gets what was typed, and so does every other program.

    Args:
        viewer: The configuration.
        command: The words of the command that this process runs.
    """
    typed = any(word.partition("=")[0].replace("_", "-") == "--viewer.websocket-host" for word in command[1:])
    if typed or not command or Path(command[0]).name not in NS_VIEWER or viewer.websocket_host != EVERYWHERE:
        return viewer
    return dataclasses.replace(viewer, websocket_host=LOCAL)
