"""What every page has, as HTML: the frame around it, its tables, times and figures. Pure; times are
told as of `now`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from jobsync_async.web.markup import Content, Html, el, link, name

PAGES = (("", "Overview"), ("task", "Task"), ("batches", "Batches"), ("history", "History"))
_UNITS = (("d", 86_400), ("h", 3600), ("min", 60))
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 3 3'%3E%3Cpath "
    "fill='%233b76c4' d='M0 0h1v3H0z'/%3E%3Cpath fill='%23d98f2b' d='M1 0h2v2H1z'/%3E%3Cpath "
    "fill='%234b9e6c' d='M1 2h2v1H1z'/%3E%3C/svg%3E"
)


def span(seconds: float) -> str:
    """About how long, as the script writes it too."""
    unit, length = next(((unit, long) for unit, long in _UNITS if seconds >= long), ("s", 1))
    return f"{int(max(seconds, 0) / length)} {unit}"


def ago(at: float, now: float) -> Html:
    """How long ago; the script counts on."""
    return el("time", span(now - at), datetime=_iso(at), data_at=f"{at:.1f}")


def moment(at: float) -> Html:
    """When; the script shows it in the reader's time zone."""
    return el("time", f"{_utc(at):%Y-%m-%d %H:%M:%S} UTC", datetime=_iso(at), class_="moment")


def _iso(at: float) -> str:
    return _utc(at).isoformat(timespec="seconds")


def _utc(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(at, dt.timezone.utc)


def instant(text: str) -> float:
    """A moment in ISO 8601, in seconds since 1970."""
    return dt.datetime.fromisoformat(text).timestamp()


def counted(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def document(
    page: str,
    title: str,
    *content: Content,
    cluster: str,
    version: str,
    now: float,
    live: tuple[str, str] | None = None,
    banner: str | None = None,
) -> Html:
    """A whole page.

    Args:
        page: its address. version: of the style sheet and the script.
        live: of which channel it is, and the number of the last message that it shows; None for a
            page that does not follow the cluster.
        banner: what is wrong with the page itself.
    """
    links = [
        el("li", link(to, label, aria_current="page" if to == page else None))
        for to, label in PAGES
    ]
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", f"{title} · {cluster}"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("link", rel="icon", href=_ICON),
        el("link", rel="stylesheet", href=f"./page.css?{version}"),
        el("script", src=f"./page.js?{version}", defer=True),
    )
    channel, number = live or (None, None)
    body = el(
        "body",
        el("a", "To the content", href="#content", class_="skip"),
        el(
            "header",
            el("p", "Cluster ", name(cluster), class_="title"),
            el("nav", el("ul", links), aria_label="Pages"),
            el("p", el("span", "as of ", moment(now)), " ", link(page, "Reload"), id="live")
            if live
            else None,
        ),
        el("div", banner_of(banner, now), id="banner", role="alert"),
        el("main", content, id="content", tabindex="-1"),
        data_channel=channel,
        data_since=number,
        data_now=f"{now:.1f}",
    )
    return Html(f"<!doctype html>{el('html', head, body, lang='en')}")


def banner_of(text: str | None, now: float) -> Html:
    """What is wrong with the page itself, not with the cluster."""
    return el("p", el("strong", "This is old. "), text) if text else Html("")


def section(heading: str, *content: Content, about: str, **more: Any) -> Html:
    """A part of a page under a heading."""
    return el(
        "section", el("h2", heading, id=f"h-{about}"), content, aria_labelledby=f"h-{about}", **more
    )


def table(caption: str, columns: Sequence[str], rows: Content, about: str) -> Html:
    """A table whose rows have an element of their own, `about`. A column that begins with ``>`` is
    of numbers. On a phone its rows become cards, so each part says what it is."""
    heads = [
        el(
            "th",
            column.removeprefix(">"),
            scope="col",
            role="columnheader",
            class_="number" if column.startswith(">") else None,
        )
        for column in columns
    ]
    return el(
        "table",
        el("caption", caption, class_="unseen"),
        el("thead", el("tr", heads, role="row"), role="rowgroup"),
        el("tbody", rows, id=about, role="rowgroup"),
        role="table",
    )


def row(about: str, *cells: tuple[str, Content], **more: Any) -> Html:
    """A row: pairs of a column's name and what stands there; the first names the row."""
    made = []
    for place, (column, content) in enumerate(cells):
        kind = "number" if column.startswith(">") else None
        label = column.removeprefix(">")
        made.append(
            el("th", content, scope="row", role="rowheader")
            if place == 0
            else el("td", content, data_label=label or None, class_=kind, role="cell")
        )
    return el("tr", made, id=about, role="row", **more)


def facts(pairs: Iterable[tuple[str, Content]]) -> Html:
    """Names and values."""
    shown = [el("div", el("dt", key), el("dd", value)) for key, value in pairs if value is not None]
    return el("dl", shown)
