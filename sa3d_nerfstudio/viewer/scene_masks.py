"""The model's masks, made to be what the user's state says."""

from __future__ import annotations

from dataclasses import replace

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.base import MaskField
from sa3d_nerfstudio.viewer import saved
from sa3d_nerfstudio.viewer.sight import Sight
from sa3d_nerfstudio.viewer.state import ObjectState, SceneState, ViewPrompt


class SceneMasks:
    """Follows a state: lifts what has changed, and puts it where renders see it.

    Args:
        sight: The views, and the model whose masks these are.
        resolution: Of the mask grids.
    """

    def __init__(self, sight: Sight, resolution: int) -> None:
        self.sight = sight
        self.objects = sight.model.masks
        self.resolution = resolution
        self.changes = 0
        """Counts how often the model's masks were changed."""
        self.troubles: list[str] = []
        """What could not be taken over from a run, in sentences, until somebody empties this."""
        self._published: dict[str, MaskField] = {}

    def __getitem__(self, name: str) -> MaskField:
        return self._published[name]

    def taken_over(self) -> SceneState | None:
        """What the model's masks are, with the prompts that came along, if somebody else has changed them."""
        masks = self.objects
        there = {name: masks[name] for name in masks.names}
        if list(there.items()) == list(self._published.items()):
            return None
        self._published = there
        objects = tuple(self._taken_over(name, grid) for name, grid in there.items())
        return SceneState(objects, objects[-1].name if objects else None)

    def _taken_over(self, name: str, grid: MaskField) -> ObjectState:
        masks = self.objects
        thing = ObjectState(name, masks.colors[name], name in masks.hidden)
        known = None
        if not grid.is_empty:
            # A grid that has been loaded would never become finer than it is.
            known = self.sight.model.new_field(self.resolution)
            known.copy_from(grid)
        try:
            prompts, segmented = saved.read(name, masks.prompts.get(name), self.sight)
        except SA3DError as error:
            self.troubles.append(str(error))
            prompts, segmented = (), True
        if not prompts:
            return replace(thing, evidence=known)
        return replace(thing, prompts=prompts, loaded=known if segmented else None)

    def follow(self, before: SceneState, state: SceneState) -> None:
        """Make the model's masks what a state says; objects that do not change keep their grids."""
        kept = {_evidence_of(thing): self._published[thing.name] for thing in before}
        grids = {}
        for thing in state:
            same = kept.get(_evidence_of(thing))
            grids[thing.name] = same if same is not None and not thing.is_empty else self._lifted(thing)
        self.publish(state, grids)

    def preview(self, state: SceneState, name: str, grid: MaskField) -> None:
        """Show what is known of an object by now, while more is being found out."""
        copy = grid.fresh()
        copy.copy_from(grid)
        self.publish(state, {**self._published, name: copy})

    def publish(self, state: SceneState, grids: dict[str, MaskField]) -> None:
        """Put grids where renders see them. They are not changed afterwards: a render may still be at the old ones."""
        hidden = {thing.name for thing in state if thing.hidden}
        prompts = {thing.name: saved.written(thing, self.sight) for thing in state if thing.prompts}
        self.objects.replace(grids, hidden, {thing.name: thing.color for thing in state}, prompts)
        self._published = grids
        self.changes += 1

    def without(self, prompts: tuple[ViewPrompt, ...], total: MaskField) -> MaskField:
        """The evidence of the views that the user has not prompted: the prompted views' own part is taken out.

        All evidence is a sum, so it can be; the published update is none, and is left as it is.
        """
        if self.sight.settings.lifting != "evidence":
            return total
        session = self.sight.session(total.fresh())
        session.given = self.sight.answers(prompts)
        session.lift_prompts(total.fresh())
        evidence = total.fresh()
        # Sharpening has moved what the views said, so that more may be left of the object than of all.
        seen = (total.seen - session.grid.seen).clamp(min=0)
        evidence.set((total.hit - session.grid.hit).clamp(min=0).minimum(seen), seen)
        return evidence

    def _lifted(self, thing: ObjectState) -> MaskField:
        if thing.loaded is not None:
            return thing.loaded
        if thing.evidence is not None and not thing.prompts:
            return thing.evidence
        grid = self.sight.model.new_field(self.resolution)
        if thing.prompts:
            session = self.sight.session(grid)
            session.given = self.sight.answers(thing.prompts)
            session.lift_prompts(thing.evidence)
        return grid


def _evidence_of(thing: ObjectState) -> tuple[object, ...]:
    """What an object's mask follows from."""
    return thing.prompts, thing.evidence, thing.loaded
