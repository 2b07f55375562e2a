"""Connected parts of a region of pixels or cells, and of clouds of points."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

ROUNDS = 24
"""Rounds of :func:`label_parts_on_device`: parts join their neighbours in each, so they at least double in size."""
SPACING_NEIGHBOR = 4
"""Rank of the neighbour whose median distance is the usual spacing of a cloud of points."""
LINK = 4.0
"""Largest distance between linked points, in usual spacings."""


def label_parts(region: NDArray[np.bool_]) -> tuple[NDArray[np.int32], int]:
    """Number the connected parts of a region of any dimension; cells that touch at a corner are connected.

    Returns:
        The number of the part that each cell belongs to, from 1 (0 outside the region); and the number of parts.
    """
    labels: Any = ndimage.label(region, structure=np.ones((3,) * region.ndim))
    return labels


def label_parts_on_device(regions: Bool[Tensor, "*batch x y z"]) -> Int[Tensor, "*batch x y z"]:
    """Label the connected parts of several regions, without a wait for the device.

    Like :func:`label_parts`, for regions on a GPU. Parts hook onto their neighbours and point to their roots
    (Y. Zhang, A. Azad, Z. Hu, "FastSV", SIAM PP 2020), in a fixed number of rounds.

    Returns:
        For each cell, the lowest flat index of its part's cells, counted through all regions; outside of a region, the
        index of the cell.
    """
    count, shape = regions.numel(), regions.shape
    images = regions.reshape(-1, 1, *shape[-3:])
    # Flat indices are whole numbers that single precision holds, up to 2^24.
    exact = torch.float32 if count <= 2**24 else torch.float64
    inside, outside = regions.reshape(-1), torch.full((), float(count), dtype=exact, device=regions.device)
    parent = torch.arange(count, device=regions.device)
    for _ in range(ROUNDS):
        root = parent[parent]
        lowest = -F.max_pool3d(-torch.where(images, root.reshape(images.shape).to(exact), outside), 3, 1, 1)
        lowest = torch.where(inside, lowest.reshape(-1).long(), root)
        parent = parent.scatter_reduce(0, parent, lowest, "amin")
        parent = torch.minimum(torch.minimum(parent, lowest), root)
    return parent[parent].reshape(shape)


def large_parts(region: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """The parts of a region that have at least this share of the largest part's cells."""
    labels, _ = label_parts(region)
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    return (sizes >= share * sizes.max())[labels] & region


def linked_parts(places: Float[np.ndarray, "num 3"]) -> Int[np.ndarray, " num"]:
    """Number the parts of a cloud of points, between which distances exceed ``LINK`` times the usual spacing.

    Args:
        places: Positions of the points, in any frame.

    Returns:
        The number of the part that each point belongs to, from 0.
    """
    if len(places) <= SPACING_NEIGHBOR:
        return np.zeros(len(places), dtype=np.int32)
    usual = max(float(np.median(KDTree(places).query(places, SPACING_NEIGHBOR + 1)[0][:, SPACING_NEIGHBOR])), 1e-9)
    # Points in boxes that touch are linked, wherever they lie in them: this joins most points, with few pairs.
    boxes, _, box = _boxes(places, LINK * usual / (2 * 3**0.5))
    part = _components(KDTree(boxes).query_pairs(1.5, p=np.inf, output_type="ndarray"), len(boxes))[box]
    # Distances are compared of one point per smaller box, and within the largest part of none.
    _, chosen, _ = _boxes(places, usual / 2)
    on_largest = part[chosen] == np.bincount(part).argmax()
    largest, others = chosen[on_largest], chosen[~on_largest]
    pairs = others[KDTree(places[others]).query_pairs(LINK * usual, output_type="ndarray")]
    answer: Any = KDTree(places[largest]).query(places[others], distance_upper_bound=LINK * usual)
    distance, nearest = answer
    near = np.isfinite(distance)
    to_largest = np.stack([others[near], largest[nearest[near]]], axis=-1)
    return _components(part[np.concatenate([pairs, to_largest])], part.max() + 1)[part]


def _boxes(
    places: Float[np.ndarray, "num 3"], side: float
) -> tuple[Float[np.ndarray, "boxes 3"], Int[np.ndarray, " boxes"], Int[np.ndarray, " num"]]:
    """Occupied boxes of a side length: their positions in boxes, a point of each, and the box of each point."""
    boxes, chosen, box = np.unique(
        np.floor((places - places.min(axis=0)) / side), axis=0, return_index=True, return_inverse=True
    )
    return boxes, chosen, box.reshape(-1)


def _components(pairs: Int[np.ndarray, "pairs 2"], count: int) -> Int[np.ndarray, " count"]:
    """Number of the component of each of so many nodes, from 0."""
    links = coo_array((np.ones(len(pairs), dtype=bool), tuple(pairs.T)), shape=(count, count))
    labels: Any = connected_components(links, directed=False)[1]
    return labels
