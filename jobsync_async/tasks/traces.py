"""What is shown as spans, to whoever traces a worker: `exporters.opentelemetry` does. Without one
nothing is made of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

Spanned = Literal["claim", "process", "hand_off", "rebalance"]
"""A claim by `Job.claim`; a call of a handler; tokens on their way from here; a plan that is made
and written."""

Outcome = Literal["completed", "failed", "cancelled", "not_owner"]


class Span(Protocol):
    """Something that goes on."""

    def end(self, outcome: Outcome, error: BaseException | None = None, /, **facts: object) -> None:
        """It has ended. Facts that are None are left out. Called once; must not raise."""


class Tracer(Protocol):
    """Shows what a worker does."""

    def begin(self, what: Spanned, /, *, ago_sec: float = 0.0, **facts: object) -> Span:
        """It begins, or did so many seconds ago. Until its end, it is what goes on in the context
        of the caller. Must not block or raise."""


@contextmanager
def traced(tracer: Tracer | None, what: Spanned, **facts: Any) -> Iterator[dict[str, Any]]:
    """The block is one of these. Facts that are put into what this gives are told at its end."""
    if tracer is None:
        yield {}
        return
    span, found = tracer.begin(what, **facts), dict[str, Any]()
    try:
        yield found
    except asyncio.CancelledError:
        span.end("cancelled", **found)
        raise
    except BaseException as error:  # told, and raised again
        span.end("failed", error, **found)
        raise
    span.end("completed", **found)
