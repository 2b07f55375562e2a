"""What comes from outside stands in the panel letter by letter, in the real browser, whatever it is."""

from __future__ import annotations

import random
import string
from typing import Any

import pytest
import viser

from sa3d_nerfstudio.viewer.viser_compat import literal
from tests.viewer.browser import CHROMIUM, HANG, free_port

HOSTILE = [
    "{document.title = 1}", "<b>", "<img src=x onerror='document.title = 2'>", "*x*", "a{b}", "{", "}", "</p>", "`a`",
    "```", "\\", "\\\\{x}", "![a](b)", "[^1]", "# a", "- a", "1. a", "1) a", "> a", "| a | b |", "---", "~~a~~",
    "import x from 'y'", "export const x = document.title = 3", "imports", "&lt;&#123;", "$a$", "C:\\a\\{b}.ply",
    "Größe “m²” − ½", "名前", "<!-- a -->", "{/* a */}", "{1+1}", "https://a.b/{c}", "a@b.c", "www.a.b", "__a__",
]  # fmt: skip


def test_what_cannot_be_sent_is_told_apart():
    assert literal("a\udcffb\n c ") == "a\\?b c"
    assert literal(None) == "None" and literal("") == ""


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")
def test_nothing_is_read_as_code(chromium: Any):
    chance = random.Random(0)
    texts = HOSTILE + ["".join(chance.choices(string.printable, k=12)).strip() or "-" for _ in range(60)]
    # As it stands in the panel's sentences, and alone.
    shown = [(f"Name **{literal(text)}**, and so on", f"Name {text}, and so on") for text in texts]
    shown += [(literal(text), text) for text in texts]
    server = viser.ViserServer("127.0.0.1", free_port(), verbose=False)
    try:
        for markdown, _ in shown:
            server.gui.add_markdown(markdown)
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.get_port()}")
        title = page.title()
        # viser's own part of the panel comes first.
        page.locator("p").nth(len(shown)).wait_for(timeout=1000 * HANG)
        assert page.locator("p").all_text_contents()[-len(shown) :] == [" ".join(text.split()) for _, text in shown]
        assert page.title() == title and page.locator("p img, p b, p a[href^='javascript']").count() == 0
        page.close()
    finally:
        server.stop()
