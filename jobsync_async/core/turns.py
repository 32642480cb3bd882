"""Who works on which task in one worker. Pure.

* One at a time works on a task: whoever stands first in its line.
* The others wait in the order in which they came.
"""

from __future__ import annotations

from typing import Generic, TypeVar

W = TypeVar("W")


class Turns(Generic[W]):
    """A line for each task, first come, first served; who stands first works."""

    def __init__(self) -> None:
        self._lines: dict[str, list[W]] = {}

    def join(self, task: str, who: W) -> None:
        """`who` wants to work on the task."""
        self._lines.setdefault(task, []).append(who)

    def leave(self, task: str, who: W) -> bool:
        """`who` is done, or does not want to wait any more. True when somebody still stands in the
        line."""
        line = self._lines[task]
        line.remove(who)
        if not line:
            del self._lines[task]
        return bool(line)

    def first(self, task: str) -> W | None:
        """Whose turn it is; None when nobody wants the task."""
        line = self._lines.get(task)
        return line[0] if line else None
