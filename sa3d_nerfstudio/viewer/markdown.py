"""Words from outside in viser's markdown, which is code.

viser 0.2.7 compiles markdown as MDX and runs what is in braces or in tags, and so do 1.0.0 and 1.0.30; 1.1.1 no longer
does, but puts HTML into the page as it is. Names of objects and of files, words that were typed, and the errors that
repeat them are no code, and are shown letter by letter.
"""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")
"""What may mean something in CommonMark, in GitHub's dialect of it, or in MDX; all know a backslash before it."""
_STATEMENT = re.compile(r"[ie](?=(?:m|x)port\b)")
"""At its beginning, MDX takes the line of a text for JavaScript."""


def literal(text: object) -> str:
    """Markdown that shows a text as it is, on one line, wherever it stands between other words.

    Runs of white space become one space, as on any page. What cannot be written as UTF-8, such as a byte of a damaged
    file name, becomes a question mark: viser could not send it.
    """
    line = " ".join(str(text).encode("utf8", "replace").decode("utf8").split())
    escaped = _PUNCTUATION.sub(r"\\\1", line)
    return _STATEMENT.sub(lambda letter: f"&#{ord(letter[0])};", escaped) if _STATEMENT.match(escaped) else escaped
