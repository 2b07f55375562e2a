"""Values, and going back to earlier ones."""

from __future__ import annotations

import pytest

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.prompts.view_prompt import Mark, ViewPrompt
from sa3d_nerfstudio.viewer.history import History, ObjectState, SceneState

RED, BLUE = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)


def two_objects() -> SceneState:
    return SceneState().adding(ObjectState("cup", RED)).adding(ObjectState("pot", BLUE))


def test_the_newest_object_is_selected():
    state = two_objects()
    assert state.names == ["cup", "pot"]
    assert state.current is not None and state.current.name == "pot"


def test_removing_selects_the_one_before():
    assert two_objects().removing("pot").selected == "cup"
    assert two_objects().removing("cup").selected == "pot"
    assert two_objects().removing("cup").removing("pot") == SceneState()


def test_selecting_what_is_not_there_names_what_is():
    with pytest.raises(SA3DError, match="cup, pot"):
        two_objects().selecting("lid")


def test_a_prompt_replaces_the_one_of_its_view_and_goes_when_empty():
    entry = ObjectState("cup", RED).prompted(ViewPrompt("a", (Mark(0.5, 0.5, True),)))
    entry = entry.prompted(ViewPrompt("b", (Mark(0.1, 0.1, True),)))
    entry = entry.prompted(ViewPrompt("a", (Mark(0.2, 0.2, False),)))
    assert [prompt.view for prompt in entry.prompts] == ["b", "a"]
    assert entry.prompt_in("a").marks == (Mark(0.2, 0.2, False),)
    assert [prompt.view for prompt in entry.prompted(ViewPrompt("a")).prompts] == ["b"]


def test_marks_become_pixels():
    marks = (Mark(0.0, 0.0, True), Mark(0.999, 1.0, True), Mark(0.5, 0.25, False))
    prompt = ViewPrompt("a", marks, (0.25, 0.5, 0.75, 1.0), context=(Mark(0.5, 0.5, True),)).pixels(40, 80)
    assert prompt.positive.tolist() == [[0, 0], [79, 39], [40, 20]]
    assert prompt.negative.tolist() == [[40, 10]]
    assert prompt.box is not None and prompt.box.tolist() == [20, 20, 60, 40]


def test_undo_and_redo_walk_the_same_states():
    history = History()
    states = [SceneState(), SceneState().adding(ObjectState("cup", RED)), two_objects()]
    for state in states[1:]:
        history.push(state)
    history.undo()
    history.undo()
    assert history.present == states[0]
    with pytest.raises(SA3DError, match="nothing to undo"):
        history.undo()
    history.redo()
    history.redo()
    assert history.present == states[2]
    with pytest.raises(SA3DError, match="nothing to redo"):
        history.redo()


def test_a_new_change_forgets_what_was_undone():
    history = History()
    history.push(two_objects())
    history.undo()
    history.push(SceneState().adding(ObjectState("lid", RED)))
    with pytest.raises(SA3DError):
        history.redo()


def test_parts_follow_their_objects_name_and_outlive_it():
    state = SceneState().adding(ObjectState("cup", RED)).adding(ObjectState("handle", BLUE, parent="cup"))
    renamed = state.replacing("cup", ObjectState("mug", RED))
    assert renamed.tree.parents == {"mug": None, "handle": "mug"}
    assert state.removing("cup").tree.parents == {"handle": None}
