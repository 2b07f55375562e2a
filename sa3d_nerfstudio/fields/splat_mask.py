"""The splat mask: evidence per splat of a Gaussian model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from sa3d_nerfstudio.fields.base import FAR_LOGIT, LIGHT_LOGIT, MIN_EVIDENCE, MaskField
from sa3d_nerfstudio.fields.connected_parts import linked_parts

NEIGHBORS_OF_STRAYS = 20
"""Number of neighbours whose mean distance decides whether a splat is stray."""
NEIGHBORS = 5
"""Number of well-seen neighbours that determine the probability of a splat without firm evidence."""
LIGHT_IN_RADIUS = 0.95
"""Share of the object's light that ends within the object's radius."""
REACH = 2.0
"""Largest distance of an object's splats from its middle, in radii of the object."""

STRAY_LIGHT = 0.001
"""A connected part of an object is stray if it has less than this share of the object's light, ..."""
STRAY_SPLAT = 0.2
"""... and its splats, on average, less than this share of the mean over the object's splats: hardly any ray sees it."""

EVIDENCE = ("hit", "seen", "logits")
"""Buffers of the unpacked evidence."""
PACKED = ("packed_rows", "packed_values", "packed_seen")
"""Buffers of the packed evidence."""
STEPS = 8.0
"""Quantisation steps per doubling of ``seen`` in packed fields."""


