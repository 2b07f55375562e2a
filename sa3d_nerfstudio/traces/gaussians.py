"""The trace of any Gaussian model that renders through gsplat's ``rasterization``."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.models.splatfacto import SplatfactoModel
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.splat_mask import SplatMask
from sa3d_nerfstudio.traces.base import PickedRows

RASTERIZATION = "rasterization"
"""Name by which models call gsplat's function."""

_INTERCEPTING = threading.RLock()
"""One interception at a time: it exchanges a function of the model's module, which all threads see."""

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
        with torch.no_grad():
            return self.rasterization(values)

    def backproject(
        self, field: SplatMask, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: what each splat contributes to the pixels, times these."""
        if self.rasterization is None:
            return image.new_zeros(field.num_cells, image.shape[1])
        return self.rasterization.adjoint(image, field.num_cells)

    def rows(self, field: SplatMask, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of ``A`` of some rays; all are rasterised for them."""
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

    def recorder(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def record(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            arguments = {name: _held(value) for name, value in signature.bind(*args, **kwargs).arguments.items()}
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

        return record

    with intercepted(model, recorder):
        outputs = render()
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


def gated_splats(model: SplatfactoModel, keep: Bool[Tensor, " num_splats"]) -> Any:
    """A context in which the model renders some of its splats alone; the others have no opacity."""

    def gate(original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        def gated(*args: Any, **kwargs: Any) -> Any:
            arguments = signature.bind(*args, **kwargs).arguments
            opacities = arguments["opacities"]
            rows = _rows(model, len(arguments["means"]))
            kept = keep if rows is None else keep[rows]
            return original(**{**arguments, "opacities": opacities * kept.to(opacities)})

        return gated

    return intercepted(model, gate)


@contextmanager
def intercepted(model: SplatfactoModel, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Exchange ``rasterization`` in the modules that the model's classes are defined in, while the context lasts."""
    modules = {sys.modules[kind.__module__] for kind in type(model).__mro__ if kind.__module__ in sys.modules}
    with _INTERCEPTING:
        originals = {module: vars(module)[RASTERIZATION] for module in modules if RASTERIZATION in vars(module)}
        for module, original in originals.items():
            setattr(module, RASTERIZATION, wrap(original))
        try:
            yield
        finally:
            for module, original in originals.items():
                setattr(module, RASTERIZATION, original)


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
