"""The trace of any Gaussian model that renders through gsplat's ``rasterization``."""

from __future__ import annotations

from collections.abc import Callable
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
from sa3d_nerfstudio.traces.gsplat_calls import RASTERIZATION, call_arguments, intercepted
from sa3d_nerfstudio.traces.window import RENDERED_WINDOW, Window

MEMORY_REMEDY = "work in smaller images (--pipeline.working-size), or close other programs that use it"
"""Remedy for an image that does not fit into the GPU's memory."""

Result = TypeVar("Result")
Rows = Int[Tensor, " num_rows"]


@dataclass
class Rasterization:
    """A model's call of ``rasterization``, recorded to be repeated with other colours.

    All arguments but the colours are the model's: splats, camera, rasterize mode, and any others that its class sets.
    """

    function: Callable[..., tuple[Tensor, Tensor, dict[str, Any]]]
    arguments: dict[str, Any]
    rows: Rows | None
    """Indices of the rasterised splats if the model was cropped; None for all."""
    window: Window | None = None
    """The window that the image is, of the image that the splats are projected for; None if it is that image."""

    def __call__(self, values: Float[Tensor, "num_splats channels"]) -> Float[Tensor, "num_pixels channels"]:
        """Composite values of the splats as if they were colours, on a black background."""
        if self.rows is not None:
            values = values[self.rows]
        call = {**self.arguments, "colors": values, "sh_degree": None, "render_mode": "RGB", "backgrounds": None}
        image = scoped(RENDERED_WINDOW, self.window, lambda: self.function(**{**call, "absgrad": False}))[0]
        return image.reshape(-1, values.shape[1])

    def adjoint(
        self, image: Float[Tensor, "num_pixels channels"], num_splats: int
    ) -> Float[Tensor, "num_splats channels"]:
        """The vector-Jacobian product of the call with respect to the values.

        Rasterisation is linear in them, so its derivative is the same at all values.
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
            return within_memory(lambda: rasterization(values), MEMORY_REMEDY)

    def backproject(
        self, field: SplatMask, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """``Aᵀ y``: each splat's weights in the pixels, times the pixels' values, summed."""
        if self.rasterization is None:
            return image.new_zeros(field.num_cells, image.shape[1])
        rasterization = self.rasterization
        return within_memory(lambda: rasterization.adjoint(image, field.num_cells), MEMORY_REMEDY)

    def rows(self, field: SplatMask, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of ``A`` of some rays; all rays are rasterised for them."""
        return PickedRows(self, field, rays)


@dataclass
class RenderedCells:
    """The trace of a view for values that have already been rendered, in one pass with those of other objects."""

    rendered: Float[Tensor, "num_rays channels"]
    accumulation: Float[Tensor, " num_rays"]

    def render(
        self, field: SplatMask, values: Float[Tensor, "num_cells channels"]
    ) -> Float[Tensor, "num_rays channels"]:
        """The values as rendered before."""
        return self.rendered

    def backproject(
        self, field: SplatMask, image: Float[Tensor, "num_rays channels"]
    ) -> Float[Tensor, "num_cells channels"]:
        """Not available.

        Raises:
            TypeError: Always.
        """
        raise TypeError("what has been rendered cannot be taken back to the splats")

    def rows(self, field: SplatMask, rays: Int[Tensor, " num_rows"]) -> PickedRows:
        """The rows of some rays."""
        return PickedRows(self, field, rays)


@dataclass
class GaussianViewTrace(GaussianTrace):
    """The trace of a view, with the model's rendered outputs."""

    height: int
    width: int
    rgb: Float[Tensor, "height width 3"]
    depth: Float[Tensor, "height width 1"]
    points: Float[Tensor, "num_pixels 3"]

    @property
    def num_bytes(self) -> int:
        """Memory of this view's images in bytes; the splats are the model's, or shared by all views."""
        images = (self.rgb, self.depth, self.points, self.accumulation)
        return sum(image.numel() * image.element_size() for image in images)

    def surface_points(self) -> Float[Tensor, "num_pixels 3"]:
        """World position of the surface at each pixel: the mean position of its splats."""
        return self.points


def trace_gaussians(
    model: SplatfactoModel, render: Callable[[], dict[str, Any]], shared: dict[str, Tensor] | None = None
) -> tuple[dict[str, Any], GaussianTrace]:
    """Run a rendering pass, and record the rasterisation of its image.

    Args:
        model: The model; the modules that define its classes are searched for ``rasterization``.
        render: Runs the pass, and returns the model's outputs for one camera.
        shared: Tensors of earlier traces by the names of the arguments; updated. Equal ones are held once, because a
            model passes new copies of its scales and opacities for each image.

    Returns:
        The model's outputs, and the trace.

    Raises:
        SA3DError: The model does not rasterise by gsplat's ``rasterization``.
    """
    calls: list[tuple[Rasterization, Tensor]] = []

    def record(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        arguments = {name: _held(value) for name, value in call_arguments(original, args, kwargs).items()}
        # The colours are always replaced, and take most of the call's memory.
        arguments.pop("colors")
        for name, value in arguments.items():
            if shared is not None and isinstance(value, Tensor):
                earlier = shared.get(name)
                same = earlier is not None and earlier.shape == value.shape and torch.equal(earlier, value)
                arguments[name] = shared[name] = earlier if earlier is not None and same else value
        rows = _rows(model, len(arguments["means"]))
        calls.append((Rasterization(original, arguments, rows, RENDERED_WINDOW.get()), result[1].detach()))
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
    """Render some of a model's splats only; the others have no opacity."""

    def gate(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        arguments = call_arguments(original, args, kwargs)
        opacities = arguments["opacities"]
        rows = _rows(model, len(arguments["means"]))
        mask = keep if rows is None else keep[rows]
        return original(**{**arguments, "opacities": opacities * mask.to(opacities)})

    return intercepted(model, gate, render)


def _held(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _rows(model: SplatfactoModel, count: int) -> Rows | None:
    """Indices of the rasterised splats, inferred from their count; None for all."""
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
