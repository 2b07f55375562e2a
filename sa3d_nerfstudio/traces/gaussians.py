"""The trace of any Gaussian model that renders through gsplat's ``rasterization``."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.gpu_memory import within_memory
from sa3d_nerfstudio.scoped import scoped
from sa3d_nerfstudio.traces.base import PickedRows

RASTERIZATION = "rasterization"
"""Name by which models call gsplat's function."""

SMALLER = "work in smaller images (--pipeline.working-size), or close other programs that use it"
"""What to do where an image does not fit into the GPU's memory."""

Result = TypeVar("Result")
Instead = Callable[..., Any]
"""Called with the function of gsplat and with the arguments of a call of it, in its place."""
_INSTEAD: ContextVar[Instead | None] = ContextVar("instead", default=None)

Rows = Int[Tensor, " num_rows"]


@dataclass
class Rasterization:
    """A call of ``rasterization`` that a model has made, to be made again with other colours.

    Everything but the colours is the model's own: splats, camera, rasterize mode, and whatever its class sets besides.
    """

    function: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]
    arguments: dict[str, Any]
    rows: Rows | None
    """Which of the model's splats were rasterised, if it was cropped."""

    def __call__(self, values: Float[Tensor, "num_splats channels"]) -> Float[Tensor, "num_pixels channels"]:
        """Composite values of the splats as if they were colours, on black."""
        if self.rows is not None:
            values = values[self.rows]
        call = {**self.arguments, "colors": values, "sh_degree": None, "render_mode": "RGB", "backgrounds": None}
        image = self.function(**{**call, "absgrad": False})[0]
        return image.reshape(-1, values.shape[1])

    def adjoint(
        self, image: Float[Tensor, "num_pixels channels"], num_splats: int
    ) -> Float[Tensor, "num_splats channels"]:
        """The vector-Jacobian product of the call with respect to the values.

        Rasterisation is linear in them, so that it does not matter where the derivative is taken.
        """
        values = image.new_zeros(num_splats, image.shape[1], requires_grad=True)
        with torch.enable_grad():
            (result,) = torch.autograd.grad(self(values), values, image)
        return result


