"""OpenTelemetry: what a job does, as spans.

Names and attributes follow its conventions for messaging where these fit, for a task is handed to
a handler as a message is: ``messaging.…``. All else is ``jobsync.…``.

* A call of a handler is the root of a trace of its own, with a link to what called ``run_batch`` or
  ``run_owned``. That is how the conventions have the processing of batches: one trace of all
  ids would be large, take hours, and be sampled as a whole.
* A claim is a child of what goes on around it.
* What a worker does by itself is a root, whatever went on where it was started.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NoOpTracer,
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    get_tracer,
    set_span_in_context,
)

from jobsync_async import __version__
from jobsync_async.exporters.catalogue import label_values
from jobsync_async.job import Job
from jobsync_async.tasks.traces import Outcome, Spanned


class _Kind(NamedTuple):
    span: SpanKind
    operation: str | None = None
    root: bool = True
    linked: bool = False


_KINDS: dict[Spanned, _Kind] = {
    "claim": _Kind(SpanKind.CONSUMER, "process", root=False),
    "process": _Kind(SpanKind.CONSUMER, "process", linked=True),
    "hand_off": _Kind(SpanKind.INTERNAL),
    "rebalance": _Kind(SpanKind.INTERNAL),
}
# A handler that failed without an error has done that.
_BLOCKED = "blocked_event_loop"
_NAMES = {"destination": "messaging.destination.name"}


def trace_job(job: Job, tracer: Tracer | None = None) -> None:
    """Show what a job does as spans of a tracer; None is the global provider's."""
    tracer = get_tracer("jobsync_async", __version__) if tracer is None else tracer
    job._worker.tracer = None if isinstance(tracer, NoOpTracer) else _JobTracer(tracer, job)


class _JobTracer:
    """A `tasks.traces.Tracer`."""

    def __init__(self, tracer: Tracer, job: Job) -> None:
        appname, worker = label_values(job)
        self._tracer = tracer
        self._own = {"jobsync.appname": appname, "jobsync.worker": worker}

    def begin(self, what: Spanned, /, *, ago_sec: float = 0.0, **facts: object) -> _Open:
        kind, before = _KINDS[what], contexts.get_current()
        attributes = self._own | _attributes(facts)
        if kind.operation is not None:
            attributes["messaging.system"] = "jobsync"
            attributes["messaging.operation.name"] = what
            attributes["messaging.operation.type"] = kind.operation
        caller = get_current_span(before).get_span_context()
        span = self._tracer.start_span(
            f"{what} {facts['destination']}" if "destination" in facts else what,
            context=set_span_in_context(INVALID_SPAN, before) if kind.root else before,
            kind=kind.span,
            attributes=attributes,
            links=[Link(caller)] if kind.linked and caller.is_valid else None,
            start_time=time.time_ns() - round(ago_sec * 1e9),
        )
        return _Open(span, before)


class _Open:
    """A `tasks.traces.Span`."""

    def __init__(self, span: Span, before: Context) -> None:
        self._span = span
        self._before = before
        self._inside = set_span_in_context(span, before)
        contexts.attach(self._inside)

    def end(self, outcome: Outcome, error: BaseException | None = None, /, **facts: object) -> None:
        span = self._span
        span.set_attributes({"jobsync.outcome": outcome, **_attributes(facts)})
        if outcome == "failed":
            span.set_status(Status(StatusCode.ERROR, None if error is None else str(error)))
            span.set_attribute("error.type", _BLOCKED if error is None else _type_name(error))
        if error is not None:
            span.record_exception(error)
        span.end()
        # It may end elsewhere than it began; and whoever went on meanwhile sees to what he did.
        if contexts.get_current() is self._inside:
            contexts.attach(self._before)


def _attributes(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        _NAMES.get(name, f"jobsync.{name}"): value
        for name, value in facts.items()
        if value is not None
    }


def _type_name(error: BaseException) -> str:
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{module}{kind.__qualname__}"
