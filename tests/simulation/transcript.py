"""What happened, in readable lines: at which virtual second, who, what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.simulation.process import shown
from tests.simulation.tables import Transaction, View

_LOGGER = "jobsync_async"


class Transcript:
    """Collects lines, when it is wanted; otherwise costs nothing."""

    def __init__(self, now: Callable[[], float], *, wanted: bool) -> None:
        self.lines: list[str] = []
        self.wanted = wanted
        self._now = now

    def note(self, who: str, what: str) -> None:
        if self.wanted:
            self.lines.append(f"{self._now():9.4f}  {who:<8} {what}")

    def committed(self, tx: Transaction, before: View, after: View) -> None:
        """What a commit changed; heartbeats are left out."""
        if not self.wanted:
            return
        changes = [
            f"{key} {new}" for key, old, new in self._changes(tx, before, after) if old != new
        ]
        if changes:
            self.note("tables", f"version {after.cluster.version}: " + ", ".join(changes))
        for token, _, epoch in tx.fenced:
            self.note(
                "tables", f"a commit through the fence of token {token}, epoch {shown(epoch)}"
            )

    @staticmethod
    def _changes(
        tx: Transaction, before: View, after: View
    ) -> Iterator[tuple[str, object, object]]:
        def node_of(view: View, name: str) -> object:
            node = view.node.get(name)
            return (
                "has no row" if node is None else f"is {str(node.incarnation)[:4]} ({node.state})"
            )

        def token_of(view: View, token: int) -> object:
            row = view.token.get(token)
            if row is None:
                return "has no row"
            going = "" if row.next_node is None else f" -> {row.next_node or 'nobody'}"
            return f"{row.node or 'nobody'}/{str(row.incarnation)[:4]}{going} e{shown(row.epoch)}"

        if before.cluster.generation != after.cluster.generation:
            yield "generation", before.cluster.generation, after.cluster.generation
        if before.cluster.term != after.cluster.term:
            yield (
                "leader",
                before.cluster.term,
                f"{after.cluster.leader} in term {after.cluster.term}",
            )
        for name in tx.written.get("node", ()):
            yield name, node_of(before, name), node_of(after, name)
        for token in tx.written.get("token", ()):
            yield f"token {token}", token_of(before, token), token_of(after, token)


@contextmanager
def logged(transcript: Transcript) -> Iterator[None]:
    """The library's own log goes into the transcript, or nowhere."""
    logger = logging.getLogger(_LOGGER)
    level, propagate = logger.level, logger.propagate
    handler = _Handler(transcript)
    logger.setLevel(logging.INFO if transcript.wanted else logging.CRITICAL + 1)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Handler(logging.Handler):
    def __init__(self, transcript: Transcript) -> None:
        super().__init__()
        self._transcript = transcript

    def emit(self, record: logging.LogRecord) -> None:
        loop = asyncio._get_running_loop()
        self._transcript.note(getattr(loop, "name", "?"), f"log: {record.getMessage()}")
