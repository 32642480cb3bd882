"""HTML, safe by construction: text is escaped wherever it is put in, and only what was made here is
taken as HTML. Pure.

There are no templates. What a page shows are functions over plain values, whose types are checked
like the rest; and nothing more needs to be installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any
from urllib.parse import urlencode

MOST_CHARACTERS = 200
_EMPTY = frozenset(("img", "input", "link", "meta"))


class Html(str):
    """A text that is HTML. Everything else is text, and is escaped."""

    __slots__ = ()


Content = Any
"""What may stand inside an element: `Html`, a value that is shown as text, None for nothing, or a
list of these."""


def el(tag: str, *content: Content, **attributes: Any) -> Html:
    """An element. Attributes: ``class_`` is class, other underscores are hyphens; True is one
    without a value, None and False are left out."""
    given = "".join(
        f" {name}" if value is True else f' {name}="{escape(printable(str(value)))}"'
        for name, value in _named(attributes)
        if value is not None and value is not False
    )
    return Html(f"<{tag}{given}>" + ("" if tag in _EMPTY else f"{joined(content)}</{tag}>"))


def joined(content: Content) -> Html:
    """One piece of HTML after the other."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, str) or not isinstance(content, Iterable):
        return Html(escape(printable(str(content))))
    return Html("".join(map(joined, content)))


def name(text: str | None, most: int = MOST_CHARACTERS) -> Html:
    """A name or an id that others have made: it stands for itself, whichever way its script runs,
    and is cut when it is long."""
    if text is None:
        return el("span", "?", class_="quiet")
    if len(text) <= most:
        return el("bdi", text)
    return el("bdi", text[:most] + "…", title=text[: 10 * most])


def link(page: str, *content: Content, to: dict[str, Any] | None = None, **more: Any) -> Html:
    """A link to a page beside this one. All pages stand beside each other, so it holds under every
    prefix."""
    asked = {key: value for key, value in (to or {}).items() if value is not None}
    return el("a", *content, href=f"./{page}{'?' if asked else ''}{urlencode(asked)}", **more)


def printable(text: str) -> str:
    """The text, with a mark in place of each character that cannot be shown."""
    if text.isprintable():  # as nearly all are
        return text
    return "".join(c if c.isprintable() or c in "\n " else "\ufffd" for c in text)


def _named(attributes: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    return ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
