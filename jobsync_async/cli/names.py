"""Long names on a narrow terminal: cut in the middle, so that each can still be told from the
others. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from rich.cells import cell_len, set_cell_size

from jobsync_async.cli.status import shortened

_CUT = "…"
_LEAST = 8


def cut_names(names: Iterable[str], width: int) -> dict[str, str]:
    """Each name, in so many cells of a terminal at most (8 or more): no two look alike.

    Those that are too long are cut at one place, the same for all: as near to the middle as it can
    be while they differ.
    """
    shown = {name: shortened(name) for name in names}
    width = max(width, _LEAST)
    long = {name: text for name, text in shown.items() if cell_len(text) > width}
    if long:
        nearest = sorted(range(width), key=lambda head: abs(2 * head - width))
        cuts = ({name: _cut(text, head, width) for name, text in long.items()} for head in nearest)
        best: dict[str, str] = {}
        for cut in cuts:
            if len({*cut.values()}) > len({*best.values()}):
                best = cut
            if len({*best.values()}) == len(long):
                break
        shown |= best
    return _numbered(shown, width)


def abridged(text: str, cut: Mapping[str, str]) -> str:
    """A text in which each name is cut as `cut_names` says."""
    names = sorted((name for name in cut if name != cut[name]), key=len, reverse=True)
    if not names:
        return text
    return re.sub("|".join(map(re.escape, names)), lambda found: cut[found[0]], text)


def _cut(text: str, head: int, width: int) -> str:
    """So many cells of the beginning, and as many of the end as there is room for."""
    tail = width - 1 - head
    return set_cell_size(text, head) + _CUT + set_cell_size(text[::-1], tail)[::-1]


def _numbered(shown: Mapping[str, str], width: int) -> dict[str, str]:
    """Those that look like one before get a number."""
    seen: set[str] = set()
    told = {}
    for name, text in shown.items():
        number, unlike = 1, text
        while unlike in seen:
            number += 1
            unlike = f"{set_cell_size(text, width - 1 - len(str(number)))}~{number}"
        seen.add(unlike)
        told[name] = unlike
    return told