class SplatMask(MaskField):
    """One cell per splat: the object is a set of splats.

    An object's rays touch few of a scene's splats. A field at :meth:`rest` holds exact numbers for those only, and for
    each other splat a byte, its coarse ``seen``; reading or changing the evidence unpacks it.

    A field that does not change may be read, packed and unpacked by several threads: its buffers are replaced by those
    of the other form in one step.

    Args:
        positions: World positions of the splats, which the model holds, so checkpoints do not store them twice.
    """

    positions: Float[Tensor, "num_cells 3"]
    packed_rows: Int[Tensor, " num_touched"] | None
    """Indices of the splats that the object's rays touch; None unless packed."""
    packed_values: Float[Tensor, "num_touched values"] | None
    """``hit`` and ``seen`` of these splats, and their logits if there are any."""
    packed_seen: UInt8[Tensor, " num_cells"] | None
    """Rounded logarithm of each splat's ``seen``; 0 where there is no evidence."""

    def __init__(self, positions: Float[Tensor, "num_cells 3"]) -> None:
        super().__init__(len(positions))
        self.to(positions.device)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("center", torch.zeros_like(positions[:1].sum(0)))
        for name in PACKED:
            self.register_buffer(name, None)

    @property
    def num_cells(self) -> int:
        """Number of splats."""
        return self.positions.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of the evidence in bytes; the positions are the model's."""
        buffers = self._buffers
        held = (buffers[name] for name in (*EVIDENCE, *PACKED))
        return sum(buffer.numel() * buffer.element_size() for buffer in held if buffer is not None)

    @property
    def is_packed(self) -> bool:
        """Whether the field is at rest."""
        return self._buffers.get("packed_rows") is not None

    def rest(self) -> None:
        """Pack the evidence.

        Unpacking restores it, but ``seen`` of splats that no ray of the object has touched only to a twentieth.
        """
        # A list, since other threads may add to the dictionary.
        derived = list(self._derived.items())
        self._derived = {key: entry for key, entry in derived if entry[1].numel() < self.num_cells}
        buffers = self._buffers
        hit, seen, logits = (buffers[name] for name in EVIDENCE)
        if hit is None or seen is None:
            return
        known = seen > MIN_EVIDENCE
        touched = (hit > 0) & known
        if logits is not None:
            touched |= known & (logits != LIGHT_LOGIT)
        rows = touched.nonzero()[:, 0]
        values = [hit, seen] if logits is None else [hit, seen, logits]
        level = 1 + (STEPS * (seen.clamp(min=MIN_EVIDENCE) / MIN_EVIDENCE).log2()).round()
        packed = {
            "packed_rows": rows.int(),
            "packed_values": torch.stack([value[rows] for value in values], dim=1),
            "packed_seen": torch.where(known, level.clamp(max=255), 0.0).to(torch.uint8),
        }
        # In one step: other threads read, and a render may be interrupted at any line.
        self._buffers = {**buffers, **dict.fromkeys(EVIDENCE), **packed}

    def unpack(self) -> dict[str, Tensor | None]:
        """Unpack the evidence if it is packed, and return it by the names of its buffers."""
        buffers = self._buffers
        rows, values, level = (buffers.get(name) for name in PACKED)
        if rows is None or values is None or level is None:
            return {name: buffers[name] for name in EVIDENCE}
        evidence = self._unpacked(rows, values, level)
        self._buffers = {**buffers, **dict.fromkeys(PACKED), **evidence}
        return evidence

    def _unpacked(self, rows: Tensor, values: Tensor, level: Tensor) -> dict[str, Tensor | None]:
        rows, known = rows.long(), level > 0
        # Rounding must not make a seen splat count as unseen.
        seen = (MIN_EVIDENCE * 2 ** ((level.float() - 1) / STEPS)).clamp(min=1.001 * MIN_EVIDENCE)
        seen = torch.where(known, seen, 0.0).index_copy(0, rows, values[:, 1])
        hit = torch.zeros_like(seen).index_copy(0, rows, values[:, 0])
        logits = None
        if values.shape[1] > 2:
            logits = torch.where(known, LIGHT_LOGIT, 0.0).index_copy(0, rows, values[:, 2])
        return {"hit": hit, "seen": seen, "logits": logits}

    def _highest(self) -> Tensor:
        """Read from the packed values: all other splats are off the object."""
        values = self.packed_values
        if values is None:
            return super()._highest()
        if values.shape[1] == 2:
            return _highest_average(values)
        return values[:, 2].sigmoid().amax() if len(values) else values.new_tensor(0.0)

    def _highest_average(self) -> Tensor:
        """Read from the packed values likewise."""
        values = self.packed_values
        return super()._highest_average() if values is None else _highest_average(values)

    def __getattr__(self, name: str) -> Any:
        """Unpack the evidence where it is read."""
        if name in EVIDENCE and name in self.__dict__.get("_buffers", ()):
            # Not read from the buffer: another thread may pack it again meanwhile.
            return self.unpack()[name]
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Unpack the evidence before a part of it is replaced."""
        if name in EVIDENCE and "_buffers" in self.__dict__ and self.is_packed:
            self.unpack()
        super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Load the evidence as the checkpoint stores it, packed or not."""
        stored = {name: state_dict.get(prefix + name) for name in PACKED}
        packed = {name: values for name, values in stored.items() if isinstance(values, Tensor)}
        self.unpack()
        if len(packed) < len(PACKED):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            return
        self._buffers.update(dict.fromkeys(EVIDENCE))
        for name, values in packed.items():
            self._buffers[name] = torch.empty_like(values, device=self.positions.device)
        nn.Module._load_from_state_dict(self, state_dict, prefix, *args, **kwargs)
        self.version += 1

    def fresh(self) -> SplatMask:
        """A field of the same splats with no evidence."""
        fresh = SplatMask(self.positions)
        fresh.center = self.center.clone()
        return fresh

    def prepare(self, surface: Float[Tensor, "num_points 3"], spacing: float) -> None:
        """Drop all evidence; the object's centre is the median of the points."""
        self.center = surface.median(dim=0).values.to(self.hit)
        self.set(torch.zeros_like(self.hit), torch.zeros_like(self.seen))

    def placed_again(self, spacing: float) -> SplatMask:
        """A field of the same splats with no evidence, centred on the object as segmented so far."""
        fresh = self.fresh()
        points, weights = self.object_points()
        if len(points):
            fresh.center = (points * weights[:, None]).sum(0) / weights.sum().clamp(min=1e-9)
        return fresh

    def resampled(self, place: SplatMask) -> SplatMask:
        """This field: splats have fixed positions."""
        return self

    def copy_from(self, other: SplatMask) -> None:
        """Take over another field's evidence."""
        self.center = other.center.clone()
        self.set(other.hit.clone(), other.seen.clone())
        if other.logits is not None:
            self.set_logits(other.logits.clone())

    def _near(self) -> Bool[Tensor, " num_cells"]:
        """Splats within ``REACH`` radii of the object's middle; the radius holds ``LIGHT_IN_RADIUS`` of its light.

        A splat that floats before a camera, or far behind the object, may be seen through the object's pixels only.
        """
        return self.derived("near", self._find_near)

    def _find_near(self) -> Bool[Tensor, " num_cells"]:
        average = self.average()
        light = torch.where((average > 0.5) & (self.seen > self.firm_evidence()), self.hit, 0.0)
        # All rows on a GPU, where the host would have to wait for a selection.
        rows = slice(None) if light.is_cuda else light.nonzero()[:, 0]
        positions, light = self.positions[rows], light[rows]
        if len(light) == 0:
            return torch.ones_like(self.seen, dtype=torch.bool)
        middle = torch.stack([_quantile(axis, light, 0.5) for axis in positions.T])
        reach = REACH * _quantile((positions - middle).norm(dim=-1), light, LIGHT_IN_RADIUS)
        return ((self.positions - middle).norm(dim=-1) <= reach) | (light.sum() == 0)

    def logits_without_strays(self) -> Float[Tensor, " num_cells"] | None:
        """The logits, limited to ``FAR_LOGIT`` for stray splats: faint connected parts that float beside the object.

        A few rays see such splats through the object's pixels. They make up a ten-thousandth of its light, but show in
        other views, in exports, and in the object's bounds.
        """
        if self.logits is None:
            return None
        rows = ((self.probability() > 0.5) & self._near()).nonzero()[:, 0]
        light = self.hit[rows].double().cpu().numpy()
        parts = linked_parts(self.positions[rows].double().cpu().numpy())
        sums = np.bincount(parts, light, minlength=1)
        usual = sums.sum() / max(len(rows), 1)
        stray = (sums < STRAY_LIGHT * sums.sum()) & (sums < STRAY_SPLAT * usual * np.bincount(parts, minlength=1))
        away = rows[torch.from_numpy(stray[parts]).to(rows.device)]
        return self.logits.index_put((away,), self.logits[away].clamp(max=FAR_LOGIT))

    def object_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], Float[Tensor, " num"]]:
        """World positions of the splats on the object, with the weight of the rays on the object."""
        on = self.object_cells(threshold)
        return self.positions[on], self.hit[on]

    def object_rows(self, threshold: float = 0.5) -> Int[Tensor, " num"]:
        """Indices of the splats of :meth:`object_cells`, in ascending order; cached even while the field is at rest."""
        return self.derived(("object rows", threshold), lambda: _rows(self.object_cells(threshold)))

    def object_weights(self, threshold: float = 0.5) -> Float[Tensor, " num"]:
        """Weight of the rays on the object for each of :meth:`object_rows`."""
        rows = self.object_rows(threshold)
        held, values = self.packed_rows, self.packed_values
        if held is None or values is None:
            return self.hit[rows.long()]
        return values[torch.searchsorted(held, rows), 0]

    def main_points(self, threshold: float = 0.5) -> tuple[Float[Tensor, "num 3"], float]:
        """World positions of the object's splats without stray ones, and half the usual distance of the nearest.

        A splat is stray if its mean distance to its neighbours exceeds the mean of all by three standard deviations.
        """
        points, _ = self.object_points(threshold)
        positions = points.cpu().numpy()
        if len(positions) <= NEIGHBORS_OF_STRAYS:
            return points, 0.0
        neighbors = NearestNeighbors(n_neighbors=NEIGHBORS_OF_STRAYS).fit(positions)
        distances = neighbors.kneighbors(positions)[0]
        distance = distances.mean(axis=1)
        inliers = distance <= distance.mean() + 3 * distance.std()
        # The first is the distance of each splat to itself.
        return points[torch.from_numpy(inliers).to(points.device)], float(np.median(distances[:, 1])) / 2

    def hits(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays pass through the box around the object's splats, occluders ignored."""
        points, _ = self.object_points(threshold)
        if len(points) == 0:
            return torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
        low, high = points.amin(0), points.amax(0)
        margin = 0.02 * (high - low).amax() + 1e-6  # splats have a size, and those of a flat object lie in a plane
        return through_box(torch.stack([low - margin, high + margin]), origins, directions)

    def selected(self, threshold: float = 0.5) -> Bool[Tensor, " num_cells"]:
        """The splats that make up the object, including those without firm evidence.

        Splats within the object's bounds that have too little evidence, such as those beneath its surface, take the
        mean probability of the nearest well-seen splats. No splat beyond the bounds belongs to the object.
        """
        # Rows are cached, not the mask: they stay cached at rest, and finding them takes a search for neighbours.
        rows = self.derived(("selected", threshold), lambda: _rows(self._select(threshold)))
        selected = torch.zeros(self.num_cells, dtype=torch.bool, device=rows.device)
        selected[rows.long()] = True
        return selected

    def _select(self, threshold: float) -> Tensor:
        on = self.object_cells(threshold).clone()
        if not bool(on.any()):
            return on
        low, high = self.positions[on].amin(0), self.positions[on].amax(0)
        within = ((self.positions >= low) & (self.positions <= high)).all(-1)
        firm = self.seen > self.firm_evidence()
        # Neighbours just outside the bounds are background.
        margin = 0.1 * (high - low).max()
        around = ((self.positions >= low - margin) & (self.positions <= high + margin)).all(-1)
        unsure = (within & ~firm).nonzero()[:, 0]
        sure = (around & firm).nonzero()[:, 0]
        if len(unsure):
            search = NearestNeighbors(n_neighbors=min(NEIGHBORS, len(sure))).fit(self.positions[sure].cpu().numpy())
            nearest = search.kneighbors(self.positions[unsure].cpu().numpy(), return_distance=False)
            neighbors = sure[torch.from_numpy(nearest).to(sure.device)]
            on[unsure] = self.probability()[neighbors].mean(-1) > threshold
        return on


def through_box(
    corners: Float[Tensor, "2 3"], origins: Float[Tensor, "*rays 3"], directions: Float[Tensor, "*rays 3"]
) -> Bool[Tensor, "*rays"]:
    """Which rays pass through the box between two corners, or begin in it."""
    # Distances at which each ray crosses the two opposite sides along each axis.
    directions = torch.where(directions.abs() < 1e-9, 1e-9, directions)
    first, second = ((corner - origins) / directions for corner in corners)
    enters, leaves = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
    return (enters <= leaves) & (leaves > 0)


def _highest_average(packed: Float[Tensor, "num_touched values"]) -> Float[Tensor, ""]:
    """Highest ``hit / seen`` of packed values; 0 if there are none."""
    return (packed[:, 0] / packed[:, 1]).amax() if len(packed) else packed.new_tensor(0.0)


def _rows(on: Bool[Tensor, " num_cells"]) -> Int[Tensor, " num"]:
    return on.nonzero()[:, 0].int()


def _quantile(values: Float[Tensor, " num"], weights: Float[Tensor, " num"], share: float) -> Float[Tensor, ""]:
    """The value below which that share of the weights lies; the host does not wait for it."""
    ordered, order = values.sort()
    mass = weights[order].cumsum(0)
    index = torch.searchsorted(mass, share * mass[-1:]).clamp(max=len(values) - 1)
    return ordered[index][0]
