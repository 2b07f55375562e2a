"""Model outputs of which some are rendered only when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any


class LazyOutputs(dict):
    """A dictionary whose late entries are computed, a group at a time, on first reading.

    nerfstudio's image renders read all outputs; the point cloud exporter and the training viewer's rays read two. What
    takes another pass through the model should cost only those who want it.
    """

    def __init__(
        self, ready: Mapping[str, Any], later: Mapping[tuple[str, ...], Callable[[], Mapping[str, Any]]]
    ) -> None:
        super().__init__(ready)
        self._later = {name: compute for names, compute in later.items() for name in names}

    def __missing__(self, name: str) -> Any:
        compute = self._later.get(name)
        if compute is None:
            raise KeyError(name)
        for key, value in compute().items():
            self[key] = value
            self._later.pop(key, None)
        return dict.__getitem__(self, name)

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self._later

    def __iter__(self) -> Iterator[str]:
        return iter([*super().__iter__(), *self._later])

    def __len__(self) -> int:
        return super().__len__() + len(self._later)

    def get(self, name: str, default: Any = None) -> Any:
        """As of any dictionary."""
        try:
            return self[name]
        except KeyError:
            return default

    def keys(self) -> Any:
        """Names of all outputs; computes none."""
        return list(self)

    def items(self) -> Any:
        """All outputs, computed."""
        return [(name, self[name]) for name in self]

    def values(self) -> Any:
        """All outputs, computed."""
        return [self[name] for name in self]
