"""Settings of segmentation and lifting, from the command line."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.segmentation.settings import SessionSettings


def session_settings(settings: Sequence[str]) -> SessionSettings:
    """Parse settings of segmentation and lifting from NAME=VALUE words.

    Raises:
        SA3DError: There is no setting of that name, or it does not take that value.
    """
    kinds = get_type_hints(SessionSettings)
    values: dict[str, Any] = {}
    for word in settings:
        name, _, text = word.partition("=")
        name = name.replace("-", "_")
        if name not in kinds:
            raise SA3DError(f"--settings has no {word!r}: it takes NAME=VALUE with one of {', '.join(kinds)}.")
        values[name] = _value(text)
        allowed = get_args(kinds[name]) or (kinds[name],)
        types = tuple(kind for kind in allowed if isinstance(kind, type))
        # Settings that take floats also take integers; only settings that take booleans take True.
        types += (int,) if float in types else ()
        fits = isinstance(values[name], types) and (bool in types or not isinstance(values[name], bool))
        if not fits and values[name] not in allowed:
            names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in allowed)
            raise SA3DError(f"--settings {name} takes {names}, and not {text!r}.")
    return SessionSettings(**values)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
