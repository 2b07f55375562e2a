"""Registry of segmenters by name, including those of other packages.

A package adds a segmenter by an entry point in the group ``sa3d_nerfstudio.segmenters`` that names a factory, which is
called with :class:`~sa3d_nerfstudio.segmenters.base.SegmenterOptions`; docs/segmenters.md has an example.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

from sa3d_nerfstudio.errors import SA3DError, one_line
from sa3d_nerfstudio.segmenters.base import Segmenter, SegmenterOptions

ENTRY_POINT_GROUP = "sa3d_nerfstudio.segmenters"

SegmenterFactory = Callable[[SegmenterOptions], Segmenter]

# Factories are named, not imported, so that each segmenter needs only its dependencies.
_BUILT_IN = {
    "sam-vit-h": "sa3d_nerfstudio.segmenters.sam:build_vit_h",
    "sam-vit-l": "sa3d_nerfstudio.segmenters.sam:build_vit_l",
    "sam-vit-b": "sa3d_nerfstudio.segmenters.sam:build_vit_b",
    "sam": "sa3d_nerfstudio.segmenters.sam:build",
    "mobile-sam": "sa3d_nerfstudio.segmenters.mobile_sam:build",
    "sam2": "sa3d_nerfstudio.segmenters.huggingface:build_sam2",
    "sam3": "sa3d_nerfstudio.segmenters.huggingface:build_sam3",
    "sam-hq": "sa3d_nerfstudio.segmenters.huggingface:build_sam_hq",
    "grabcut": "sa3d_nerfstudio.segmenters.grabcut.segmenter:build",
    "oracle": "sa3d_nerfstudio.segmenters.oracle:build",
}


def _known() -> dict[str, EntryPoint]:
    """Entry points of all segmenters by name. Built-in segmenters take precedence over those of other packages."""
    plugins = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    built_in = {name: EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in _BUILT_IN.items()}
    return {**plugins, **built_in}


def segmenter_names() -> list[str]:
    """Names that :func:`make_segmenter` accepts: the built-in ones first, then those of other packages."""
    return list(_BUILT_IN) + sorted(set(_known()) - set(_BUILT_IN))


def make_segmenter(name: str, options: SegmenterOptions | None = None) -> Segmenter:
    """Build the segmenter called ``name``.

    Args:
        name: One of :func:`segmenter_names`.
        options: Build options; the defaults if None.

    Raises:
        SA3DError: No segmenter has that name, its package cannot be imported, or something that it needs (weights, a
            folder) is missing.
    """
    entries = _known()
    if name not in entries:
        names = segmenter_names()
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}? There are" if near else "there are"
        raise SA3DError(f"no segmenter is called {name!r}: {hint} {', '.join(names)}.")
    entry = entries[name]
    try:
        factory: SegmenterFactory = entry.load()
    except (ImportError, AttributeError) as error:
        raise SA3DError(
            f"the segmenter {name!r} cannot be imported from {entry.value} ({one_line(error)}): "
            "reinstall the package that provides it, or choose another with --pipeline.segmenter."
        ) from error
    return factory(options or SegmenterOptions())
