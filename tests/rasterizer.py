"""A slow, plain PyTorch rasteriser of Gaussians, as a stand-in for gsplat's CUDA kernels.

Projection and spherical harmonics are gsplat's PyTorch versions; compositing is written out: the pixels of a tile
composite all splats that reach the tile, in the order of depth. The formulas are those of 3D Gaussian Splatting (arXiv
2308.04079, eq. 2 and 3) with the constants of gsplat: alphas below 1/255 are skipped and none exceeds 0.999, and a
pixel is finished before its transmittance falls to 1e-4.
"""

from __future__ import annotations

from typing import Any

import torch
from gsplat.cuda import _torch_impl as twins
from torch import Tensor

TILE = 8
"""Pixels along each side of a tile."""


def fully_fused_projection(
    means: Tensor,
    covars: Tensor | None,
    quats: Tensor | None,
    scales: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    eps2d: float = 0.3,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    packed: bool = False,
    sparse_grad: bool = False,
    calc_compensations: bool = False,
    camera_model: Any = "pinhole",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Stand-in for gsplat's projection: radii, centres, depths and conics of the splats in an image."""
    if covars is None:
        assert quats is not None and scales is not None
        covars = twins._quat_scale_to_covar_preci(quats, scales, True, False)[0]
    assert covars is not None and not packed
    return twins._fully_fused_projection(
        means, covars, viewmats, Ks, width, height, eps2d, near_plane, far_plane, calc_compensations, camera_model
    )


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: Any = "pinhole",
    covars: Tensor | None = None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Stand-in for ``gsplat.rasterization`` with one camera: [1, H, W, D] colours, [1, H, W, 1] alphas, and meta."""
    assert len(viewmats) == 1
    assert colors.shape[0] == len(means)
    radii, means2d, depths, conics, compensations = fully_fused_projection(
        means, covars, quats, scales, viewmats, Ks, width, height, eps2d, near_plane, far_plane,
        calc_compensations=rasterize_mode == "antialiased", camera_model=camera_model,
    )  # fmt: skip
    if means2d.requires_grad:
        means2d.retain_grad()
    opacities = opacities[None] * (1 if compensations is None else compensations)
    if sh_degree is not None:
        eye = torch.inverse(viewmats)[0, :3, 3]
        colors = (twins._spherical_harmonics(sh_degree, means - eye, colors) + 0.5).clamp(min=0)
    if render_mode.startswith("RGB+"):
        colors = torch.cat([colors, depths[0, :, None]], dim=-1)
    elif render_mode != "RGB":
        colors = depths[0, :, None]

    order = depths[0].argsort()
    order = order[radii[0, order] > 0]
    x0, y0, x1, y1 = _bounds(means2d[0, order], conics[0, order], opacities[0, order]).unbind(-1)
    rows, pixels = [], []
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            in_tile = order[(x1 >= left) & (x0 <= right) & (y1 >= top) & (y0 <= bottom)]
            y, x = torch.meshgrid(torch.arange(top, bottom), torch.arange(left, right), indexing="ij")
            delta = torch.stack([x, y], dim=-1).reshape(-1, 1, 2).to(means) + 0.5 - means2d[0, in_tile]
            weights = _weights(delta, conics[0, in_tile], opacities[0, in_tile])
            rows.append(torch.cat([weights @ colors[in_tile], weights.sum(-1, keepdim=True)], dim=-1))
            pixels.append((y * width + x).reshape(-1))
    composited = torch.cat(rows)[torch.cat(pixels).argsort()]
    image, alphas = composited[:, :-1], composited[:, -1:]
    if backgrounds is not None:
        image = image + (1 - alphas) * backgrounds
    if render_mode.endswith("ED"):
        image = torch.cat([image[:, :-1], image[:, -1:] / alphas.clamp(min=1e-10)], dim=-1)
    meta = {
        "camera_ids": None, "gaussian_ids": None, "radii": radii, "means2d": means2d, "depths": depths,
        "conics": conics, "opacities": opacities, "width": width, "height": height, "n_cameras": 1,
        "tile_size": tile_size,
    }  # fmt: skip
    return image.reshape(1, height, width, -1), alphas.reshape(1, height, width, 1), meta


def _bounds(means2d: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Left, top, right and bottom [splats, 4] of the ellipses outside which alphas are below 1/255, with a margin."""
    a, b, c = conics.detach().unbind(-1)
    level = 2 * (255 * opacities.detach()).clamp(min=1).log() / (a * c - b * b).clamp(min=1e-12)
    reach = 1.001 * torch.stack([level * c, level * a], dim=-1).sqrt() + 0.01
    return torch.cat([means2d.detach() - reach, means2d.detach() + reach], dim=-1)


def _weights(delta: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """Weight of each splat in each pixel [pixels, splats], with the splats in the order of depth."""
    a, b, c = conics.unbind(-1)
    sigma = 0.5 * (a * delta[..., 0] ** 2 + c * delta[..., 1] ** 2) + b * delta[..., 0] * delta[..., 1]
    alpha = (opacities * torch.exp(-sigma)).clamp(max=0.999)
    alpha = torch.where((sigma >= 0) & (alpha >= 1 / 255), alpha, 0.0)
    after = torch.cumprod(1 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)
    return torch.where(after > 1e-4, alpha * before, 0.0)
