"""Tensors on disk, under the digest of their inputs; damaged entries count as absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from sa3d_nerfstudio.files import atomic_path

MAGIC = b"sa3d-cache-1\n"
DIGEST_BYTES = 32


class DiskStore:
    """A folder of entries, each a file: a mark, a checksum, and tensors with a few numbers (safetensors: data only).

    Args:
        folder: Tells where it is; asked when it is first needed, and made when something is first written.
    """

    def __init__(self, folder: Callable[[], Path]) -> None:
        self._tell = folder

    @cached_property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._tell()

    def path(self, key: str) -> Path:
        """File of an entry."""
        return self.folder / f"{key}.view"

    def write(self, key: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Write an entry; it is there whole, or not at all.

        Raises:
            SA3DError: The folder cannot be written to.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(held, metadata={"key": key, "numbers": json.dumps(dict(numbers))})
        with atomic_path(self.path(key)) as path:
            path.write_bytes(MAGIC + hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() + data)

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read an entry; None if there is none, or if it is damaged, cut short, or another one's under this name."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            # Not there, or not to be read: it is made again.
            return None
        start = len(MAGIC) + DIGEST_BYTES
        digest, data = content[len(MAGIC) : start], content[start:]
        if not content.startswith(MAGIC) or hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() != digest:
            return None
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        return (load(data), json.loads(metadata["numbers"])) if metadata["key"] == key else None
