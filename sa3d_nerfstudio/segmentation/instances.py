"""Instances that were found in each of several views separately, matched in 3D."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.segmentation.lifting import EvidenceLifting
from sa3d_nerfstudio.segmentation.mask_depth import pixel_spacing, surface_of
from sa3d_nerfstudio.segmentation.self_prompting import agreement, certainty_of
from sa3d_nerfstudio.segmentation.session_views import SessionViews
from sa3d_nerfstudio.segmentation.view_selection import covering_views, focus, view_order

SAME_OBJECT = 0.5
"""Least IoU at which an instance matches the rendered mask of an object, or the rendered masks of two objects match."""


@dataclass
class ObjectInstance:
    """One object, with its masks in the views where it was found."""

    field: MaskField
    """Evidence of these views."""
    masks: dict[int, Bool[Tensor, "height width"]] = dataclasses.field(default_factory=dict)
    """Masks by training view, on the pixels of its trace."""
    score: float = 0.0
    """Sum of its scores in these views."""


def match_instances(
    views: SessionViews,
    instances: Mapping[int, Sequence[tuple[Bool[Tensor, "height width"], float]]],
    new_field: Callable[[], MaskField],
    threshold: float = 0.5,
) -> list[ObjectInstance]:
    """Match the instances of several views that are the same object.

    View after view, instances are assigned to the objects whose rendered masks they agree with best, at most one to
    each (H. Kuhn, "The Hungarian method for the assignment problem", 1955), and are lifted; an instance without a match
    becomes a new object. Objects that prove to be the same, such as the front in one view and the back in another, are
    joined at the end.

    Args:
        views: The training views.
        instances: For each view, masks on the pixels of its trace with their scores; in the order of visiting.
        new_field: Makes an empty field.
        threshold: Probability above which a pixel is on the object.

    Returns:
        Objects, from the highest score to the lowest.
    """
    objects: list[ObjectInstance] = []
    for view, scored in instances.items():
        trace = views.trace(view)
        masks = [(mask.to(trace.depth.device), score) for mask, score in scored if bool(mask.any())]
        agreements = np.zeros((len(masks), len(objects)))
        for column, known_object in enumerate(objects):
            probability, known = _rendered(views, view, known_object.field)
            certainty = certainty_of(trace, known_object.field, known & (probability > threshold))
            for row, (mask, _) in enumerate(masks):
                agreements[row, column] = agreement(mask, probability, known, threshold, certainty)
        rows, columns = linear_sum_assignment(agreements, maximize=True)
        matches = {row: objects[column] for row, column in zip(rows, columns, strict=True)}
        for row, (mask, score) in enumerate(masks):
            matched = matches.get(row)
            if matched is None or agreements[row, columns[list(rows).index(row)]] < SAME_OBJECT:
                matched = ObjectInstance(new_field())
                surface = surface_of(trace, mask, views.pose(view)[:, 3])
                matched.field.prepare(surface, float(pixel_spacing(trace, mask)))
                objects.append(matched)
            _add(matched, views, view, mask, score)
    return sorted(_joined(views, objects, list(instances), threshold), key=lambda each: -each.score)


def spread_views(views: SessionViews, count: int) -> list[int]:
    """Training views from all around the point that the cameras look at, each near to one before it."""
    poses = views.training.camera_to_worlds
    center = focus(poses)
    chosen = covering_views(poses, center, [], min(count, len(poses)))
    order = view_order(poses[chosen], center, [0])
    return [chosen[0], *(chosen[index] for index in order)]


def _add(
    instance: ObjectInstance, views: SessionViews, view: int, mask: Bool[Tensor, "height width"], score: float
) -> None:
    EvidenceLifting(instance.field).add(views.trace(view), mask.reshape(-1))
    instance.masks[view] = mask
    instance.score += score


def _rendered(
    views: SessionViews, view: int, mask_field: MaskField
) -> tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]:
    trace = views.trace(view)
    probability, known = EvidenceLifting(mask_field).render(trace)
    return probability.reshape(trace.height, trace.width), known.reshape(trace.height, trace.width)


def _joined(
    views: SessionViews, objects: list[ObjectInstance], visited: list[int], threshold: float
) -> list[ObjectInstance]:
    """Join objects that have no view in common and whose rendered masks agree."""
    while True:
        pair = next((pair for pair in combinations(objects, 2) if _are_same(views, *pair, visited, threshold)), None)
        if pair is None:
            return objects
        first, second = sorted(pair, key=lambda each: -each.score)
        for view, mask in second.masks.items():
            _add(first, views, view, mask, 0.0)
        first.score += second.score
        objects = [instance for instance in objects if instance is not second]


def _are_same(
    views: SessionViews, first: ObjectInstance, second: ObjectInstance, visited: list[int], threshold: float
) -> bool:
    if first.masks.keys() & second.masks.keys():
        return False
    shared = union = 0
    for view in visited:
        first_rendered, second_rendered = (_rendered(views, view, instance.field) for instance in (first, second))
        known = first_rendered[1] & second_rendered[1]
        a, b = (known & (probability > threshold) for probability, _ in (first_rendered, second_rendered))
        shared, union = shared + int((a & b).sum()), union + int((a | b).sum())
    return union > 0 and shared / union >= SAME_OBJECT
