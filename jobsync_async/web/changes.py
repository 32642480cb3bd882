"""What viewers are told: the parts of a page that differ from those before. Pure.

A *frame* is one page at one moment, as plain values. It has parts, each of which fills one element,
and lists, whose items are elements of their own with an order. HTML is made only of what differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jobsync_async.web.markup import Html


@dataclass(frozen=True, slots=True)
class Frame:
    """A page at one moment: values by the ids of elements, and in lists by the keys of items."""

    parts: Mapping[str, Any] = field(default_factory=dict)
    lists: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


Render = Mapping[str, Callable[[Any, float], Html]]
"""How a part, or an item of a list, becomes HTML as of a moment, by the id of its element."""


def difference(before: Frame, after: Frame, render: Render, now: float) -> dict[str, Any]:
    """What makes a page that shows `before` show `after`; nothing when they are equal."""
    parts = {
        name: render[name](value, now)
        for name, value in after.parts.items()
        if name not in before.parts or before.parts[name] != value
    }
    lists = {}
    for name, items in after.lists.items():
        old = before.lists.get(name, {})
        new = {
            key: render[name](value, now)
            for key, value in items.items()
            if key not in old or old[key] != value
        }
        told: dict[str, Any] = {"items": new} if new else {}
        if [*old] != [*items]:
            told["order"] = [*items]
        if told:
            lists[name] = told
    return {kind: told for kind, told in (("parts", parts), ("lists", lists)) if told}


def encoded(message: Mapping[str, Any], number: str) -> bytes:
    """As an event of the stream: one line, whatever the message has."""
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False)
    return f"id: {number}\ndata: {data}\n\n".encode()
