"""Who uses a token: work that is under way on it, and readers of changes."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class User(Protocol):
    """Somebody who uses a token, and is told when it goes. Called from the worker's tasks; must not
    block or raise.

    Attributes:
        runs_in: the task whose code uses it, and which must come to an end of that before the token
            may go.
    """

    @property
    def runs_in(self) -> asyncio.Task[Any] | None: ...

    @property
    def task(self) -> str:
        """The task, as text."""

    def revoked(self) -> None:
        """The token is to go: finish soon."""

    def lost(self, why: str) -> None:
        """The token is gone, or the time to finish is over: stop now."""


class InTurn(Protocol):
    """Somebody who works on a task in its turn, or waits for it."""

    def give_way(self) -> None:
        """Somebody waits behind this: let the turn go, if the work has not begun."""


class Stream(Protocol):
    """A reader of changes, which holds revoked tokens until it comes back for its next item.

    Attributes:
        purpose: what it is, for people.
        asked_by: the task that asked for its last item.
        at_work: it has an item, and has not yet come back.
        is_callback: the user does not read it, but is called with each item.
    """

    asked_by: asyncio.Task[Any] | None
    is_callback: bool

    @property
    def purpose(self) -> str: ...
    @property
    def at_work(self) -> bool: ...

    def close(self) -> None:
        """Nothing waits for it any more."""

    def lets_go_of(self, token: int, task: asyncio.Task[Any] | None) -> bool:
        """Whether `task` reads this, was told that the token is to go, and has not asked for the
        next item yet."""


def work_of(user: User) -> str:
    """What it is, for people."""
    return f"the work on task {user.task!r}"
