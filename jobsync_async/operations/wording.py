"""Numbers, names and times as parts of a sentence. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def count(many: int, what: str) -> str:
    return f"{many:,} {what}{'' if many == 1 else 's'}"


def has(many: int) -> str:
    return "has" if many == 1 else "have"


def and_more(all_of_them: Sequence[Any], what: str) -> str:
    """What is said after the first of several."""
    more = len(all_of_them) - 1
    return f" and {count(more, f'more {what}')}" if more else ""


def name_list(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{names[0]} and {len(names) - 1:,} more"


def span(seconds: float) -> str:
    """A length of time, short."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def quoted(text: str, most: int = 40) -> str:
    return repr(text if len(text) <= most else f"{text[: most - 1]}…")
