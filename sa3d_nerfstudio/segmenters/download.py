"""Download a large file once: interrupted downloads resume, and only a complete file appears."""

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
"""Bytes per read."""
TIMEOUT = 20.0
"""Seconds without a byte after which a connection counts as broken."""
ATTEMPTS = 3
"""Connections in a row without any data after which a download fails."""
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
"""Progress callback: bytes received so far, and bytes of the whole file or None if unknown."""


def fetch(
    url: str,
    destination: Path,
    sha256: str,
    report: Report = lambda here, total: None,
    *,
    timeout: float = TIMEOUT,
    pause: float = PAUSE,
) -> None:
    """Download a file, unless it exists.

    Received data is kept beside the destination as ``.part``, and the next call resumes from it. The destination
    appears at once and only after its SHA-256 has been checked, so a file of that name is complete. Several processes
    may fetch the same file: one downloads it, the others wait.

    Args:
        url: Address of the file.
        destination: Path of the downloaded file; its folders are made.
        sha256: Its SHA-256 in hexadecimal digits.
        report: Progress callback.
        timeout: Seconds without a byte after which a connection counts as broken.
        pause: Seconds between attempts.

    Raises:
        SA3DError: The file cannot be downloaded or written, or is another than expected.
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
                # The data of an earlier call may have been wrong: start again.
                part.unlink()
                _fetch_part(url, part, report, timeout, pause)
            digest = _sha256(part)
            if digest != sha256:
                part.unlink()
                raise SA3DError(
                    f"what {url} sends is not what is expected there (its SHA-256 begins with {digest[:8]}, "
                    f"not with {sha256[:8]}): try again from another network."
                )
            part.replace(destination)
    except OSError as error:
        folder = destination.parent
        raise SA3DError(f"cannot write to {folder} ({one_line(error)}): make room, or set TORCH_HOME.") from error


def _fetch_part(url: str, part: Path, report: Report, timeout: float, pause: float) -> None:
    """Complete the partial file, over as many connections as needed."""
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
            received = part.stat().st_size if part.exists() else 0
            remark = f"; the {received / 1e6:.1f} MB that came are kept" if received else ""
            raise SA3DError(f"{url} cannot be fetched ({reason}{remark}): try again.")
        time.sleep(pause)


def _continue(url: str, part: Path, report: Report, timeout: float) -> bool:
    """Append the data of one connection to the partial file; return whether the file is complete."""
    received = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "sa3d-nerfstudio"})
    if received:
        request.add_header("Range", f"bytes={received}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # No data follows the received bytes: they are the whole file, or not a part of it.
        if _total(error.headers) == received:
            return True
        part.unlink()
        return False
    with response:
        if received and response.status != http.client.PARTIAL_CONTENT:
            received = 0  # the server sends the whole file again
        elif received and not str(response.headers.get("Content-Range", "")).startswith(f"bytes {received}-"):
            part.unlink()
            return False
        length = response.headers.get("Content-Length")
        total = received + int(length) if length is not None else _total(response.headers)
        with part.open("ab" if received else "wb") as file:
            report(received, total)
            # read1 returns what is available; read would wait for a whole chunk, and lose it if the connection breaks.
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                received += len(chunk)
                report(received, total)
            file.flush()
            os.fsync(file.fileno())
    # A cut connection ends like a complete one. If the length is unknown, the checksum detects it.
    return total is None or received == total


def _total(headers: email.message.Message) -> int | None:
    """Size of the whole file in bytes, from Content-Range."""
    match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
    return int(match.group(1)) if match else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
