"""Other forms of splat files, by PlayCanvas's ``splat-transform``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.files import atomic_path

VARIABLE = "SA3D_SPLAT_TRANSFORM"
"""Environment variable that names the program where it is not on the PATH."""
READS = (".spz", ".sog", ".splat", ".ksplat", ".lcc")
"""Suffixes of what it reads beside PLY; a meta.json of an unpacked SOG is read as well."""
WRITES = ("compressed.ply", "spz", "sog", "glb", "html")
"""What it writes of a PLY here."""
_INSTALL = f"npm install -g @playcanvas/splat-transform (Node.js 20 or newer), or name the program in {VARIABLE}"


def find_splat_transform() -> str:
    """The program's path.

    Raises:
        SA3DError: It is not installed.
    """
    named = os.environ.get(VARIABLE)
    found = shutil.which(named or "splat-transform")
    if found is None:
        where = f"{VARIABLE} names {named}, which is no program" if named else "it is not on the PATH"
        raise SA3DError(f"this form of splats takes splat-transform, and {where}: {_INSTALL}.")
    return found


def convert(source: Path, target: Path) -> None:
    """Make one splat file of another; the suffixes say of which kinds they are.

    Args:
        source: An existing file.
        target: Written whole or not at all.

    Raises:
        SA3DError: The program is not installed, or has failed.
    """
    program = find_splat_transform()
    suffix = ".compressed.ply" if target.name.endswith(".compressed.ply") else target.suffix
    with atomic_path(target) as temporary:
        # The program goes by the end of the name, of which a temporary file has but the last part.
        place = temporary.with_name(f"{temporary.stem}{suffix}")
        # SOG is compressed on a GPU, or else, more slowly, without one.
        command = [program, "--quiet", "--overwrite", "--gpu", "cpu", str(source), str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        try:
            if done.returncode or not place.is_file():
                lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
                reason = next((line for line in lines if "rror" in line), lines[-1] if lines else "it says nothing")
                raise SA3DError(
                    f"splat-transform cannot make {target.name} of {source} ({reason[:200].rstrip('.')}): check the "
                    "file, or update it with npm install -g @playcanvas/splat-transform."
                )
            place.replace(temporary)
        finally:
            if place != temporary:
                place.unlink(missing_ok=True)
