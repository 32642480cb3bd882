"""Sequence diagrams: ``participant``, messages and notes, with ``<br/>`` for a new line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLUMN, SIDE, LINE, HEAD = 280, 132, 18, 34
CHARACTER = 6.9  # about as wide as one of the page's letters of this size
ARROW, NOTE_PAD, GAP = 9, 8, 14

_PARTICIPANT = re.compile(r"participant (\w+)(?: as (.+))?$")
_MESSAGE = re.compile(r"(\w+)(--?)>>(\w+): (.+)$")
_NOTE = re.compile(r"Note over (\w+)(?:, ?(\w+))?: (.+)$")


@dataclass(frozen=True)
class Message:
    """An arrow from one lifeline to another; dashed for an answer."""

    source: str
    target: str
    dashed: bool
    lines: Sequence[str]


@dataclass(frozen=True)
class Note:
    """A box over one lifeline, or over two and what is between them."""

    over: Sequence[str]
    lines: Sequence[str]


def parse(source: str) -> tuple[dict[str, str], list[Message | Note]]:
    """The lifelines' titles by their names, and what happens, in order."""
    titles: dict[str, str] = {}
    events: list[Message | Note] = []
    for line in filter(None, map(str.strip, source.splitlines()[1:])):
        if found := _PARTICIPANT.match(line):
            titles[found[1]] = found[2] or found[1]
        elif found := _MESSAGE.match(line):
            events.append(Message(found[1], found[3], found[2] == "--", _split(found[4])))
        elif found := _NOTE.match(line):
            events.append(Note([name for name in found.group(1, 2) if name], _split(found[3])))
        else:
            raise ValueError(f"not understood: {line!r}")
    named = [
        name
        for event in events
        for name in (event.over if isinstance(event, Note) else (event.source, event.target))
    ]
    if unknown := set(named) - titles.keys():
        raise ValueError(f"no participant line for {sorted(unknown)}")
    return titles, events


def _split(text: str) -> list[str]:
    return re.split(r"<br ?/?>", text)


def draw(source: str) -> str:
    """The diagram as an SVG that stands in a page and takes its colours."""
    titles, events = parse(source)
    at = {name: SIDE + index * COLUMN for index, name in enumerate(titles)}
    width = 2 * SIDE + (len(titles) - 1) * COLUMN
    parts: list[str] = []
    y = HEAD + GAP
    for event in events:
        if isinstance(event, Note):
            y = _note(parts, event, [at[name] for name in event.over], y, width)
        else:
            y = _message(parts, event, at[event.source], at[event.target], y)
    height = y + 4
    lifelines = []
    for name, title in titles.items():
        x = at[name]
        lifelines.append(f'<line class="life" x1="{x}" y1="{HEAD}" x2="{x}" y2="{height}"/>')
        size = f'width="{2 * SIDE - 8}" height="{HEAD - 2}"'
        lifelines.append(f'<rect class="who" x="{x - SIDE + 4}" y="1" {size} rx="5"/>')
        lifelines.append(f'<text x="{x}" y="22">{escape(title, quote=False)}</text>')
    body = "".join(lifelines + parts)
    return (
        f'<svg class="diagram" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" role="img"><title>{escape(" and ".join(titles.values()))}'
        f"</title>{body}</svg>"
    )


def _message(parts: list[str], event: Message, start: int, end: int, y: int) -> int:
    y = _texts(parts, event.lines, (start + end) // 2, y)
    kind = "answer" if event.dashed else "message"
    back = ARROW if end < start else -ARROW
    parts.append(f'<line class="{kind}" x1="{start}" y1="{y}" x2="{end}" y2="{y}"/>')
    parts.append(f'<path class="head" d="M{end} {y}l{back} -4v8z"/>')
    return y + GAP


def _note(parts: list[str], event: Note, over: Sequence[int], y: int, width: int) -> int:
    height = len(event.lines) * LINE + NOTE_PAD
    wide = max(max(map(len, event.lines)) * CHARACTER, max(over) - min(over)) + 2 * NOTE_PAD
    left = max(2.0, min(sum(over) / len(over) - wide / 2, width - 2 - wide))  # inside the picture
    parts.append(
        f'<rect class="note" x="{left:.0f}" y="{y}" width="{wide:.0f}" height="{height}" rx="3"/>'
    )
    _texts(parts, event.lines, round(left + wide / 2), y + NOTE_PAD // 2 - 1)
    return y + height + GAP


def _texts(parts: list[str], lines: Sequence[str], x: int, y: int) -> int:
    for line in lines:
        y += LINE
        parts.append(f'<text x="{x}" y="{y - 4}">{escape(line, quote=False)}</text>')
    return y
