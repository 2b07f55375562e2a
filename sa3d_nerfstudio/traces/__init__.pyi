from .base import RayTrace, ViewTrace, render_probability
from .compressed import CompressedTrace
from .gaussians import GaussianTrace, GaussianViewTrace, trace_gaussians
from .nerf import NerfTrace, NerfViewTrace, WeightedSamples, trace_rays
from .view_rays import ViewRays
from .window import Pixels, Window

__all__ = [
    "CompressedTrace",
    "GaussianTrace",
    "GaussianViewTrace",
    "NerfTrace",
    "NerfViewTrace",
    "Pixels",
    "RayTrace",
    "ViewRays",
    "ViewTrace",
    "WeightedSamples",
    "Window",
    "render_probability",
    "trace_gaussians",
    "trace_rays",
]
