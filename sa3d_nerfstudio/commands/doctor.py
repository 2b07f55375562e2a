"""``sa3d doctor``: checks of an installation beyond those of pip, and the remedy of each fault.

Checked are imports, shared libraries, the plugin's registration, the GPU and weights. ``pip check`` finds versions that
do not fit together.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from sa3d_nerfstudio.errors import SA3DError, one_line

State = Literal["ok", "note", "fail"]

LIBRARIES = {"libusb-1.0.so.0": "libusb-1.0-0", "libGL.so.1": "libgl1", "libgomp.so.1": "libgomp1"}
"""Shared libraries that open3d and OpenCV load on Linux, and the Debian packages that contain them."""
MODULES = ("torch", "torchvision", "nerfstudio.engine.trainer", "open3d", "cv2", "segment_anything", "pycocotools.mask")
"""Modules that every use of the plugin needs."""


@dataclass
class Finding:
    """One line of the report."""

    what: str
    value: str
    state: State = "ok"
    remedy: str = ""


@dataclass
class Doctor:
    """Check the installation: imports, GPU, system libraries, SAM weights, each with a remedy."""

    def main(self) -> int:
        """Print the report.

        Returns:
            1 if a check failed, else 0.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False, show_header=False)
        marks = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "fail": "[red]fail[/red]"}
        failed = 0
        for finding in findings():
            failed += finding.state == "fail"
            text = f"{finding.value}: {finding.remedy}" if finding.remedy else finding.value
            table.add_row(marks[finding.state], finding.what, text.replace("[", r"\["))
        console = Console(highlight=False)
        console.print(table)
        if failed:
            print(f"{failed} things need mending before sa3d can be relied on.", file=sys.stderr)
        return int(failed > 0)


def findings() -> Iterator[Finding]:
    """Run all checks in order, and yield their findings."""
    yield from versions()
    yield from imports()
    yield from extras()
    yield from system_libraries()
    yield plugin()
    yield from machine()
    yield from sam_weights()


REPORTED = ("nerfstudio", "torch", "numpy", "viser", "gsplat", "nerfacc", "open3d")
"""Packages whose versions belong in a bug report. ``pip check`` tests whether they fit together."""


