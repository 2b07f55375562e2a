"""Small files: JSON and PNG, read with a sentence for each fault, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sa3d_nerfstudio.atomic import atomic_path
from sa3d_nerfstudio.errors import SA3DError, one_line


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: The file.
        what: What it should be, for messages.

    Raises:
        SA3DError: It is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_text("utf8"))
    except FileNotFoundError:
        raise SA3DError(f"there is no {what} {path}: check the path.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise SA3DError(f"{path} cannot be read as a {what} ({one_line(error)}): write it again.") from error
    if not isinstance(content, dict):
        raise SA3DError(f"{path} is no {what}, for it holds no JSON object: write it again.")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON, for people to read too."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf8")


def write_png(path: Path, pixels: NDArray[np.unsignedinteger]) -> None:
    """Write an image [height, width] of one channel with 8 or 16 bits, or [height, width, 3] with 8."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)
