"""Segment Anything in 3D on any trained nerfstudio model.

In Python, start with :func:`sa3d_nerfstudio.load`; on the command line, with ``ns-train sa3d --load-dir RUN``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sa3d_nerfstudio.api import Run, load
    from sa3d_nerfstudio.errors import SA3DError

__version__ = "0.1.0"
__all__ = ["Run", "SA3DError", "load"]


def __getattr__(name: str) -> Any:
    """Import public names on first access: nerfstudio imports this package for every command that it runs."""
    if name in ("Run", "load"):
        from sa3d_nerfstudio import api

        return getattr(api, name)
    if name == "SA3DError":
        from sa3d_nerfstudio.errors import SA3DError

        return SA3DError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