@dataclass
class GaussianTrace:
    """The trace of all pixels of a camera, in row-major order; its cells are those of a :class:`SplatMask`."""

    rasterization: Rasterization | None
    """None if no splat lies within the model's crop box."""
    accumulation: Float[Tensor, " num_rays"]

    def render(
        self, field: SplatMask, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """``A x``: rasterise the values."""
        if self.rasterization is None:
            return values.new_zeros(len(self.accumulation), values.shape[1])
        rasterization = self.rasterization
        with torch.no_grad():
            return within_memory(lambda: rasterization(values), SMALLER)

    def backproject(
        self, field: SplatMask, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: what each splat contributes to the pixels, times these."""
        if self.rasterization is None:
            return image.new_zeros(field.num_cells, image.shape[1])
        rasterization = self.rasterization
        return within_memory(lambda: rasterization.adjoint(image, field.num_cells), SMALLER)

    def rows(self, field: SplatMask, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of ``A`` of some rays; all are rasterised for them."""
        return PickedRows(self, field, rays)


@dataclass
class RenderedCells:
    """The trace of a view for values that have been rendered already, together with those of other objects."""

    rendered: Float[Tensor, "num_rays channels"]
    accumulation: Float[Tensor, " num_rays"]

    def render(
        self, field: SplatMask, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """What has been rendered."""
        return self.rendered

    def backproject(
        self, field: SplatMask, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """Not to be had.

        Raises:
            TypeError: Always.
        """
        raise TypeError("what has been rendered cannot be taken back to the splats")

    def rows(self, field: SplatMask, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of some rays."""
        return PickedRows(self, field, rays)


@dataclass
class GaussianViewTrace(GaussianTrace):
    """The trace of a view, with what the model renders there."""

    height: int
    width: int
    rgb: Float[Tensor, "height width 3"]
    depth: Float[Tensor, "height width 1"]
    points: Float[Tensor, "num_pixels 3"]

    @property
    def num_bytes(self) -> int:
        """Memory that is this view's alone; the splats are the model's, or held once for all views."""
        images = (self.rgb, self.depth, self.points, self.accumulation)
        return sum(image.numel() * image.element_size() for image in images)

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position of what each pixel shows: the mean position of its splats."""
        return self.points


def trace_gaussians(
    model: SplatfactoModel, render: Callable[[], dict[str, Any]], shared: dict[str, Tensor] | None = None
) -> tuple[dict[str, Any], GaussianTrace]:
    """Run a rendering pass, and catch the rasterisation that made its image.

    Args:
        model: The model, for the modules that its classes are defined in.
        render: Runs the pass, and returns the model's outputs for one camera.
        shared: Tensors of the same names that earlier traces hold. Those that are equal are held once: a model hands
            over new copies of its scales and opacities for each image.

    Returns:
        The model's outputs, and the trace.

    Raises:
        SA3DError: The model does not rasterise by gsplat's ``rasterization``.
    """
    calls: list[tuple[Rasterization, Tensor]] = []

    def record(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        arguments = {name: _held(value) for name, value in _arguments(original, args, kwargs).items()}
        # The colours are replaced in any case, and they are most of what the call holds.
        arguments.pop("colors")
        for name, value in arguments.items():
            if shared is not None and isinstance(value, Tensor):
                known = shared.get(name)
                same = known is not None and known.shape == value.shape and torch.equal(known, value)
                arguments[name] = shared[name] = known if known is not None and same else value
        rows = _rows(model, len(arguments["means"]))
        calls.append((Rasterization(original, arguments, rows), result[1].detach()))
        return result

    outputs = intercepted(model, record, render)
    accumulation = outputs["accumulation"].detach().reshape(-1)
    if not calls and model.crop_box is not None:
        return outputs, GaussianTrace(None, accumulation)
    for rasterization, alpha in calls:
        if alpha.numel() == accumulation.numel() and torch.allclose(alpha.reshape(-1), accumulation, atol=1e-4):
            return outputs, GaussianTrace(rasterization, accumulation)
    raise SA3DError(
        f"{type(model).__name__.removeprefix('SA3D')} cannot be traced: its image does not come from the function "
        f"{RASTERIZATION} of gsplat, as a global of the module that defines it; choose a run of splatfacto."
    )


def gated_splats(model: SplatfactoModel, keep: Bool[Tensor, " num_splats"], render: Callable[[], Result]) -> Result:
    """Render some of a model's splats alone; the others have no opacity."""

    def gate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = _arguments(original, args, kwargs)
        opacities = arguments["opacities"]
        rows = _rows(model, len(arguments["means"]))
        kept = keep if rows is None else keep[rows]
        return original(**{**arguments, "opacities": opacities * kept.to(opacities)})

    return intercepted(model, gate, render)


def intercepted(model: SplatfactoModel, instead: Instead, render: Callable[[], Result]) -> Result:
    """Render with another function in the place of ``rasterization``; other threads, and other renders, keep it."""
    install_interception(model)  # of a module whose function has been exchanged since, too
    return scoped(_INSTEAD, instead, render)


def install_interception(model: SplatfactoModel) -> None:
    """Let calls of ``rasterization`` be intercepted in the modules that a model's classes are defined in.

    Called when a model gets its masks, and not while it renders: see :func:`sa3d_nerfstudio.scoped.scoped`. The
    function stays there, and as long as nothing is intercepted it does what it did.
    """
    modules = {sys.modules[kind.__module__] for kind in type(model).__mro__ if kind.__module__ in sys.modules}
    for module in modules:
        original = vars(module).get(RASTERIZATION)
        if original is not None and not isinstance(original, _Interceptable):
            setattr(module, RASTERIZATION, _Interceptable(original))


class _Interceptable:
    """gsplat's function, or what stands in its place while a call of it is intercepted."""

    def __init__(self, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        instead = _INSTEAD.get()
        return self.original(*args, **kwargs) if instead is None else instead(self.original, *args, **kwargs)


def _arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return dict(inspect.signature(function).bind(*args, **kwargs).arguments)


def _held(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _rows(model: SplatfactoModel, count: int) -> Rows | None:
    """Which splats were handed over, told by their number; None for all."""
    means = model.gauss_params["means"]
    if count == len(means):
        return None
    if model.crop_box is not None:
        rows = model.crop_box.within(means).reshape(-1).nonzero()[:, 0]
        if len(rows) == count:
            return rows
    raise SA3DError(
        f"{type(model).__name__.removeprefix('SA3D')} cannot be traced: it rasterises {count} of its {len(means)} "
        "splats, and does not say which; choose a run of splatfacto."
    )
