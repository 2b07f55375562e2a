"""What the Segment panel does, without a screen, on a scene whose answer is known exactly."""

from __future__ import annotations

import copy
import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from sa3d_nerfstudio.errors import SA3DError
from sa3d_nerfstudio.fields.mask_grid import MaskGrid
from sa3d_nerfstudio.prompts.prompt import Prompt
from sa3d_nerfstudio.segmentation.saved_prompts import write_session_prompts
from sa3d_nerfstudio.segmentation.session_views import FreeView
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.text import TextOptions
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability
from sa3d_nerfstudio.viewer.editor import Editor
from sa3d_nerfstudio.viewer.free_views import FreeViews
from sa3d_nerfstudio.views.cache import ViewCache
from tests.analytic import BallViews
from tests.small_models import camera, masked, small_model
from tests.tiny_dino import save_tiny_dino


class ColorSegmenter:
    """Finds what has the colour of the first positive point, and not that of a negative one: less, all, and more."""

    def __init__(self) -> None:
        self.embedded: list[str] = []

    def embed(self, image: SegmenterImage) -> Tensor:
        self.embedded.append(image.name)
        return image.rgb[..., 0]

    def predict(self, embedding: Tensor, prompt: Prompt) -> Candidates:
        on = torch.zeros_like(embedding, dtype=torch.bool)
        for x, y in prompt.positive.long().tolist():
            on |= embedding == embedding[y, x]
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box.long().tolist()
            inside = torch.zeros_like(on)
            inside[y0:y1, x0:x1] = True
            on |= inside & (embedding > 0)
        for x, y in prompt.negative.long().tolist():
            on &= embedding != embedding[y, x]
        more = F.max_pool2d(on[None].float(), 5, 1, 2)[0] > 0
        less = ~(F.max_pool2d((~on)[None].float(), 5, 1, 2)[0] > 0)
        return Candidates(torch.stack([on, more, less]), torch.tensor([0.9, 0.5, 0.4]))


class ViewsOfBalls(BallViews):
    """The balls, seen by the training cameras and, from elsewhere, by the viewer's."""

    def __init__(self) -> None:
        super().__init__(count=8)
        self.lock = None
        self.cache = ViewCache(budget=1 << 30)
        self.elsewhere = BallViews(count=3, distance=2.6)

    def key(self, view: int) -> str:
        return self.name(view)

    def picture_key(self, view: int, side: int | None = None) -> str:
        return self.key(view)

    def find(self, view: str) -> int:
        names = [self.name(index) for index in range(len(self))]
        if view not in names:
            raise SA3DError("there is none of that name")
        return names.index(view)


@pytest.fixture
def views() -> ViewsOfBalls:
    return ViewsOfBalls()


@pytest.fixture
def editor(views: ViewsOfBalls) -> Editor:
    return bench_on(views)


def bench_on(views: ViewsOfBalls, masks: dict[str, Any] | None = None, looked: bool = True, **settings: Any) -> Editor:
    """A workbench on the balls.

    Args:
        views: The views.
        masks: State of a model's masks that a run comes with.
        looked: Whether somebody has looked through the viewer's cameras already.
        settings: Of the sessions.
    """
    model = masked(small_model("nerfacto"))
    if masks is not None:
        model.masks.load_state_dict(masks)
    free_views = BallFreeViews(model, views, ColorSegmenter, SessionSettings(max_passes=2, **settings))  # type: ignore[arg-type]
    for view in range(3):
        free_views.cameras[f"view {view}"] = viewer_camera(views, view)
        if looked:
            free_views.trace(f"view {view}")
    return Editor(free_views, resolution=64)


def viewer_camera(views: ViewsOfBalls, view: int) -> Cameras:
    height, width, pose = views.elsewhere.height, views.elsewhere.width, views.elsewhere.camera_to_worlds[view]
    return Cameras(
        pose[None], fx=float(width), fy=float(width), cx=width / 2, cy=height / 2, height=height, width=width
    )


class BallFreeViews(FreeViews):
    """The viewer's cameras see the balls, and not what an untrained model renders."""

    def trace(self, name: str) -> ViewTrace:
        if name in self.cameras and name not in self.free:
            view = int(name.split()[1])
            elsewhere = cast(ViewsOfBalls, self.views).elsewhere
            self.free[name] = FreeView(elsewhere.trace(view), elsewhere.camera_to_worlds[view])
        return super().trace(name)


