"""Which pins are taken. Pure.

* All pins that are in force on one token want the same workers, in the same order.
* The first pin stays. A later one of another task that wants something else is refused.
* A task has one pin: its new one replaces its old one, or is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Pin(NamedTuple):
    """A task that is to run on the workers that the patterns name, in order of preference."""

    task_id: str
    token_id: int
    node_patterns: tuple[str, ...]


def admit(pins: Iterable[Pin], existing: Iterable[Pin]) -> tuple[list[Pin], list[tuple[Pin, Pin]]]:
    """Sort pins into those to store, and those refused, each with the pin that stays.

    Args:
        pins: to be stored, the first ones first; of two for one task, the last one counts.
        existing: those in force on the same tokens, oldest first. A task's new pin replaces its
            own.
    """
    wanted = {pin.task_id: pin for pin in pins}
    holders: dict[int, Pin] = {}
    for pin in existing:
        if pin.task_id not in wanted:
            holders.setdefault(pin.token_id, pin)
    accepted: list[Pin] = []
    refused: list[tuple[Pin, Pin]] = []
    for pin in wanted.values():
        holder = holders.setdefault(pin.token_id, pin)
        if holder.node_patterns == pin.node_patterns:
            accepted.append(pin)
        else:
            refused.append((pin, holder))
    return accepted, refused
