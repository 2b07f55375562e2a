"""The Segment panel, used in a real browser: point, see it light up, segment, look, undo, save, open again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import open3d
import pytest
import torch
import viser

from sa3d_nerfstudio.segmenters.text import text_available
from tests.viewer.browser import CHROMIUM, HANG, SIZE, Tab, changed, listening_addresses, server
from tests.viewer.conftest import Place

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
]


def test_a_person_segments_an_object(tab: Tab, place: Place, run: Path):
    tab.wait("Choose + point")
    before = tab.still_picture()
    tab.shot("1-open")

    tab.press("+ point")
    tab.wait("+ point is on")
    before = tab.still_picture()
    tab.page.mouse.click(*place.ball)
    after = tab.wait_until(lambda picture: changed(before, picture, place.ball) > 0.5)
    assert changed(before, after, place.away) < 0.1
    tab.shot("2-click")

    tab.press("undo")
    tab.wait_until(lambda picture: changed(before, picture, place.ball) < 0.2)
    tab.press("redo")
    tab.wait_until(lambda picture: changed(before, picture, place.ball) > 0.5)

    tab.press("Segment")
    tab.wait("pass 1: view")
    tab.shot("3-progress")
    tab.wait("views used,")
    lit = tab.still_picture()
    assert (run / "config.yml").exists(), "what ns-train segments is saved"
    assert changed(before, lit, place.ball) > 0.4

    tab.view("object removed")
    gone = tab.wait_until(lambda picture: changed(lit, picture, place.ball) > 0.5)
    assert changed(before, gone, place.away) < 0.3
    tab.still_picture()
    tab.shot("4-removed")
    tab.view("object only")
    # Around the object there is nothing, and it is not white itself.
    alone = tab.wait_until(lambda picture: (picture > 235).all(-1).mean() > 0.7)
    tab.still_picture()
    tab.shot("5-object")
    x, y = round(place.ball[0]), round(place.ball[1]) - 60
    assert not (alone[y - 10 : y + 10, x - 10 : x + 10] > 235).all(-1).all()

    tab.open_folder("Save and export")
    tab.press("Write the object's points")
    tab.wait("points written")
    tab.shot("6-export")
    points = np.asarray(open3d.io.read_point_cloud(run / "exports" / "object.ply").points)
    assert len(points) > 50
    commands = {label: tab.field(label).input_value() for label in ("Shape", "Points", "Masks", "Video", "Viewer")}
    assert commands["Shape"].startswith("ns-export pointcloud") and commands["Masks"].startswith("sa3d masks")
    assert all(f"--load-config {run / 'config.yml'}" in command for command in commands.values())


def test_after_a_reload_all_is_there(tab: Tab):
    tab.page.reload()
    again = Tab(tab.page, tab.shots)
    again.wait_object("object")
    again.view("overlay")
    again.still_picture()


def test_two_tabs_and_one_that_leaves(chromium: Any, training: str, tab: Tab, place: Place):
    page = chromium.new_page(viewport=SIZE)
    page.goto(training)
    other = Tab(page, tab.shots)
    other.press("New object")
    tab.wait_object("object 2")
    other.press("box")
    tab.wait("box is on")
    x, y = place.ball
    other.page.mouse.move(x - 60, y - 60)
    other.page.mouse.down()
    other.page.mouse.move(x + 60, y + 60, steps=4)
    other.page.mouse.up()
    tab.page.get_by_text("Mask", exact=True).wait_for(timeout=1000 * HANG)
    page.close()
    # The tool that the closed tab held is free, and this one can use it.
    tab.press("+ point")
    tab.wait("+ point is on")
    tab.press("Done: move the camera again")
    tab.open_folder("This object")
    tab.field("Name").fill("ball")
    tab.press("Rename")
    tab.wait_object("ball")


def test_a_tab_that_leaves_while_it_segments(chromium: Any, training: str, tab: Tab):
    page = chromium.new_page(viewport=SIZE)
    page.goto(training)
    other = Tab(page, tab.shots)
    other.press("Segment")
    # What is rendered already goes by quickly.
    tab.wait(re.compile("pass .: view|views used,"))
    page.close()
    tab.wait("views used,")
    tab.open_folder("This object")
    tab.press("Delete")
    tab.wait_object("object")


def test_what_is_nerfstudios_own_still_works(tab: Tab, place: Place):
    whole = tab.still_picture()
    # The second of these crops; the first splits the screen.
    crop = tab.page.get_by_role("checkbox", name="Enable").nth(1)
    crop.scroll_into_view_if_needed()
    crop.check()
    scale = tab.page.get_by_label("Crop scale").first
    scale.fill("0.01")
    scale.press("Enter")
    tab.wait_until(lambda picture: changed(whole, picture, place.away) > 0.9)
    crop.uncheck()
    tab.wait_until(lambda picture: changed(whole, picture, place.away) < 0.1)
    tab.page.get_by_role("tab", name="Render").click()
    tab.press("Add Keyframe")
    tab.press("Clear Keyframes")
    tab.press("Yes")
    tab.page.get_by_role("tab", name="Control").click()


@pytest.mark.skipif(not hasattr(viser.GuiApi, "add_command"), reason="this version of viser has no hotkeys")
def test_escape_ends_the_tool(chromium: Any, training: str, tab: Tab):
    page = chromium.new_page(viewport=SIZE)
    page.goto(training)
    other = Tab(page, tab.shots)
    done = tab.page.get_by_role("button", name="Done: move the camera again", exact=True)
    tab.open_folder("This object")
    tab.press("+ point")
    tab.wait("+ point is on")
    # Neither in another tab, nor while a name is typed.
    other.page.keyboard.press("Escape")
    tab.field("Name").press("Escape")
    tab.page.wait_for_timeout(2000)
    assert done.is_visible()
    # From one tool to the next, and whatever the panel is drawn anew for meanwhile.
    tab.press("box")
    tab.wait("box is on")
    tab.page.set_viewport_size({"width": SIZE["width"], "height": SIZE["height"] - 100})
    tab.page.set_viewport_size(SIZE)
    # Too small for a box, but the canvas has the focus now.
    tab.page.mouse.move(200, 650)
    tab.page.mouse.down()
    tab.page.mouse.move(203, 653, steps=2)
    tab.page.mouse.up()
    tab.page.wait_for_timeout(1000)
    tab.page.keyboard.press("Escape")
    tab.wait("The camera moves again")
    done.wait_for(state="hidden", timeout=1000 * HANG)
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_timeout(1000)
    page.close()


def test_names_are_no_code(tab: Tab):
    name = """{document.title="x"}<img src=x onerror='document.title="y"'> *a* `b` \\{c\\} **d** [e](f)"""
    title, images, selected = tab.page.title(), tab.page.locator("img").count(), tab.choice("Object")
    tab.open_folder("This object")
    tab.new_object()
    tab.field("Name").fill(name)
    tab.press("Rename")
    tab.wait_object(name)
    tab.new_object()
    tab.field("Name").fill(name)
    tab.press("Rename")
    tab.wait(f"There is an object named {name} already: type another name.")
    assert (tab.page.title(), tab.page.locator("img").count()) == (title, images)
    tab.press("undo")
    tab.wait_object(name)
    tab.press("Delete")
    tab.wait_object(selected)


@pytest.mark.skipif(not text_available(), reason="text prompts need the extra [text]")
def test_words_find_an_object(tab: Tab):
    """By a network of random weights: what it finds is no mug, and some of it is nothing at all."""
    selected = tab.choice("Object")
    tab.press("New object")
    tab.press("Find in this view")
    tab.wait("There are no words yet")
    tab.view("overlay")
    before = tab.still_picture()
    tab.field("Text").fill("a {red} mug")
    tab.press("Find in this view")
    tab.wait(re.compile("[0-9]+ found; the best match is marked|take another match under Found"))
    tab.page.get_by_label("Found", exact=True).first.click()
    found = tab.page.get_by_role("option").filter(has_text=re.compile("^[0-9]+: ")).all_inner_texts()
    assert len(found) > 1 and tab.choice("Found") == found[0]
    tab.page.keyboard.press("Escape")
    lit = False
    for other in found[1:]:
        tab.choose("Found", other)
        tab.wait(re.compile(f"{re.escape(other)} is marked|take another match under Found"))
        tab.page.wait_for_timeout(1500)
        lit = f"{other} is marked" in tab.status() and (np.abs(before - tab.picture()).max(-1) > 25).mean() > 0.005
        if lit:
            break
    assert lit, tab.status()
    tab.shot("7-words")
    tab.open_folder("This object")
    tab.press("Delete")
    tab.wait_object(selected)


def test_the_threshold_belongs_to_the_run(tab: Tab):
    tab.open_folder("Save and export")
    tab.press("Save the run")
    tab.wait("Saved:")
    assert tab.field("Shape").input_value().startswith("ns-export")
    threshold = tab.field("Threshold")
    threshold.fill("0.95")
    threshold.press("Enter")
    tab.wait_field("Shape", "(save the run first)")
    tab.press("Save the run")
    tab.wait_field("Shape", "ns-export")


def test_errors_are_sentences_in_the_panel(tab: Tab, place: Place):
    selected = tab.choice("Object")
    tab.press("New object")
    tab.press("− point")
    tab.wait("− point is on")
    tab.page.mouse.click(*place.away)
    tab.wait("The prompt selects nothing")
    tab.press("Done: move the camera again")
    tab.press("undo")
    # viser drops what a tab has sent just before it closes.
    tab.wait_object(selected)


def test_the_server_listens_on_this_machine_only(training: str):
    assert listening_addresses(int(training.rsplit(":", 1)[1])) == {"0100007F"}


def test_ns_viewer_goes_on_where_the_run_was_saved(chromium: Any, run: Path, folder: Path, place: Place, tab: Tab):
    checkpoint = next((run / "nerfstudio_models").iterdir())
    before = checkpoint.stat().st_mtime_ns
    # nerfstudio's ns-viewer listens on all addresses unless it is told otherwise.
    words = "ns-viewer", "--load-config", run / "config.yml", "--viewer.websocket-host", "127.0.0.1"
    with server(folder / "viewer.log", *words) as address:
        assert listening_addresses(int(address.rsplit(":", 1)[1])) == {"0100007F"}
        page = chromium.new_page(viewport=SIZE)
        page.goto(address)
        shown = Tab(page, folder)
        shown.wait_object("object")
        assert shown.field("Threshold").input_value() == "0.95"
        shown.wait_view("overlay")
        # The prompt is there: another answer to it can be taken.
        shown.press("large")
        threshold = shown.field("Threshold")
        threshold.fill("0.4")
        threshold.press("Enter")
        shown.open_folder("Save and export")
        shown.press("Save the run")
        shown.wait("Saved:")
        # Ctrl-C comes amid a segmentation, which stops.
        shown.press("Segment")
        shown.wait("pass 1: view")
        page.close()
    printed = (folder / "viewer.log").read_text()
    assert printed.count("Traceback") == 1 and "KeyboardInterrupt" in printed, printed[-3000:]
    assert checkpoint.stat().st_mtime_ns > before
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    assert "threshold: 0.4" in (run / "config.yml").read_text()
    saved = torch.load(checkpoint, weights_only=True)["pipeline"]["_model.masks._extra_state"]
    assert [prompt["choice"] is not None for prompt in saved["prompts"]["object"]["prompts"]] == [True]


def test_ctrl_c_does_not_wait_for_a_segmentation(chromium: Any, training: str, tab: Tab):
    # A tab that stays open, and is rendered for.
    page = chromium.new_page(viewport=SIZE)
    page.goto(training)
    Tab(page, tab.shots)
    tab.press("Segment")
    # The command is interrupted when this module ends, and must come to its end by itself.
    tab.wait(re.compile("pass .: view|views used,"))
