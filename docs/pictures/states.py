"""State diagrams: titles of states, arrows between them, and one first state.

The states stand below each other. An arrow to the next state goes straight, down on the left and up
on the right. An arrow that passes a state goes around it.
"""

from __future__ import annotations

import re
from html import escape

BOX, HEIGHT, GAP, LINE, LANE, SIDE = 340, 34, 62, 17, 30, 150
ARROW = 9
START = "[*]"

_TITLE = re.compile(r"(\w+): (.+)$")
_ARROW = re.compile(r"(\w+|\[\*\]) --> (\w+)(?:: (.+))?$")


def parse(source: str) -> tuple[dict[str, str], str | None, dict[tuple[str, str], list[str]]]:
    """The states' titles by their names, the first state, and what each arrow says."""
    titles: dict[str, str] = {}
    first = None
    arrows: dict[tuple[str, str], list[str]] = {}
    for line in filter(None, map(str.strip, source.splitlines()[1:])):
        if found := _ARROW.match(line):
            if found[1] == START:
                first = found[2]
            else:
                arrows.setdefault((found[1], found[2]), []).append(found[3] or "")
        elif found := _TITLE.match(line):
            titles[found[1]] = found[2]
        else:
            raise ValueError(f"not understood: {line!r}")
    if unknown := {name for pair in arrows for name in pair} - titles.keys():
        raise ValueError(f"no title for {sorted(unknown)}")
    return titles, first, arrows


def draw(source: str) -> str:
    """The diagram as an SVG that stands in a page and takes its colours."""
    titles, first, arrows = parse(source)
    places = list(titles)
    left = LANE + SIDE
    top = {name: 24 + index * (HEIGHT + GAP) for index, name in enumerate(places)}
    parts = []
    for name, title in titles.items():
        y = top[name]
        parts.append(
            f'<rect class="who" x="{left}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="16"/>'
        )
        parts.append(_text(left + BOX / 2, y + 22, title, "middle"))
    if first is not None:
        x = left + BOX // 2
        parts.append(f'<circle class="head" cx="{x}" cy="6" r="5"/>')
        parts.append(_line(f"M{x} 6V{top[first]}", x, top[first], down=True))
    lanes = {True: 0, False: 0}
    for (source_name, target), said in arrows.items():
        step = places.index(target) - places.index(source_name)
        down = step > 0
        if abs(step) == 1:
            x = left + 20 if down else left + BOX - 20
            start, end = (
                top[source_name] + (HEIGHT if down else 0),
                top[target] + (0 if down else HEIGHT),
            )
            parts.append(_line(f"M{x} {start}V{end}", x, end, down=down))
            middle = min(start, end) + GAP / 2 - (len(said) - 1) * LINE / 2 + 4
            for number, text in enumerate(said):
                shown = text if number == 0 else f"or: {text}"
                where = (x + 8, "start") if down else (x - 8, "end")
                parts.append(_text(where[0], middle + number * LINE, shown, where[1]))
        else:
            edge, away = (left, -1) if down else (left + BOX, 1)
            x = edge + away * LANE * (1 + lanes[down])
            lanes[down] += 1
            start, end = top[source_name] + HEIGHT / 2, top[target] + HEIGHT / 2
            parts.append(f'<path class="message" d="M{edge} {start}H{x}V{end}H{edge}"/>')
            tip = away * ARROW
            parts.append(f'<path class="head" d="M{edge} {end}l{tip} -4v8z"/>')
            lines = [line for text in said for line in text.replace(", ", ",\n").split("\n")]
            middle = (start + end) / 2 - (len(lines) - 1) * LINE / 2 + 4
            for number, text in enumerate(lines):
                y, anchor = middle + number * LINE, "end" if down else "start"
                parts.append(_text(x + away * 8, y, text, anchor))
    width, height = BOX + 2 * (LANE + SIDE), 24 + len(places) * (HEIGHT + GAP) - GAP + 2
    return (
        f'<svg class="diagram" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="max-width:{width}px" role="img"><title>{escape("; ".join(titles.values()))}'
        f"</title>{''.join(parts)}</svg>"
    )


def _line(path: str, x: float, end: float, *, down: bool) -> str:
    back = -ARROW if down else ARROW
    return f'<path class="message" d="{path}"/><path class="head" d="M{x} {end}l-4 {back}h8z"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    shown = escape(text, quote=False)
    return f'<text style="text-anchor:{anchor}" x="{x:g}" y="{y:g}">{shown}</text>'
