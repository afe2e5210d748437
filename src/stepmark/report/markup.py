"""HTML and SVG elements that can't be built from unescaped text.

`h("td", text)` escapes every child and attribute unless it is an `Html`, and only this file makes an `Html` from a
string. So a solution that contains `<script>` appears on the page as these characters, wherever it is put.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

# Not allowed in HTML, or not encodable: control codes except tab and newline, and lone surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_VOID = frozenset({"meta", "br", "hr", "link", "line", "rect", "circle", "path"})


class Html(str):
    """Markup that is safe to put into a page without escaping."""

    __slots__ = ()


Child = str | int | float | None


def escape(text: object) -> Html:
    """Text as markup; `Html` stays as it is, and characters that can't be shown become U+FFFD."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_UNPRINTABLE.sub("\ufffd", str(text).replace("\r\n", "\n")), quote=True))


def join(parts: Iterable[Child], between: str = "") -> Html:
    """Concatenates the parts. Each is escaped unless it is markup; None is left out."""
    return Html(escape(between).join(escape(p) for p in parts if p is not None))


def h(tag: str, *children: Child, **attributes: object) -> Html:
    """An element. `class_` and `stroke_width` become class and stroke-width. An attribute that is None or False is left
    out, and one that is True has no value. `tag` and attribute names must come from the code, never from data."""
    opening = tag
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            opening += f" {name}"
        elif value is not None and value is not False:
            opening += f' {name}="{escape(value)}"'
    if tag in _VOID and not children:
        return Html(f"<{opening}/>")
    return Html(f"<{opening}>{join(children)}</{tag}>")


def style_sheet(css: str) -> Html:
    """The package's own style sheet as an element. Raises ValueError for a text that would end the element early."""
    if "</" in css:
        raise ValueError("a style sheet with '</' in it would end its element; remove it")
    return Html(f"<style>{css}</style>")


def document(head: Html, body: Html) -> str:
    """A whole page."""
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>{body}</body>\n</html>\n'
