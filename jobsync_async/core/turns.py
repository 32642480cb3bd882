"""Who works on which task in one worker. Pure.

* One at a time works on a task: whoever stands first in its line.
* The others wait in the order in which they came.
"""

from __future__ import annotations

from typing import Generic, TypeVar

W = TypeVar("W")


class Turns(Generic[W]):
    """A line for each task, first come, first served; who stands first works.

    Most lines have one in them. Nothing is made for these that the collector would have to look at.
    """

    def __init__(self) -> None:
        self._first: dict[str, W] = {}
        self._behind: dict[str, list[W]] = {}

    def join(self, task: str, who: W) -> None:
        """`who` wants to work on the task."""
        if self._first.setdefault(task, who) is not who:
            self._behind.setdefault(task, []).append(who)

    def leave(self, task: str, who: W) -> bool:
        """`who` is done, or does not want to wait any more. True when somebody still stands in the
        line."""
        behind = self._behind.get(task)
        if self._first[task] is not who:
            assert behind is not None, "who is not first stands behind"
            behind.remove(who)
        elif behind:
            self._first[task] = behind.pop(0)
        else:
            del self._first[task]
        if behind == []:
            del self._behind[task]
        return task in self._first

    def first(self, task: str) -> W | None:
        """Whose turn it is; None when nobody wants the task."""
        return self._first.get(task)
