"""Tensors on disk, under the digest of their inputs; damaged entries count as absent."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from sa3d_nerfstudio.files import atomic_path
from sa3d_nerfstudio.gpu_memory import say_once

MAGIC = b"sa3d-cache-1\n"
DIGEST_BYTES = 32


SUFFIX = ".view"


class DiskStore:
    """A folder of entry files: magic bytes, a checksum, and tensors with a few numbers (safetensors: data only).

    Args:
        folder: Returns the folder; called on first use. The folder is made on the first write.
        max_bytes: Largest size of this folder and its siblings, which belong to other runs, together; None for no
            limit. When they are full, entries of other runs are deleted, those of the least recently used run first.
            If that is not enough, nothing more is written.
    """

    def __init__(self, folder: Callable[[], Path], max_bytes: int | None = None) -> None:
        self._tell = folder
        self.max_bytes = max_bytes
        self._taken: int | None = None

    @cached_property
    def folder(self) -> Path:
        """Folder of the entries' files."""
        return self._tell()

    def path(self, key: str) -> Path:
        """File of an entry."""
        return self.folder / f"{key}{SUFFIX}"

    def write(self, key: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Write an entry, whole or not at all.

        Raises:
            SA3DError: The folder cannot be written to.
        """
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(held, metadata={"key": key, "numbers": json.dumps(dict(numbers))})
        if not self._has_room_for(self.path(key), len(MAGIC) + DIGEST_BYTES + len(data)):
            say_once(
                f"the cache of views in {self.folder.parent} is full: further views are not kept on disk "
                "(--pipeline.cache-disk-gb)"
            )
            return
        # No wait for the disk: an entry lost there fails its checksum, and is made again.
        with atomic_path(self.path(key), sync=False) as path:
            path.write_bytes(MAGIC + hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() + data)

    def _has_room_for(self, path: Path, num_bytes: int) -> bool:
        """Whether an entry may be written, once the oldest entries of other runs have been deleted if need be."""
        if self.max_bytes is None:
            return True
        if self._taken is None:
            self._taken = sum(size for _, size, _ in _entries(self.folder.parent))
        with suppress(OSError):  # there is no entry to replace
            num_bytes -= path.stat().st_size
        self._taken += num_bytes
        if self._taken <= self.max_bytes:
            return True
        entries = _entries(self.folder.parent)
        self._taken = num_bytes + sum(size for _, size, _ in entries)
        used = {folder: max(time for path, _, time in entries if path.parent == folder) for folder in _folders(entries)}
        evictable = [entry for entry in entries if entry[0].parent != self.folder]
        for oldest, size, _ in sorted(evictable, key=lambda entry: (used[entry[0].parent], entry[2])):
            if self._taken <= self.max_bytes:
                break
            oldest.unlink(missing_ok=True)
            self._taken -= size
        fits = self._taken <= self.max_bytes
        self._taken -= 0 if fits else num_bytes
        return fits

    def read(self, key: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Read an entry; None if there is none, or if it is damaged, cut short, or stored under another key."""
        path = self.path(key)
        try:
            content = path.read_bytes()
        except OSError:
            # Missing or unreadable: the entry is made again.
            return None
        start = len(MAGIC) + DIGEST_BYTES
        digest, data = content[len(MAGIC) : start], content[start:]
        if not content.startswith(MAGIC) or hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest() != digest:
            return None
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        if metadata["key"] != key:
            return None
        with suppress(OSError):  # another user's cache, or deleted meanwhile
            os.utime(path)
        return load(data), json.loads(metadata["numbers"])


def _entries(folder: Path) -> list[tuple[Path, int, float]]:
    """The entries of all runs in a folder of caches: files, sizes in bytes, and times of their last use."""
    entries = []
    for path in folder.glob(f"*/*{SUFFIX}"):
        with suppress(OSError):  # deleted meanwhile
            state = path.stat()
            entries.append((path, state.st_size, state.st_mtime))
    return entries


def _folders(entries: list[tuple[Path, int, float]]) -> set[Path]:
    return {path.parent for path, _, _ in entries}
