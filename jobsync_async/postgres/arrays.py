"""Lists as PostgreSQL's array literals: many times as fast as the driver's adapters for thousands
of values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def int_array(values: Iterable[int]) -> str:
    """Of whole numbers."""
    return "{" + ",".join(map(str, values)) + "}"


def bytes_array(values: Sequence[bytes]) -> str:
    """Of bytes."""
    return '{"\\\\x' + '","\\\\x'.join(map(bytes.hex, values)) + '"}' if values else "{}"


def text_array(values: Sequence[str]) -> str:
    """Of texts, whatever they hold."""
    if not values:
        return "{}"
    inside = '","'.join(values)
    if "\\" in inside or inside.count('"') > 2 * len(values) - 2:
        inside = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return f'{{"{inside}"}}'
