"""Settings of a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sa3d_nerfstudio.segmentation.lifting import LiftingName
from sa3d_nerfstudio.segmentation.self_prompting import SelfPrompts


@dataclass
class SessionSettings:
    """Settings of the loop from the prompted views to all views."""

    lifting: LiftingName = "evidence"
    """How masks become evidence: 'evidence' sums (default), or the published 'gradient' steps."""
    threshold: float = 0.5
    """Probability above which a pixel or a cell is on the object."""
    num_prompts: int = 5
    """Points that a rendered mask prompts the segmenter with, at most."""
    self_prompts: SelfPrompts = "spread"
    """Where the points lie: 'spread' over the inside of the rendered mask, or by the 'published' rule."""
    min_agreement: float = 0.5
    """A view in which no 2D mask has a higher IoU with the rendered mask is rejected."""
    part_gap: float = 0.1
    """Parts of a mask that are farther from the rest in space than this share of its size are not the object; 0 keeps
    all ('evidence' lifting only)."""
    trim_outline: bool = True
    """Whether pixels at a mask's outline that see past the object are not lifted, and outlines that lie beside edges in
    depth in all views are moved there for the fit at the end ('evidence' lifting only)."""
    prompt_weight: float = 3.0
    """Weight of a prompted view's mask, relative to another view's mask ('evidence' lifting only)."""
    correction_weight: float = 1.0
    """Weight of a view in which the user has corrected the mask, relative to all other views together."""
    tolerance: float = 0.01
    """Stop when a pass changes the masks that it lifts, or the field, by less than this (relative L1)."""
    max_passes: int = 4
    """Passes over the views, at most."""
    view_order: Literal["overlap", "file"] = "overlap"
    """Visit views by their overlap with those visited before, or in the order of the data set."""
    likelihood_steps: int = 25
    """Steps towards the field that explains all masks best, at most; 0 keeps averages ('evidence' lifting only)."""
    windows: bool = True
    """Whether each view is traced at full size only in a window around the object, and coarsely elsewhere ('evidence'
    lifting only)."""
    close_photos: bool = True
    """Whether networks are shown windows of photos in which the object is small, where the photos have more pixels than
    networks see; each window is embedded by itself."""
    num_views: int | None = None
    """Number of views to segment in beside the prompted ones, chosen all around the object; by default all."""
    views_around: int = 0
    """Number of virtual views around the object to segment in as well, from directions that visited views lack."""
    encode_batch: int | None = None
    """Images that a network encodes at once; by default 4 on CUDA, and one on a CPU."""
