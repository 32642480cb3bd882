"""Watches that nothing has two owners: no token, and none of the work that a test marks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from operator import is_

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
        while not self.found:
            owned = [job.my_tokens for job in self._jobs()]
            # A job that owns what it owned gives the same set: nothing to look at.
            if not (len(owned) == len(seen) and all(map(is_, owned, seen))):
                self.look()
            seen = [] if self.paused else owned
            await asyncio.sleep(0)

    def check(self) -> None:
        """Look once more, and raise what was found first."""
        self.look()
        if self.found:
            raise self.found[0]
