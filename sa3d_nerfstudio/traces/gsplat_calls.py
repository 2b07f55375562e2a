"""Calls of gsplat by Gaussian models: they can be replaced, and project for a part of an image exactly."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.window import RENDERED_WINDOW, Window

RASTERIZATION = "rasterization"
"""Name by which models call gsplat's rasteriser."""
PROJECTION = "fully_fused_projection"
"""Name by which gsplat's rasteriser calls its projection."""

Result = TypeVar("Result")
Instead = Callable[..., Any]
"""Replacement of gsplat's rasteriser: called with that function and the arguments of the call."""
_INSTEAD: ContextVar[Instead | None] = ContextVar("instead", default=None)


def intercepted(model: SplatfactoModel, instead: Instead, render: Callable[[], Result]) -> Result:
    """Render with a replacement of ``rasterization``; other threads, and other renders, are not affected."""
    install_interception(model)  # again, in case a module's function has been replaced since
    return scoped(_INSTEAD, instead, render)


def install_interception(model: SplatfactoModel) -> None:
    """Make calls of gsplat interceptable in the modules that define a model's classes, and its projection in gsplat's.

    Called when a model gets its masks, and not while it renders: see :func:`sa3d_nerfstudio.scoped.scoped`. The
    wrappers stay installed, and call gsplat's functions unless calls are intercepted or a window is rendered.
    """
    modules = {sys.modules[kind.__module__] for kind in type(model).__mro__ if kind.__module__ in sys.modules}
    for module in modules:
        original = vars(module).get(RASTERIZATION)
        if original is None:
            continue
        if not isinstance(original, _Rasterization):
            setattr(module, RASTERIZATION, _Rasterization(original))
        rasterizer = sys.modules.get(getattr(_innermost(original), "__module__", ""))
        projection = vars(rasterizer).get(PROJECTION) if rasterizer is not None else None
        if projection is not None and not isinstance(projection, _Projection):
            setattr(rasterizer, PROJECTION, _Projection(projection))


def call_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a call by name."""
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)


class _Rasterization:
    """Wrapper of gsplat's rasteriser that calls the replacement instead while calls are intercepted."""

    def __init__(self, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        instead = _INSTEAD.get()
        return self.original(*args, **kwargs) if instead is None else instead(self.original, *args, **kwargs)


class _Projection:
    """Wrapper of gsplat's projection that projects for the whole image while a window of it is rendered.

    The covariance of a splat in the image is taken at its centre, or, if that lies far outside, at a point 15 % of the
    image's size outside of its bounds (``persp_proj`` in gsplat's ``utils.cuh``). With the bounds of a window, splats
    around it would get other shapes than in the whole image.
    """

    def __init__(self, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        window = RENDERED_WINDOW.get()
        if window is None:
            return self.original(*args, **kwargs)
        call = call_arguments(self.original, args, kwargs)
        if (call["width"], call["height"]) != (window.width, window.height):
            return self.original(**call)
        call["height"], call["width"] = window.size
        call["Ks"] = _shifted(call["Ks"], window)
        # Packed results begin with the indices of cameras and splats; the rest is the same.
        *indices, radii, means2d, depths, conics, compensations = self.original(**call)
        x, y = means2d.unbind(dim=-1)
        means2d = torch.stack([x - window.left, y - window.top], dim=-1)
        return *indices, _within(window, radii, means2d), means2d, depths, conics, compensations


def _shifted(intrinsics: Tensor, window: Window) -> Tensor:
    """Intrinsics [..., 3, 3] of the whole image, from those of a window."""
    whole = intrinsics.clone()
    whole[..., 0, 2] += window.left
    whole[..., 1, 2] += window.top
    return whole


def _within(window: Window, radii: Tensor, means2d: Tensor) -> Tensor:
    """Radii in pixels, 0 for splats that are not drawn in a window. gsplat >= 1.5 has a radius for each axis."""
    x, y = means2d.unbind(dim=-1)
    reach_x, reach_y = (radii, radii) if radii.dim() == x.dim() else radii.unbind(dim=-1)
    inside = (x + reach_x > 0) & (x - reach_x < window.width) & (y + reach_y > 0) & (y - reach_y < window.height)
    return radii * (inside if radii.dim() == x.dim() else inside[..., None])


def _innermost(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function behind wrappers and partial calls."""
    while True:
        inner = function.func if isinstance(function, functools.partial) else getattr(function, "__wrapped__", None)
        if inner is None:
            return function
        function = inner
