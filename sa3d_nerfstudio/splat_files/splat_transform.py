"""Conversion of splat files by PlayCanvas's ``splat-transform``."""

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
"""Suffixes that it reads besides PLY; it also reads the meta.json of an unpacked SOG."""
WRITES = ("compressed.ply", "spz", "sog", "glb", "html")
"""Formats to which a PLY is converted here."""
_INSTALL = f"npm install -g @playcanvas/splat-transform (Node.js 20 or newer), or name the program in {VARIABLE}"


def find_splat_transform() -> str:
    """Path of the program.

    Raises:
        SA3DError: It is not installed.
    """
    named = os.environ.get(VARIABLE)
    program = shutil.which(named or "splat-transform")
    if program is None:
        where = f"{VARIABLE} names {named}, which is no program" if named else "it is not on the PATH"
        raise SA3DError(f"this form of splats takes splat-transform, and {where}: {_INSTALL}.")
    return program


def convert(source: Path, target: Path) -> None:
    """Convert a splat file to another format; the suffixes determine the formats.

    Args:
        source: An existing file.
        target: The file to write, whole or not at all.

    Raises:
        SA3DError: The program is not installed, or has failed.
    """
    program = find_splat_transform()
    suffix = ".compressed.ply" if target.name.endswith(".compressed.ply") else target.suffix
    with atomic_path(target) as temporary:
        # The program needs the full suffix, of which a temporary file has only the last part.
        output = temporary.with_name(f"{temporary.stem}{suffix}")
        # SOG is compressed on the CPU: more slowly than on a GPU, but without need of one.
        command = [program, "--quiet", "--overwrite", "--gpu", "cpu", str(source), str(output)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        try:
            if result.returncode or not output.is_file():
                lines = [line.strip() for line in f"{result.stdout}\n{result.stderr}".splitlines() if line.strip()]
                reason = next((line for line in lines if "rror" in line), lines[-1] if lines else "it says nothing")
                raise SA3DError(
                    f"splat-transform cannot make {target.name} of {source} ({reason[:200].rstrip('.')}): check the "
                    "file, or update it with npm install -g @playcanvas/splat-transform."
                )
            output.replace(temporary)
        finally:
            if output != temporary:
                output.unlink(missing_ok=True)
