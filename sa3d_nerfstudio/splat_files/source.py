"""Source of an imported run, in its data set's transforms.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = "splats"
"""Entry of transforms.json that holds the :class:`ImportSource` of the run."""


@dataclass
class ImportSource:
    """Source of an imported run, as recorded in its data set's transforms.json."""

    file: str
    """Name of the file."""
    sh_degree: int
    """Degree of its spherical harmonics; the run's own is at least 1."""
    up: tuple[float, float, float]
    """Upward direction in the frame of the file, and of the run."""
    previews: tuple[str, ...]
    """Names of the images that are quick drawings, not photos."""

    @classmethod
    def of(cls, transforms: dict[str, Any]) -> ImportSource | None:
        """The entry of a transforms.json; None if the run was not imported."""
        entry = transforms.get(SOURCE)
        if not isinstance(entry, dict):
            return None
        up = tuple(float(value) for value in entry["up"])
        assert len(up) == 3
        return cls(str(entry["file"]), int(entry["sh_degree"]), up, tuple(entry.get("previews", ())))
