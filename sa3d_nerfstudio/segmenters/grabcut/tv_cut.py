"""Cheapest cut of an image in two: the continuous counterpart of a graph cut.

T. Chan, S. Esedoglu, M. Nikolova, "Algorithms for finding global minimizers of image segmentation and denoising
models", SIAM J. Appl. Math. 2006; solved as in A. Chambolle, T. Pock, "A first-order primal-dual algorithm for convex
problems with applications to imaging", J. Math. Imaging Vis. 2011.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

STEP = 0.35
"""Both step sizes, primal and dual; their product times 8, the squared norm of the gradient, must not exceed 1."""

Stack = Float[np.ndarray, "num height width"]


def tv_cut(unary: Stack, weight: Float[np.ndarray, "height width"], start: Stack, iterations: int) -> Stack:
    """Approach the minimum over u in [0, 1] of ``sum(unary * u) + sum(weight * |grad u|)``, for each image of a stack.

    The problem is convex, and its solution cut at any level is a binary minimiser: u > 0.5 is the cheapest region.

    Args:
        unary: Cost of each pixel in the region; negative for pixels that belong in it.
        weight: Cost of a unit of the region's border at each pixel.
        start: Initial u, in [0, 1].
        iterations: Number of steps.
    """
    u, ahead = start.astype(np.float32), start.astype(np.float32)
    unary = unary.astype(np.float32)
    inverse_weight = (1 / np.maximum(weight, 1e-6)).astype(np.float32)
    flow_x, flow_y = np.zeros_like(u), np.zeros_like(u)
    for _ in range(iterations):
        flow_x[..., :-1] += STEP * (ahead[..., 1:] - ahead[..., :-1])
        flow_y[..., :-1, :] += STEP * (ahead[..., 1:, :] - ahead[..., :-1, :])
        # The flow through a pixel may not exceed its weight.
        excess = np.maximum(np.sqrt(flow_x * flow_x + flow_y * flow_y) * inverse_weight, 1)
        flow_x /= excess
        flow_y /= excess
        step = flow_x + flow_y - unary
        step[..., 1:] -= flow_x[..., :-1]
        step[..., 1:, :] -= flow_y[..., :-1, :]
        moved = np.clip(u + STEP * step, 0, 1)
        ahead = 2 * moved - u
        u = moved
    return u
