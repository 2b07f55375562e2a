"""Files written whole or not at all, pixels as bytes, and digests."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from sa3d_nerfstudio.errors import SA3DError, one_line

if TYPE_CHECKING:
    from torch import Tensor

STEM_BYTES = 160
"""Bytes of a file's stem that is made of a name: file systems take names of 255, with prefix and suffix."""
_TEMPORARY = re.compile(r"saving-0\..*\.(\d+)(\.[^.]*)?")
_CLEANED: set[tuple[int, Path]] = set()


@contextmanager
def atomic_path(path: Path, sync: bool = True) -> Iterator[Path]:
    """Temporary path beside ``path``, moved to ``path`` when the context ends without an error.

    Temporary files of killed processes in its folder are removed.

    Args:
        path: The file to write; its folder is made if it is missing.
        sync: Whether to wait until the file is on the disk, so that it survives if the machine stops right afterwards.

    Raises:
        SA3DError: The file cannot be written: no room, no permission, no such drive.
    """
    path = Path(path)
    temporary = path.with_name(_temporary_name(path, os.getpid()))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            yield temporary
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
            if sync:
                _sync_folder(path.parent)
        finally:
            if os.path.lexists(temporary):
                temporary.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: BaseException) -> SA3DError:
    """Error for a file that cannot be written."""
    reason = (getattr(error, "strerror", None) or one_line(error)).rstrip(".")
    return SA3DError(f"{path} cannot be written ({reason}): make room there, or choose another folder.")


def check_writable(folder: Path, num_bytes: int = 0) -> None:
    """Check, before work begins, that a folder can be made and written to. No file is left.

    Args:
        folder: The folder; it need not exist yet.
        num_bytes: Bytes that are about to be written.

    Raises:
        SA3DError: The folder cannot be written to, or has too little room.
    """
    existing = Path(os.path.abspath(folder))
    while not os.path.lexists(existing):
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
        free = shutil.disk_usage(existing).free
    except OSError as error:
        raise cannot_write(folder, error) from error
    if free < num_bytes:
        raise SA3DError(
            f"{folder} needs {num_bytes / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free there: make room, choose "
            "another --output-dir, or leave the base weights where they are (--pipeline.save-base False)."
        )


def _temporary_name(path: Path, process: int) -> str:
    # The suffix stays last, since image writers choose the format by it. nerfstudio reads a number between the first
    # "-" and the first "." of every name in a checkpoint folder and takes the largest: here it is 0.
    return f"saving-0.{path.stem}.{process}{path.suffix}"


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary files of killed processes, once a process and folder: a folder may hold thousands of images."""
    if (os.getpid(), folder) in _CLEANED:
        return
    _CLEANED.add((os.getpid(), folder))
    for file in folder.iterdir():
        match = _TEMPORARY.fullmatch(file.name)
        if match and not is_running(int(match[1])):
            file.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Whether a process of this machine runs; one that has ended but has not been waited for (a zombie) does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        # The state follows the name, which is in brackets and may hold any characters.
        return (Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return True


def _sync_folder(folder: Path) -> None:
    """Flush the folder, so that the new name outlasts a power failure."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        what: Kind of file, for messages.

    Raises:
        SA3DError: The file is missing, or holds no JSON object.
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
    """Write JSON, indented for human readers."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", "utf8")


def write_png(path: Path, pixels: NDArray[np.unsignedinteger]) -> None:
    """Write an image [height, width] of one channel with 8 or 16 bits, or [height, width, 3 or 4] with 8."""
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)


PLY_TYPES = {"f4": "float", "u1": "uchar", "i4": "int"}
"""PLY's names of numpy's types."""


def write_ply(path: Path, properties: Mapping[str, NDArray[Any]], comments: Sequence[str] = ()) -> None:
    """Write points as a binary PLY.

    Args:
        path: The file.
        properties: Values of each property by its name, each an array [num_points] of a type in ``PLY_TYPES``.
        comments: Lines for the header.

    Raises:
        SA3DError: The file cannot be written.
    """
    kinds = [(name, f"<{values.dtype.str[1:]}") for name, values in properties.items()]
    table = np.empty(len(next(iter(properties.values()))), dtype=kinds)
    for name, values in properties.items():
        table[name] = values
    lines = [f"property {PLY_TYPES[kind[1:]]} {name}" for name, kind in kinds]
    remarks = [f"comment {line}" for line in comments]
    first = ["ply", "format binary_little_endian 1.0", *remarks, f"element vertex {len(table)}"]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write("\n".join([*first, *lines, "end_header", ""]).encode("ascii"))
        table.tofile(file)


def to_bytes(rgb: Float[Tensor, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Colours in [0, 1] as the bytes of an image file; values outside are clipped, NaN is black."""
    return (rgb.detach().cpu().float().nan_to_num(0).clamp(0, 1) * 255).round().byte().numpy()


def unique_stems(names: Sequence[str]) -> list[str]:
    """Names as stems of file names, all different on any file system, case-insensitive ones included.

    A stem holds letters, digits, "_" and "-", and no more than :data:`STEM_BYTES` before its number, if it has one.
    """
    stems = [re.sub(r"[^\w-]+", "_", name).strip("_") for name in names]
    stems = [stem.encode()[:STEM_BYTES].decode(errors="ignore") or "object" for stem in stems]
    # Numbers may make a stem equal to that of another name, which is numbered next.
    while len(set(folded := [stem.casefold() for stem in stems])) < len(stems):
        stems = [
            stem if folded.count(stem.casefold()) == 1 else f"{stem}-{number}"
            for number, stem in enumerate(stems, start=1)
        ]
    return stems


def digest(parts: Iterable[Any]) -> str:
    """A digest of texts, numbers and tensors: 32 hexadecimal digits."""
    import torch  # slow, and not needed to write files

    sums = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, torch.Tensor):
            sums.update(f"{part.dtype} {tuple(part.shape)}".encode())
            flat = part.detach().cpu().contiguous().reshape(-1)
            sums.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
        else:
            sums.update(repr(part).encode())
        sums.update(b"\0")
    return sums.hexdigest()
