"""Watches that nothing has two owners: no token, and none of the work that a test marks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any

from jobsync_async.core.hashing import task_text
from jobsync_async.job import Job
from jobsync_async.types import TaskOrId, task_id_of


class TwoOwners(AssertionError):
    """Two workers had the same thing at the same moment.

    Attributes:
        what: the token (an int) or the task (its text).
        owners: the two workers' names.
    """

    def __init__(self, what: Hashable, owners: tuple[str, str]) -> None:
        kind = "token" if isinstance(what, int) else "task"
        super().__init__(f"{owners[0]} and {owners[1]} both had {kind} {what!r} at one moment")
        self.what = what
        self.owners = owners

    def __reduce__(self) -> tuple[type[TwoOwners], tuple[Hashable, tuple[str, str]]]:
        return TwoOwners, (self.what, self.owners)


class OwnerWatch:
    """Looks at jobs of one event loop. `Cluster` has one; for jobs of your own, make one with a
    function that gives them.

    Args:
        jobs: gives the jobs to look at; called at every look.

    Attributes:
        found: what was found, in order; `check` raises the first of it.
        paused: True makes `run` look away, for a test that breaks the rule on purpose.
    """

    def __init__(self, jobs: Callable[[], Iterable[Job]]) -> None:
        self._jobs = jobs
        self._working: dict[str, str] = {}
        self.found: list[TwoOwners] = []
        self.paused = False

    def __repr__(self) -> str:
        return f"<OwnerWatch {len(self.found)} found, {len(self._working)} tasks under way>"

    def owners(self) -> dict[int, str]:
        """Token to the name of the worker that may start work on it at this moment. Raises
        TwoOwners."""
        owners: dict[int, str] = {}
        for job in self._jobs():
            tokens = job.my_tokens
            if not tokens.isdisjoint(owners):
                token = min(tokens & owners.keys())
                raise TwoOwners(token, (owners[token], job.node_name))
            owners.update(dict.fromkeys(tokens, job.node_name))
        return owners

    @contextmanager
    def working(self, task: TaskOrId, worker: Job | str) -> Iterator[None]:
        """Mark a block as work on a task: put it around what must never run twice at a time. Raises
        TwoOwners on entering when the task is being worked on, here or at another worker; it is
        kept in `found` too."""
        text, name = (
            task_text(task_id_of(task)),
            worker if isinstance(worker, str) else worker.node_name,
        )
        if text in self._working:
            self.found.append(TwoOwners(text, (self._working[text], name)))
            raise self.found[-1]
        self._working[text] = name
        try:
            yield
        finally:
            del self._working[text]

    def look(self) -> None:
        """Look once, unless `paused`; what is found is kept."""
        if not self.paused and not self.found:
            try:
                self.owners()
            except TwoOwners as error:
                self.found.append(error)

    async def run(self) -> None:
        """Look at every turn of the event loop, until this is cancelled or something was found."""
        seen: list[frozenset[int]] = []

        def look() -> bool:
            nonlocal seen
            owned = [job.my_tokens for job in self._jobs()]
            # A job that owns what it owned gives the same set: nothing to look at.
            if not (len(owned) == len(seen) and all(map(is_, owned, seen))):
                self.look()
            seen = [] if self.paused else owned
            return bool(self.found)

        await _at_every_turn(look)

    def check(self) -> None:
        """Look once more, and raise what was found first."""
        self.look()
        if self.found:
            raise self.found[0]


async def _at_every_turn(look: Callable[[], bool]) -> None:
    """Call a function at every turn of the event loop, until it returns True. It is called before
    the loop waits for what comes next, and does not keep it from waiting.

    There is no public way to do that. A loop that does not wait as asyncio's own do is kept turning
    instead, which takes a whole core.
    """
    loop = asyncio.get_running_loop()
    selector: Any = getattr(loop, "_selector", None)
    if not hasattr(selector, "__dict__"):
        while not look():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0)
        return
    looks: list[Callable[[], bool]] | None = vars(selector).get(_LOOKS)
    if looks is None:
        looks = vars(selector)[_LOOKS] = []
        selector.select = partial(_look_and_select, looks, selector.select)
    found = loop.create_future()

    def look_now() -> bool:
        if not found.done():
            try:
                if look():
                    found.set_result(None)
            except Exception as error:  # raised where it is waited for
                found.set_exception(error)
        return found.done()

    looks.append(look_now)
    try:
        await found
    finally:
        looks.remove(look_now)


_LOOKS = "_jobsync_async_looks"


def _look_and_select(
    looks: list[Callable[[], bool]], select: Callable[[float | None], Any], wait_sec: float | None
) -> Any:
    over = [look() for look in looks]
    # Who waits for the end of a look goes on in the next turn, which has to come now.
    return select(0 if any(over) else wait_sec)
