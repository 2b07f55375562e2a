"""Fetch a large file once: resumed where it broke off, and in place only when it is whole."""

from __future__ import annotations

import email.message
import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from sa3d_nerfstudio.errors import SA3DError, one_line

CHUNK = 1 << 20
"""Bytes read at a time."""
TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 3
"""How often in a row a connection may bring nothing before it is given up."""
PAUSE = 1.0
"""Seconds between attempts."""

_BROKEN_CONNECTION = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)

Report = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes that there are, if that is known."""


def fetch(
    url: str,
    destination: Path,
    sha256: str,
    report: Report = lambda here, total: None,
    *,
    timeout: float = TIMEOUT,
    pause: float = PAUSE,
) -> None:
    """Download a file, unless it is there.

    What has come so far is kept beside the destination as ``.part``, and continued by the next call. The destination
    appears at once and only after its SHA-256 has been checked, so whatever has that name is whole. Several processes
    may ask for the same file: one downloads, the others wait.

    Args:
        url: Where the file is.
        destination: Where it goes; folders are made.
        sha256: Its SHA-256 in hexadecimal digits.
        report: Told how far it is.
        timeout: Seconds without a byte after which a connection counts as broken.
        pause: Seconds between attempts.

    Raises:
        SA3DError: The file cannot be had, or is another than expected.
    """
    part = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(destination.with_name(destination.name + ".lock")):
            if destination.is_file():
                return
            continued = part.is_file()
            _fetch_part(url, part, report, timeout, pause)
            if continued and _sha256(part) != sha256:
                # What an earlier call left may have been the fault.
                part.unlink()
                _fetch_part(url, part, report, timeout, pause)
            found = _sha256(part)
            if found != sha256:
                part.unlink()
                raise SA3DError(
                    f"what {url} sends is not what is expected there (its SHA-256 begins with {found[:8]}, "
                    f"not with {sha256[:8]}): try again from another network."
                )
            part.replace(destination)
    except OSError as error:
        place = destination.parent
        raise SA3DError(f"cannot write to {place} ({one_line(error)}): make room, or set TORCH_HOME.") from error


def _fetch_part(url: str, part: Path, report: Report, timeout: float, pause: float) -> None:
    """Bring the partial file to its full length, over as many connections as it takes."""
    idle = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _continue(url, part, report, timeout):
                return
            reason = "the connection broke off"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise SA3DError(
                    f"{url} cannot be fetched (HTTP {error.code} {error.reason}): try again later."
                ) from error
            reason = f"HTTP {error.code} {error.reason}"
        except _BROKEN_CONNECTION as error:
            reason = one_line(error)
        idle = 0 if part.exists() and part.stat().st_size > before else idle + 1
        if idle >= ATTEMPTS:
            here = part.stat().st_size if part.exists() else 0
            kept = f"; the {here / 1e6:.1f} MB that came are kept" if here else ""
            raise SA3DError(f"{url} cannot be fetched ({reason}{kept}): try again.")
        time.sleep(pause)


def _continue(url: str, part: Path, report: Report, timeout: float) -> bool:
    """Append what one connection brings to the partial file; whether that was all."""
    here = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sa3d-nerfstudio"})
    if here:
        request.add_header("Range", f"bytes={here}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # There is nothing behind what is here: it is whole, or no part of this file.
        if _total(error.headers) == here:
            return True
        part.unlink()
        return False
    with response:
        if here and response.status != http.client.PARTIAL_CONTENT:
            here = 0  # the server sends the whole file again
        elif here and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {here}-"):
            part.unlink()
            return False
        length = response.headers.get("Content-Length")
        total = here + int(length) if length is not None else _total(response.headers)
        with part.open("ab" if here else "wb") as file:
            report(here, total)
            # read1 returns what has come; read would wait for a whole chunk, and lose it when the connection breaks.
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                here += len(chunk)
                report(here, total)
            file.flush()
            os.fsync(file.fileno())
    # A cut connection ends as a complete one does. Without a length, the checksum will tell.
    return total is None or here == total


def _total(headers: email.message.Message) -> int | None:
    """The file's size, from Content-Range."""
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
