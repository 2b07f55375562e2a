"""The objects of a run: named, shown or hidden, each with a mask field."""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sa3d_nerfstudio.fields.base import MaskField

PALETTE = (
    (1.0, 0.45, 0.0),
    (0.1, 0.65, 1.0),
    (0.75, 0.3, 0.95),
    (0.2, 0.8, 0.35),
    (1.0, 0.25, 0.5),
    (0.95, 0.85, 0.15),
)
"""Colours that mark objects, in the order in which they are made."""
GOLDEN_RATIO = 0.618034
"""Distance between the hues of successive further colours, as a share of the circle: hundreds are all different."""


def next_color(used: Collection[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The colour of a further object: the first unused one of :data:`PALETTE`, or else a new hue."""
    free = [color for color in PALETTE if color not in used]
    if free:
        return free[0]
    number = len(used)
    return colorsys.hsv_to_rgb(number * GOLDEN_RATIO % 1.0, (0.9, 0.65)[number % 2], (1.0, 0.8)[number // 2 % 2])


class MaskObjects(nn.Module):
    """Named objects in the order in which they were made. Saved in, and restored from, any checkpoint.

    Args:
        make_field: Makes an empty field of a number of cells on the model's device, of the kind that fits the model.
    """

    def __init__(self, make_field: Callable[[int], MaskField]) -> None:
        super().__init__()
        self._make_field = make_field
        self.fields = nn.ModuleDict()
        self.threshold = 0.5
        """Probability above which a cell or ray belongs to an object."""
        self.hidden: set[str] = set()
        self.colors: dict[str, tuple[float, float, float]] = {}
        self.prompts: dict[str, Any] = {}
        """The prompts of each object, in a form that checkpoints hold; see segmentation/saved_prompts.py."""
        self.finished: dict[str, str] = {}
        """Checksum of prompts and settings of each object that a job has finished."""
        self.parents: dict[str, str | None] = {}
        """Parent of each object with a known place in the tree, None for roots; see fields/object_tree.py."""
        self.scene: dict[str, Any] = {}
        """State of a whole-scene segmentation, to resume it; see jobs.py. Plain lists and strings."""

    def __len__(self) -> int:
        return len(self.fields)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> MaskField:
        return self.fields[_key(name)]  # type: ignore[return-value]

    def __setitem__(self, name: str, field: MaskField) -> None:
        self.fields[_key(name)] = field
        # All but the colour belongs to the object that was replaced.
        self.prompts.pop(name, None)
        self.finished.pop(name, None)
        self.hidden.discard(name)
        self.parents.pop(name, None)
        if name not in self.colors:
            self.colors[name] = next_color(list(self.colors.values()))

    def __delitem__(self, name: str) -> None:
        del self.fields[_key(name)]
        self.finished.pop(name, None)
        self.hidden.discard(name)
        del self.colors[name]
        self.prompts.pop(name, None)
        grandparent = self.parents.pop(name, None)
        self.parents = {child: grandparent if parent == name else parent for child, parent in self.parents.items()}

    def replace(
        self,
        fields: Mapping[str, MaskField],
        hidden: set[str],
        colors: Mapping[str, tuple[float, float, float]],
        prompts: Mapping[str, Any],
        parents: Mapping[str, str | None] | None = None,
    ) -> None:
        """Replace all objects by these, in this order; without ``parents``, remaining objects keep their parents."""
        if parents is not None:
            self.parents = dict(parents)
        for name in set(self.parents) - set(fields):
            grandparent = self.parents.pop(name)
            self.parents = {child: grandparent if parent == name else parent for child, parent in self.parents.items()}
        # Published fields never change: objects with other fields have been edited.
        unchanged = {_name(key) for key, field in self.fields.items() if fields.get(_name(key)) is field}
        self.finished = {name: job for name, job in self.finished.items() if name in unchanged}
        self.fields = nn.ModuleDict({_key(name): field for name, field in fields.items()})
        self.hidden, self.colors, self.prompts = set(hidden), dict(colors), dict(prompts)

    @property
    def names(self) -> list[str]:
        """Names of all objects."""
        return [_name(key) for key in self.fields]

    @property
    def shown(self) -> list[MaskField]:
        """Fields of the objects that are not hidden and have any cell above the threshold."""
        return [field for field, _ in self.shown_colored]

    @property
    def shown_colored(self) -> list[tuple[MaskField, tuple[float, float, float]]]:
        """Fields of the objects that are not hidden and have any cell above the threshold, with their colours."""
        # Read once: the viewer may replace all objects while another thread renders.
        fields, hidden, colors = self.fields, self.hidden, self.colors
        names = [(key, _name(key)) for key in fields]
        shown = [(fields[key], colors.get(name, PALETTE[0])) for key, name in names if name not in hidden]
        return [
            (field, color)
            for field, color in shown
            if isinstance(field, MaskField) and field.holds_object(self.threshold)
        ]

    def probability_at(self, positions: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 1"]:
        """Probability that a world position belongs to any object shown."""
        result = torch.zeros_like(positions[..., :1])
        for field in self.shown:
            result = torch.maximum(result, field.probability_at(positions, self.threshold))
        return result

    def hits(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays pass through a shown object."""
        result = torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
        for field in self.shown:
            result |= field.hits(origins, directions, threshold)
        return result

    def may_show(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"], threshold: float = 0.5
    ) -> Bool[Tensor, " num_rays"]:
        """Which rays would show a shown object without occluders."""
        result = torch.zeros(len(origins), dtype=torch.bool, device=origins.device)
        for field in self.shown:
            result |= field.may_show(origins, directions, threshold)
        return result

    def get_extra_state(self) -> dict[str, Any]:
        """State of a checkpoint besides the evidence, in plain lists and strings, so that it loads weights-only."""
        colors = {name: list(self.colors[name]) for name in self.names}
        finished = {name: self.finished[name] for name in self.names if name in self.finished}
        return {
            "names": self.names,
            "hidden": sorted(self.hidden),
            "colors": colors,
            "prompts": self.prompts,
            "finished": finished,
            "parents": {name: self.parents[name] for name in self.names if name in self.parents},
            "scene": self.scene,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore names, colours and prompts; evidence comes with the tensors."""
        self.hidden = set(state["hidden"])
        # Prompts are checked where they are used: masks are valid without them.
        prompts = state.get("prompts")
        self.prompts = dict(prompts) if isinstance(prompts, dict) else dict.fromkeys(self.names, prompts)
        self.colors.update({name: tuple(color) for name, color in state.get("colors", {}).items()})
        self.finished = dict(state.get("finished", {}))
        self.parents = dict(state.get("parents", {}))
        self.scene = dict(state.get("scene", {}))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Make the checkpoint's fields, before torch fills them."""
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is not None:
            self.fields, self.colors, self.prompts = nn.ModuleDict(), {}, {}
            for name in extra["names"]:
                start = f"{prefix}fields.{_key(name)}."
                # Fields of splats may be packed; see fields/splat_mask.py.
                cells = state_dict[start + ("hit" if start + "hit" in state_dict else "packed_seen")]
                self[name] = self._make_field(cells.shape[0])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(name: str) -> str:
    """Module name of an object, with dots escaped: torch does not allow them in module names."""
    return "object:" + name.replace("%", "%25").replace(".", "%2E")


def _name(key: str) -> str:
    return key.removeprefix("object:").replace("%2E", ".").replace("%25", "%")
