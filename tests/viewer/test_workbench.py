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
from sa3d_nerfstudio.segmentation.prompts import Prompt
from sa3d_nerfstudio.segmentation.session_views import FreeView
from sa3d_nerfstudio.segmentation.settings import SessionSettings
from sa3d_nerfstudio.segmenters.base import Candidates, SegmenterImage
from sa3d_nerfstudio.segmenters.text import TextOptions
from sa3d_nerfstudio.traces.base import ViewTrace, render_probability
from sa3d_nerfstudio.view_cache import ViewCache
from sa3d_nerfstudio.viewer.saved import written_session
from sa3d_nerfstudio.viewer.sight import Sight
from sa3d_nerfstudio.viewer.workbench import Workbench
from tests.analytic import BallViews
from tests.models import camera, masked, small_model
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


class FreeViews(BallViews):
    """The balls, seen by the training cameras and, from elsewhere, by the viewer's."""

    def __init__(self) -> None:
        super().__init__(count=8)
        self.lock = None
        self.cache = ViewCache(budget=1 << 30)
        self.elsewhere = BallViews(count=3, distance=2.6)

    def key(self, view: int) -> str:
        return self.name(view)

    def find(self, view: str) -> int:
        names = [self.name(index) for index in range(len(self))]
        if view not in names:
            raise SA3DError("there is none of that name")
        return names.index(view)


@pytest.fixture
def views() -> FreeViews:
    return FreeViews()


@pytest.fixture
def bench(views: FreeViews) -> Workbench:
    return bench_on(views)


def bench_on(views: FreeViews, masks: dict[str, Any] | None = None, looked: bool = True, **settings: Any) -> Workbench:
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
    sight = BallSight(model, views, ColorSegmenter, SessionSettings(max_passes=2, **settings))  # type: ignore[arg-type]
    for view in range(3):
        sight.cameras[f"view {view}"] = viewer_camera(views, view)
        if looked:
            sight.trace(f"view {view}")
    return Workbench(sight, resolution=64)


def viewer_camera(views: FreeViews, view: int) -> Cameras:
    height, width, pose = views.elsewhere.height, views.elsewhere.width, views.elsewhere.camera_to_worlds[view]
    return Cameras(
        pose[None], fx=float(width), fy=float(width), cx=width / 2, cy=height / 2, height=height, width=width
    )


class BallSight(Sight):
    """The viewer's cameras see the balls, and not what an untrained model renders."""

    def trace(self, name: str) -> ViewTrace:
        if name in self.cameras and name not in self.free:
            view = int(name.split()[1])
            elsewhere = cast(FreeViews, self.views).elsewhere
            self.free[name] = FreeView(elsewhere.trace(view), elsewhere.camera_to_worlds[view])
        return super().trace(name)


def click(bench: Workbench, views: FreeViews, ball: int, view: int = 0, on: bool = True) -> None:
    y, x = (views.elsewhere.ids(view) == ball).nonzero().float().mean(0).tolist()
    bench.mark(f"view {view}", (x + 0.5) / views.elsewhere.width, (y + 0.5) / views.elsewhere.height, on)


def iou(bench: Workbench, views: BallViews, view: int, balls: list[int], name: str = "object") -> float:
    probability = render_probability(views.trace(view), bench.model.masks[name])[0]
    mask = probability.reshape(views.height, views.width) > 0.5
    truth = torch.isin(views.ids(view), torch.tensor(balls))
    return float((mask & truth).sum() / (mask | truth).sum())


def test_a_click_makes_an_object_and_lights_it_up(bench: Workbench, views: FreeViews):
    plain = bench.picture("view 0")
    click(bench, views, 1)
    assert bench.state.names == ["object"]
    assert iou(bench, views.elsewhere, 0, [1]) > 0.95
    changed = (bench.picture("view 0") - plain).abs().sum(-1) > 0.05
    truth = views.elsewhere.ids(0) == 1
    assert (changed & truth).sum() / (changed | truth).sum() > 0.95