def versions(installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Installed versions of Python and of packages, without importing any.

    Args:
        installed: Function from a package's name to its installed version.
    """
    python = sys.version_info
    fits = (3, 10) <= python[:2] < (3, 12)
    yield Finding(
        "python", platform.python_version(), "ok" if fits else "note", "" if fits else "tested with 3.10 and 3.11"
    )
    present = {}
    for name in REPORTED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            present[name] = installed(name)
    yield Finding("packages", ", ".join(f"{name} {version}" for name, version in present.items()))
    viser = numbers(present.get("viser", ""))
    if viser[:2] != (0, 2) and viser[:1] != (1,):
        remedy = "the panel is tested with 0.2.7 (nerfstudio 1.1.5) and 1.0 (its main branch)"
        yield Finding("viser", present.get("viser", "not installed"), "note", remedy)


def numbers(version: str) -> tuple[int, ...]:
    """Leading numbers of a version: 2.6.0+cu124 gives (2, 6, 0)."""
    result = []
    for component in version.split("+")[0].split("."):
        digits = component[: len(component) - len(component.lstrip("0123456789"))]
        if not digits:
            break
        result.append(int(digits))
        if digits != component:
            break
    return tuple(result)


def imports() -> Iterator[Finding]:
    """Modules that cannot be imported, for instance because a system library is missing."""
    broken = False
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # compiled modules raise any kind of error
            broken = True
            yield Finding(f"import {name}", one_line(error), "fail", "install what it names, or reinstall the package")
    if not broken:
        yield Finding("imports", ", ".join(MODULES))


@dataclass(frozen=True)
class Extra:
    """Optional package that some prompts or segmenters need."""

    module: str
    packages: tuple[str, ...]
    """Packages that provide the module; any of them suffices."""
    needed_by: str
    extra: str
    """Extra of sa3d-nerfstudio that installs it."""
    fits: Callable[[tuple[int, ...]], bool] = lambda version: True


EXTRAS = (
    Extra(
        "transformers", ("transformers",), "text prompts, sam2, sam3 (from 5.0 on) and sam-hq", "text",
        lambda v: (4, 57) <= v < (6,),
    ),
    Extra("mobile_sam", ("mobilesam-mirror", "mobile_sam"), "mobile-sam", "mobile-sam"),
)  # fmt: skip


def extras(installed: Callable[[str], str] = importlib.metadata.version) -> Iterator[Finding]:
    """Installed versions of the optional packages, and whether they can be imported.

    Args:
        installed: Function from a package's name to its installed version.
    """
    for extra in EXTRAS:
        remedy = f"for {extra.needed_by}, pip install 'sa3d-nerfstudio[{extra.extra}]'"
        installations = []
        for package in extra.packages:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                installations.append((package, installed(package)))
        if not installations:
            yield Finding(extra.module, "not installed", "note", remedy)
            continue
        package, version = installations[0]
        if not extra.fits(numbers(version)):
            yield Finding(extra.module, version, "note", remedy)
            continue
        try:
            importlib.import_module(extra.module)
        except Exception as error:  # any kind, as in imports()
            yield Finding(f"import {extra.module}", one_line(error), "note", remedy)
            continue
        yield Finding(extra.module, f"{package} {version}, for {extra.needed_by}")


def system_libraries(load: Callable[[str], object] = ctypes.CDLL) -> Iterator[Finding]:
    """Shared libraries of the system that wheels do not contain, and ffmpeg.

    Args:
        load: Function that loads a library by its name, or raises OSError.
    """
    if not sys.platform.startswith("linux"):
        return
    missing = []
    for library, package in LIBRARIES.items():
        try:
            load(library)
        except OSError:
            missing.append((library, package))
    if missing:
        names = ", ".join(library for library, _ in missing)
        packages = " ".join(package for _, package in missing)
        yield Finding("system", f"missing {names}", "fail", f"apt-get install {packages}")
    else:
        yield Finding("system", " ".join(LIBRARIES.values()))
    if shutil.which("ffmpeg") is None:
        yield Finding("ffmpeg", "not found", "note", "only ns-render needs it (sa3d turntable does not)")


def plugin() -> Finding:
    """The plugin's entry point, by which nerfstudio finds the method and can read its own checkpoints."""
    entries = importlib.metadata.entry_points(group="nerfstudio.method_configs")
    if not any(entry.name == "sa3d" for entry in entries):
        return Finding(
            "plugin", "nerfstudio does not see sa3d", "fail", "pip install sa3d-nerfstudio in this environment"
        )
    return Finding("plugin", "ns-train sa3d; checkpoints are read weights-only, also with torch 2.6 and later")


def machine() -> Iterator[Finding]:
    """The GPU, and whether kernels can be compiled for it."""
    try:
        import torch

        if not torch.cuda.is_available():
            built = torch.version.cuda
            text = "none" if built is None else f"none that torch (for CUDA {built}) can use"
            yield Finding("GPU", text, "note", "everything runs on the CPU, at smaller sizes and slowly")
            return
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
    except Exception as error:  # a broken driver raises many kinds; imports() reports a broken torch
        yield Finding("GPU", one_line(error), "fail", "mend the driver or the torch of this environment")
        return
    yield Finding("GPU", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    if shutil.which("nvcc") is None and "CUDA_HOME" not in os.environ:
        yield Finding("nvcc", "not found", "note", "gsplat and nerfacc compile on first use: install the CUDA toolkit")


def sam_weights() -> Iterator[Finding]:
    """Segment Anything weights on this machine, or the variable and the folder searched for them."""
    try:
        import torch

        from sa3d_nerfstudio.segmenters import weights as checkpoints
    except Exception as error:  # imports() reports it, too
        yield Finding("SAM weights", one_line(error), "note", "cannot be looked for before the imports work")
        return
    variable = checkpoints.CHECKPOINT_VARIABLE
    named = os.environ.get(variable)
    folder = f"{torch.hub.get_dir()}/checkpoints"
    if named:
        try:
            yield Finding("SAM weights", f"{checkpoints.find_checkpoint(None)} ({variable})")
        except SA3DError as error:
            yield Finding("SAM weights", str(error), "fail", f"or unset {variable}")
        return
    weights = []
    for size in checkpoints.OFFICIAL:
        try:
            weights.append(str(checkpoints.find_checkpoint(None, size, download=False)))
        except SA3DError:
            continue
    if weights:
        yield Finding("SAM weights", ", ".join(weights))
        return
    yield Finding(
        "SAM weights",
        f"none in {variable} or {folder}",
        "note",
        "fetched on first use, unless SA3D_NO_DOWNLOAD is set; or name a file with --pipeline.sam-checkpoint",
    )