def click(editor: Editor, views: ViewsOfBalls, ball: int, view: int = 0, on: bool = True) -> None:
    y, x = (views.elsewhere.ids(view) == ball).nonzero().float().mean(0).tolist()
    editor.mark(f"view {view}", (x + 0.5) / views.elsewhere.width, (y + 0.5) / views.elsewhere.height, on)


def iou(editor: Editor, views: BallViews, view: int, balls: list[int], name: str = "object") -> float:
    probability = render_probability(views.trace(view), editor.model.masks[name])[0]
    mask = probability.reshape(views.height, views.width) > 0.5
    truth = torch.isin(views.ids(view), torch.tensor(balls))
    return float((mask & truth).sum() / (mask | truth).sum())


def test_a_click_makes_an_object_and_lights_it_up(editor: Editor, views: ViewsOfBalls):
    plain = editor.picture("view 0")
    click(editor, views, 1)
    assert editor.state.names == ["object"]
    assert iou(editor, views.elsewhere, 0, [1]) > 0.95
    changed = (editor.picture("view 0") - plain).abs().sum(-1) > 0.05
    truth = views.elsewhere.ids(0) == 1
    assert (changed & truth).sum() / (changed | truth).sum() > 0.95


def test_the_first_lifting_is_three_dimensional_already(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    # From a third of the ring away, the half that was seen is where it should be.
    probability = render_probability(views.elsewhere.trace(1), editor.model.masks["object"])[0].reshape(48, 64)
    truth = views.elsewhere.ids(1) == 1
    assert (probability > 0.5)[truth].float().mean() > 0.2
    assert (probability > 0.5)[~truth].float().mean() < 0.02


def test_markers_lie_on_the_object(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    click(editor, views, 2, on=False)
    (first, first_on), (second, second_on) = editor.markers()
    assert (first_on, second_on) == (True, False)
    assert abs(math.dist(first, (0.0, 0.0, 0.3)) - 0.3) < 0.12
    assert abs(math.dist(second, (0.5, 0.0, 0.2)) - 0.2) < 0.12


def test_a_view_is_embedded_once(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    click(editor, views, 1)
    click(editor, views, 2, on=False)
    editor.undo()
    segmenter = editor.free_views.segmenter
    assert isinstance(segmenter, ColorSegmenter) and segmenter.embedded == ["view 0"]


def test_undo_and_redo_bring_back_the_very_masks(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    item = editor.model.masks["object"].hit.clone()
    click(editor, views, 2)
    two = editor.model.masks["object"].hit.clone()
    assert iou(editor, views.elsewhere, 0, [1, 2]) > 0.9
    editor.undo()
    assert torch.equal(editor.model.masks["object"].hit, item)
    editor.redo()
    assert torch.equal(editor.model.masks["object"].hit, two)
    editor.undo()
    editor.undo()
    assert editor.model.masks.names == []
    with pytest.raises(SA3DError, match="nothing to undo"):
        editor.undo()


def test_candidates_go_from_small_to_large(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    assert editor.may_choose
    areas = []
    for candidate in range(3):
        editor.choose(candidate)
        answer = editor.free_views.answer(editor.state.objects[0].prompts[0])
        # Other views follow what is picked, and not the segmenter's favourite.
        assert answer.picked
        areas.append(int(answer.mask.sum()))
    assert areas == sorted(areas) and areas[0] < areas[2]


def test_a_scribble_is_joined(editor: Editor, views: ViewsOfBalls):
    editor.mark("view 0", 0.4, 0.5, True, joined=True)
    editor.mark("view 0", 0.6, 0.5, True, joined=True)
    marks = editor.state.objects[0].prompts[0].marks
    assert len(marks) == 6
    assert [round(mark.x, 2) for mark in marks] == [0.4, 0.44, 0.48, 0.52, 0.56, 0.6]


def test_a_box_selects_what_is_in_it(editor: Editor, views: ViewsOfBalls):
    ys, xs = (views.elsewhere.ids(0) == 3).nonzero().unbind(-1)
    low, high = (int(xs.min()), int(ys.min())), (int(xs.max()) + 1, int(ys.max()) + 1)
    editor.draw_box("view 0", low[0] / 64, low[1] / 48, high[0] / 64, high[1] / 48)
    assert iou(editor, views.elsewhere, 0, [3]) > 0.85
    with pytest.raises(SA3DError, match="drag"):
        editor.draw_box("view 0", 0.5, 0.5, 0.5, 0.5)


def test_a_prompt_that_selects_nothing_changes_nothing(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    before = editor.state
    with pytest.raises(SA3DError, match="selects nothing"):
        click(editor, views, 1, on=False)
    assert editor.state is before
    assert iou(editor, views.elsewhere, 0, [1]) > 0.95


def test_a_first_prompt_that_selects_nothing_leaves_no_object(editor: Editor, views: ViewsOfBalls):
    with pytest.raises(SA3DError, match="selects nothing in view 0"):
        click(editor, views, 1, on=False)
    assert editor.state.names == [] == editor.model.masks.names
    with pytest.raises(SA3DError, match="nothing to undo"):
        editor.undo()


def test_segmenting_finds_the_whole_and_can_be_undone(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    steps = list(editor.segment())
    assert (steps[-1].number_of_pass, steps[-1].done, steps[-1].total) == (2, 9, 9)
    assert steps[-1].rejected == 0
    for view in range(3):
        assert iou(editor, views.elsewhere, view, [1]) > 0.9
    editor.undo()
    assert iou(editor, views.elsewhere, 1, [1]) < 0.8
    editor.redo()
    assert iou(editor, views.elsewhere, 1, [1]) > 0.9


@pytest.mark.parametrize(("weight", "wins"), [(1.0, True), (0.01, False)])
def test_a_correction_outweighs_the_views(views: ViewsOfBalls, weight: float, wins: bool):
    editor = bench_on(views, correction_weight=weight, prompt_weight=0.1)
    click(editor, views, 1)
    list(editor.segment())
    # Eight views have said that this ball is something else.
    click(editor, views, 2, view=1)
    rendered = render_probability(views.elsewhere.trace(1), editor.model.masks["object"])[0].reshape(48, 64) > 0.5
    ids = views.elsewhere.ids(1)
    assert (float(rendered[ids == 2].float().mean()) > 0.6) == wins
    # What was known stays: the click in a new view comes with points of the mask as it was.
    assert rendered[ids == 1].float().mean() > 0.9
    assert editor.state.objects[0].prompts[-1].context


def test_a_negative_point_takes_away(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    click(editor, views, 2)
    assert iou(editor, views.elsewhere, 0, [1, 2]) > 0.9
    click(editor, views, 2, on=False)
    assert iou(editor, views.elsewhere, 0, [1]) > 0.9


def test_the_threshold_of_a_running_session_stays(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    session = editor.free_views.session(MaskGrid(16), editor.state.objects[0].prompts)
    before = session.settings.threshold
    editor.settings.threshold = 0.9
    assert session.settings.threshold == before != 0.9


def test_stopping_keeps_what_is_there(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    steps = editor.segment(live_every=0.0)
    shown = editor.masks.changes
    for progress in steps:
        if progress.done == 4:
            break
    assert editor.masks.changes > shown
    steps.close()
    current = editor.state.current
    assert current is not None and current.is_segmented and not editor.model.masks["object"].is_empty
    assert iou(editor, views.elsewhere, 0, [1]) > 0.9
    editor.undo()
    assert not editor.state.objects[0].is_segmented


def test_segmenting_fits_the_field_and_a_click_goes_back_to_averages(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    assert editor.model.masks["object"].logits is None
    list(editor.segment())
    fitted = editor.model.masks["object"]
    assert fitted.logits is not None and iou(editor, views.elsewhere, 0, [1]) > 0.9
    click(editor, views, 2, view=1)
    assert editor.model.masks["object"].logits is None
    editor.undo()
    assert editor.model.masks["object"] is fitted
    editor.redo()
    list(editor.segment())
    assert editor.model.masks["object"].logits is not None


def test_objects_have_names_colors_and_masks_of_their_own(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    editor.rename("big ball")
    editor.add_object()
    click(editor, views, 3)
    assert editor.model.masks.names == ["big ball", "object 2"]
    assert len(set(editor.model.masks.colors.values())) == 2
    assert iou(editor, views.elsewhere, 0, [1], "big ball") > 0.95
    assert iou(editor, views.elsewhere, 0, [3], "object 2") > 0.9
    with pytest.raises(SA3DError, match="already"):
        editor.rename("big ball")
    with pytest.raises(SA3DError, match="needs a name"):
        editor.rename("  ")
    editor.select("big ball")
    editor.delete()
    assert editor.model.masks.names == ["object 2"]
    editor.undo()
    assert iou(editor, views.elsewhere, 0, [1], "big ball") > 0.95


def test_solo_shows_one(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    editor.add_object()
    click(editor, views, 3)
    shown = views.elsewhere.trace(0)
    editor.solo(True)
    alone = editor.model.render_mask(shown).reshape(48, 64) > 0.5
    assert alone[views.elsewhere.ids(0) == 3].float().mean() > 0.9
    assert not alone[views.elsewhere.ids(0) == 1].any()
    editor.solo(False)
    both = editor.model.render_mask(shown).reshape(48, 64) > 0.5
    assert both[views.elsewhere.ids(0) == 1].float().mean() > 0.9


def test_clear_begins_again(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    list(editor.segment())
    editor.clear()
    assert editor.model.masks["object"].is_empty and editor.markers() == []
    editor.undo()
    assert iou(editor, views.elsewhere, 1, [1]) > 0.9


def test_objects_of_a_loaded_run_are_taken_over(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    list(editor.segment())
    editor.add_object()
    click(editor, views, 3)
    editor.show({"object 2"})
    again = bench_on(views, masks=editor.model.masks.state_dict())
    assert [(entry.name, entry.hidden, entry.color) for entry in again.state] == [
        (entry.name, entry.hidden, entry.color) for entry in editor.state
    ]
    assert iou(again, views.elsewhere, 1, [1]) > 0.9


def test_prompts_come_back_with_the_run(views: ViewsOfBalls):
    editor = bench_on(views)
    click(editor, views, 1)
    click(editor, views, 1, view=1)
    list(editor.segment())
    editor.draw_box("view 2", 0.1, 0.2, 0.9, 1.2)
    editor.choose(0)
    again = bench_on(views, masks=editor.model.masks.state_dict(), looked=False)
    assert again.state.objects[0].prompts == editor.state.objects[0].prompts
    assert again.markers() == editor.markers() and len(again.markers()) == 2
    assert again.state.objects[0].prompts[-1].choice is not None and again.may_choose
    assert not again.free_views.free, "nothing is rendered before it is needed"


def test_a_loaded_object_is_refined_as_if_it_had_never_been_saved(views: ViewsOfBalls):
    editor = bench_on(views)
    click(editor, views, 1)
    list(editor.segment())
    again = bench_on(views, masks=editor.model.masks.state_dict(), looked=False)
    for each in (editor, again):
        click(each, views, 2, view=1)
    item, other = editor.model.masks["object"], again.model.masks["object"]
    assert torch.allclose(item.hit, other.hit, atol=1e-4) and torch.allclose(item.seen, other.seen, atol=1e-4)
    again.undo()
    assert torch.equal(again.model.masks["object"].hit, again.state.objects[0].total.hit)  # type: ignore[union-attr]
    assert len(list(again.segment())) > 8


def test_prompts_in_training_views_come_back(views: ViewsOfBalls):
    session = bench_on(views).free_views.session(MaskGrid(64))
    pixels = (views.ids(0) == 1).nonzero()
    (y, x), (top, left), (bottom, right) = (
        each.tolist() for each in (pixels.float().mean(0), pixels.amin(0), pixels.amax(0))
    )
    session.prompt(0, Prompt.from_points(48, 64, [(x, y)], [(1, 1)], (left, top, right + 1, bottom + 1)))
    session.run()
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = session.grid
    model.masks.prompts["ball"] = write_session_prompts(session)
    editor = bench_on(views, masks=model.masks.state_dict())
    prompt = editor.state.objects[0].prompts[0]
    assert prompt.view == "000.png" and len(editor.markers()) == 2
    assert torch.equal(editor.free_views.answer(prompt).mask, session.mask_of(0))
    editor.choose(0)
    assert iou(editor, views, 3, [1], "ball") > 0.9


def test_an_object_that_replaces_another_has_only_its_name_and_colour(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    masks = editor.model.masks
    masks.hidden, masks.parents, masks.finished = {"object"}, {"object": "table"}, {"object": "a job"}
    color = masks.colors["object"]
    masks["object"] = MaskGrid(16)
    assert (masks.hidden, masks.parents, masks.finished, masks.prompts) == (set(), {}, {}, {})
    assert masks.colors == {"object": color}


def test_only_what_is_edited_is_no_longer_finished(editor: Editor, views: ViewsOfBalls):
    click(editor, views, 1)
    editor.add_object("far")
    click(editor, views, 3)
    finished = {"object": "a job", "far": "another"}
    editor.model.masks.finished = dict(finished)
    editor.add_object("new")
    editor.solo(True)
    assert editor.model.masks.finished == finished
    editor.select("far")
    click(editor, views, 3, view=1)
    assert editor.model.masks.finished == {"object": "a job"}
    editor.select("object")
    editor.rename("ball")
    assert editor.model.masks.finished == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), "all of it"),
        (("segmented",), 1),
        (("prompts",), None),
        (("prompts", 0), []),
        (("prompts", 0, "camera"), {"pose": [1.0]}),
        (("prompts", 0), {"view": "nowhere.png"}),
        (("prompts", 0, "camera", "pose", 0), float("nan")),
        (("prompts", 0, "camera", "pose", 0), 7.0),
        (("prompts", 0, "camera", "width"), 10**9),
        (("prompts", 0, "marks", 0, 0), 2.0),
        (("prompts", 0, "marks", 0), [0.5, 0.5]),
        (("prompts", 0, "marks"), []),
        (("prompts", 0, "box"), [0.9, 0.1, 0.2, 0.8]),
        (("prompts", 0, "choice"), -1),
        (("prompts", 0, "choice"), True),
    ],
)
def test_damaged_prompts_are_told_and_the_mask_is_there(views: ViewsOfBalls, path: tuple[Any, ...], value: object):
    editor = bench_on(views)
    click(editor, views, 1)
    state = copy.deepcopy(editor.model.masks.state_dict())
    at = state["_extra_state"]["prompts"]
    for step in ("object", *path)[:-1]:
        at = at[step]
    at[("object", *path)[-1]] = value
    again = bench_on(views, masks=state)
    assert len(again.masks.faults) == 1 and "object are damaged" in again.masks.faults[0]
    assert again.state.objects[0].prompts == ()
    assert iou(again, views.elsewhere, 0, [1]) > 0.95


def test_words_become_boxes(editor: Editor, tmp_path: Path):
    pytest.importorskip("transformers", reason="text prompts need the extra [text]")
    options = TextOptions(str(save_tiny_dino(tmp_path)), box_threshold=0.0)
    found = editor.free_views.find("view 0", "a red mug", options)
    assert next(iter(found)).startswith("1: ")
    for x0, y0, x1, y1 in found.values():
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
    # A random network finds anything; a box as large as the image holds all balls.
    editor.draw_box("view 0", *max(found.values(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1])))
    assert not editor.model.masks["object"].is_empty
    with pytest.raises(SA3DError, match="nothing here looks like a plate"):
        editor.free_views.find("view 0", "a plate", replace(options, box_threshold=1.0))


def test_nothing_prompted_is_a_sentence(editor: Editor):
    for attempt in (editor.delete, editor.clear, lambda: editor.choose(0), lambda: list(editor.segment())):
        with pytest.raises(SA3DError, match=r"first|no object yet"):
            attempt()
    editor.add_object()
    with pytest.raises(SA3DError, match="nothing points at object"):
        list(editor.segment())


def test_looking_twice_from_one_place_renders_once(views: ViewsOfBalls):
    model = masked(small_model("nerfacto"))
    lock = threading.Lock()
    editor = Editor(FreeViews(model, views, ColorSegmenter, SessionSettings(), lock), 32)  # type: ignore[arg-type]
    name = editor.look(camera())
    assert editor.look(camera()) == name
    other = camera()
    other.camera_to_worlds[0, 0, 3] += 0.1
    assert editor.look(other) != name
    assert editor.picture(name).shape == (10, 14, 3)
    assert not lock.locked()