def test_the_first_lifting_is_three_dimensional_already(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    # From a third of the ring away, the half that was seen is where it should be.
    probability = render_probability(views.elsewhere.trace(1), bench.model.masks["object"])[0].reshape(48, 64)
    truth = views.elsewhere.ids(1) == 1
    assert (probability > 0.5)[truth].float().mean() > 0.2
    assert (probability > 0.5)[~truth].float().mean() < 0.02


def test_markers_lie_on_the_object(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    click(bench, views, 2, on=False)
    (first, first_on), (second, second_on) = bench.markers()
    assert (first_on, second_on) == (True, False)
    assert abs(math.dist(first, (0.0, 0.0, 0.3)) - 0.3) < 0.12
    assert abs(math.dist(second, (0.5, 0.0, 0.2)) - 0.2) < 0.12


def test_a_view_is_embedded_once(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    click(bench, views, 1)
    click(bench, views, 2, on=False)
    bench.undo()
    segmenter = bench.sight.segmenter
    assert isinstance(segmenter, ColorSegmenter) and segmenter.embedded == ["view 0"]


def test_undo_and_redo_bring_back_the_very_masks(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    one = bench.model.masks["object"].hit.clone()
    click(bench, views, 2)
    two = bench.model.masks["object"].hit.clone()
    assert iou(bench, views.elsewhere, 0, [1, 2]) > 0.9
    bench.undo()
    assert torch.equal(bench.model.masks["object"].hit, one)
    bench.redo()
    assert torch.equal(bench.model.masks["object"].hit, two)
    bench.undo()
    bench.undo()
    assert bench.model.masks.names == []
    with pytest.raises(SA3DError, match="nothing to undo"):
        bench.undo()


def test_candidates_go_from_small_to_large(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    assert bench.may_choose
    areas = []
    for candidate in range(3):
        bench.choose(candidate)
        areas.append(int(bench.sight.answer(bench.state.objects[0].prompts[0]).mask.sum()))
    assert areas == sorted(areas) and areas[0] < areas[2]


def test_a_scribble_is_joined(bench: Workbench, views: FreeViews):
    bench.mark("view 0", 0.4, 0.5, True, joined=True)
    bench.mark("view 0", 0.6, 0.5, True, joined=True)
    marks = bench.state.objects[0].prompts[0].marks
    assert len(marks) == 6
    assert [round(mark.x, 2) for mark in marks] == [0.4, 0.44, 0.48, 0.52, 0.56, 0.6]


def test_a_box_selects_what_is_in_it(bench: Workbench, views: FreeViews):
    ys, xs = (views.elsewhere.ids(0) == 3).nonzero().unbind(-1)
    low, high = (int(xs.min()), int(ys.min())), (int(xs.max()) + 1, int(ys.max()) + 1)
    bench.draw_box("view 0", low[0] / 64, low[1] / 48, high[0] / 64, high[1] / 48)
    assert iou(bench, views.elsewhere, 0, [3]) > 0.85
    with pytest.raises(SA3DError, match="drag"):
        bench.draw_box("view 0", 0.5, 0.5, 0.5, 0.5)


def test_a_prompt_that_selects_nothing_changes_nothing(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    before = bench.state
    with pytest.raises(SA3DError, match="selects nothing"):
        click(bench, views, 1, on=False)
    assert bench.state is before
    assert iou(bench, views.elsewhere, 0, [1]) > 0.95


def test_a_first_prompt_that_selects_nothing_leaves_no_object(bench: Workbench, views: FreeViews):
    with pytest.raises(SA3DError, match="selects nothing in view 0"):
        click(bench, views, 1, on=False)
    assert bench.state.names == [] == bench.model.masks.names
    with pytest.raises(SA3DError, match="nothing to undo"):
        bench.undo()


def test_segmenting_finds_the_whole_and_can_be_undone(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    steps = list(bench.segment())
    assert (steps[-1].number_of_pass, steps[-1].done, steps[-1].total) == (2, 9, 9)
    assert steps[-1].rejected == 0
    for view in range(3):
        assert iou(bench, views.elsewhere, view, [1]) > 0.9
    bench.undo()
    assert iou(bench, views.elsewhere, 1, [1]) < 0.8
    bench.redo()
    assert iou(bench, views.elsewhere, 1, [1]) > 0.9


@pytest.mark.parametrize(("weight", "wins"), [(1.0, True), (0.01, False)])
def test_a_correction_outweighs_the_views(views: FreeViews, weight: float, wins: bool):
    bench = bench_on(views, correction_weight=weight, prompt_weight=0.1)
    click(bench, views, 1)
    list(bench.segment())
    # Eight views have said that this ball is something else.
    click(bench, views, 2, view=1)
    rendered = render_probability(views.elsewhere.trace(1), bench.model.masks["object"])[0].reshape(48, 64) > 0.5
    ids = views.elsewhere.ids(1)
    assert (float(rendered[ids == 2].float().mean()) > 0.6) == wins
    # What was known stays: the click in a new view comes with points of the mask as it was.
    assert rendered[ids == 1].float().mean() > 0.9
    assert bench.state.objects[0].prompts[-1].context


def test_a_negative_point_takes_away(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    click(bench, views, 2)
    assert iou(bench, views.elsewhere, 0, [1, 2]) > 0.9
    click(bench, views, 2, on=False)
    assert iou(bench, views.elsewhere, 0, [1]) > 0.9


def test_stopping_keeps_what_is_there(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    steps = bench.segment(live_every=0.0)
    shown = bench.masks.changes
    for progress in steps:
        if progress.done == 4:
            break
    assert bench.masks.changes > shown
    steps.close()
    current = bench.state.current
    assert current is not None and current.evidence is not None and not bench.model.masks["object"].is_empty
    assert iou(bench, views.elsewhere, 0, [1]) > 0.9
    bench.undo()
    assert bench.state.objects[0].evidence is None


def test_objects_have_names_colors_and_masks_of_their_own(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    bench.rename("big ball")
    bench.add_object()
    click(bench, views, 3)
    assert bench.model.masks.names == ["big ball", "object 2"]
    assert len(set(bench.model.masks.colors.values())) == 2
    assert iou(bench, views.elsewhere, 0, [1], "big ball") > 0.95
    assert iou(bench, views.elsewhere, 0, [3], "object 2") > 0.9
    with pytest.raises(SA3DError, match="already"):
        bench.rename("big ball")
    with pytest.raises(SA3DError, match="needs a name"):
        bench.rename("  ")
    bench.select("big ball")
    bench.delete()
    assert bench.model.masks.names == ["object 2"]
    bench.undo()
    assert iou(bench, views.elsewhere, 0, [1], "big ball") > 0.95


def test_solo_shows_one(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    bench.add_object()
    click(bench, views, 3)
    shown = views.elsewhere.trace(0)
    bench.solo(True)
    alone = bench.model.render_mask(shown).reshape(48, 64) > 0.5
    assert alone[views.elsewhere.ids(0) == 3].float().mean() > 0.9
    assert not alone[views.elsewhere.ids(0) == 1].any()
    bench.solo(False)
    both = bench.model.render_mask(shown).reshape(48, 64) > 0.5
    assert both[views.elsewhere.ids(0) == 1].float().mean() > 0.9


def test_clear_begins_again(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    list(bench.segment())
    bench.clear()
    assert bench.model.masks["object"].is_empty and bench.markers() == []
    bench.undo()
    assert iou(bench, views.elsewhere, 1, [1]) > 0.9


def test_objects_of_a_loaded_run_are_taken_over(bench: Workbench, views: FreeViews):
    click(bench, views, 1)
    list(bench.segment())
    bench.add_object()
    click(bench, views, 3)
    bench.show({"object 2"})
    again = bench_on(views, masks=bench.model.masks.state_dict())
    assert [(thing.name, thing.hidden, thing.color) for thing in again.state] == [
        (thing.name, thing.hidden, thing.color) for thing in bench.state
    ]
    assert iou(again, views.elsewhere, 1, [1]) > 0.9


def test_prompts_come_back_with_the_run(views: FreeViews):
    bench = bench_on(views)
    click(bench, views, 1)
    click(bench, views, 1, view=1)
    list(bench.segment())
    bench.draw_box("view 2", 0.1, 0.2, 0.9, 1.2)
    bench.choose(0)
    again = bench_on(views, masks=bench.model.masks.state_dict(), looked=False)
    assert again.state.objects[0].prompts == bench.state.objects[0].prompts
    assert again.markers() == bench.markers() and len(again.markers()) == 2
    assert again.state.objects[0].prompts[-1].choice is not None and again.may_choose
    assert not again.sight.free, "nothing is rendered before it is needed"


def test_a_loaded_object_is_refined_as_if_it_had_never_been_saved(views: FreeViews):
    bench = bench_on(views)
    click(bench, views, 1)
    list(bench.segment())
    again = bench_on(views, masks=bench.model.masks.state_dict(), looked=False)
    for each in (bench, again):
        click(each, views, 2, view=1)
    one, other = bench.model.masks["object"], again.model.masks["object"]
    assert torch.allclose(one.hit, other.hit, atol=1e-4) and torch.allclose(one.seen, other.seen, atol=1e-4)
    again.undo()
    assert torch.equal(again.model.masks["object"].hit, again.state.objects[0].loaded.hit)  # type: ignore[union-attr]
    assert len(list(again.segment())) > 8


def test_prompts_in_training_views_come_back(views: FreeViews):
    session = bench_on(views).sight.session(MaskGrid(64))
    y, x = (views.ids(0) == 1).nonzero().float().mean(0).tolist()
    session.prompt(0, Prompt.from_points(48, 64, [(x, y)], [(1, 1)], (2, 2, 64, 48)))
    session.run()
    model = masked(small_model("nerfacto"))
    model.masks["ball"] = session.grid
    model.masks.prompts["ball"] = written_session(session)
    bench = bench_on(views, masks=model.masks.state_dict())
    prompt = bench.state.objects[0].prompts[0]
    assert prompt.view == "000.png" and len(bench.markers()) == 2
    assert torch.equal(bench.sight.answer(prompt).mask, session.mask_of(0))
    bench.choose(0)
    assert iou(bench, views, 3, [1], "ball") > 0.9
    # Whoever replaces the mask replaces what pointed at it.
    model.masks["ball"] = MaskGrid(16)
    assert model.masks.prompts == {}


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
def test_damaged_prompts_are_told_and_the_mask_is_there(views: FreeViews, path: tuple[Any, ...], value: object):
    bench = bench_on(views)
    click(bench, views, 1)
    state = copy.deepcopy(bench.model.masks.state_dict())
    at = state["_extra_state"]["prompts"]
    for step in ("object", *path)[:-1]:
        at = at[step]
    at[("object", *path)[-1]] = value
    again = bench_on(views, masks=state)
    assert len(again.masks.troubles) == 1 and "object are damaged" in again.masks.troubles[0]
    assert again.state.objects[0].prompts == ()
    assert iou(again, views.elsewhere, 0, [1]) > 0.95


def test_words_become_boxes(bench: Workbench, tmp_path: Path):
    pytest.importorskip("transformers", reason="text prompts need the extra [text]")
    options = TextOptions(str(save_tiny_dino(tmp_path)), box_threshold=0.0)
    found = bench.sight.find("view 0", "a red mug", options)
    assert next(iter(found)).startswith("1: ")
    for x0, y0, x1, y1 in found.values():
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
    # A random network finds anything; a box as large as the image holds all balls.
    bench.draw_box("view 0", *max(found.values(), key=lambda box: (box[2] - box[0]) * (box[3] - box[1])))
    assert not bench.model.masks["object"].is_empty
    with pytest.raises(SA3DError, match="nothing here looks like a plate"):
        bench.sight.find("view 0", "a plate", replace(options, box_threshold=1.0))


def test_nothing_prompted_is_a_sentence(bench: Workbench):
    for attempt in (bench.delete, bench.clear, lambda: bench.choose(0), lambda: list(bench.segment())):
        with pytest.raises(SA3DError, match=r"first|no object yet"):
            attempt()
    bench.add_object()
    with pytest.raises(SA3DError, match="nothing points at object"):
        list(bench.segment())


def test_looking_twice_from_one_place_renders_once(views: FreeViews):
    model = masked(small_model("nerfacto"))
    lock = threading.Lock()
    bench = Workbench(Sight(model, views, ColorSegmenter, SessionSettings(), lock), 32)  # type: ignore[arg-type]
    name = bench.look(camera())
    assert bench.look(camera()) == name
    other = camera()
    other.camera_to_worlds[0, 0, 3] += 0.1
    assert bench.look(other) != name
    assert bench.picture(name).shape == (10, 14, 3)
    assert not lock.locked()
