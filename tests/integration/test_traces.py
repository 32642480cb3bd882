"""What a job does, as OpenTelemetry's SDK records it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import anyio
import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracer, SpanKind, StatusCode

from jobsync_async import Job, NotOwner, OwnershipLost, UsageError
from jobsync_async.exporters.opentelemetry import instrument
from jobsync_async.testing import Cluster
from tests.handling import nothing

PROVIDER = TracerProvider()
TRACER = PROVIDER.get_tracer("test")


class Spans:
    """What has ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def of(self, operation: str) -> list[ReadableSpan]:
        """By the first word of their names."""
        ended = self._exporter.get_finished_spans()
        return [span for span in ended if span.name.split()[0] == operation]

    def one(self, operation: str) -> ReadableSpan:
        (span,) = self.of(operation)
        return span


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    PROVIDER.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(exporter) -> Iterator[Spans]:
    exporter.clear()
    yield Spans(exporter)
    assert trace.get_current_span() is trace.INVALID_SPAN, "nothing is left in the context"


def traced(*args, **options) -> Job:
    job = Job(*args, **options)
    instrument(job, tracer=TRACER)
    return job


async def test_a_claim_is_a_span_with_the_names_of_the_conventions(config, spans):
    async with traced("anna", config) as job:
        with TRACER.start_as_current_span("request"):
            async with job.claim("order-1") as claim:
                with TRACER.start_as_current_span("inside"):
                    pass
            with TRACER.start_as_current_span("after"):
                pass
    request, span, inside, after = map(spans.one, ("request", "claim", "inside", "after"))
    assert dict(span.attributes) == {
        "messaging.system": "jobsync",
        "messaging.operation.name": "claim",
        "messaging.operation.type": "process",
        "jobsync.appname": "sync_",
        "jobsync.worker": "anna",
        "jobsync.task_id": "order-1",
        "jobsync.token_id": claim.token_id,
        "jobsync.epoch": claim.epoch,
        "jobsync.outcome": "completed",
    }
    assert span.kind is SpanKind.CONSUMER and span.status.status_code is StatusCode.UNSET
    assert span.parent.span_id == request.context.span_id == after.parent.span_id
    assert inside.parent.span_id == span.context.span_id


async def test_how_a_claim_ends(quick, spans):
    async with Cluster(quick) as cluster:
        anna = traced("anna", await cluster.config_for("anna"))
        await anna.start()
        cluster.add(anna)
        with pytest.raises(ZeroDivisionError):
            async with anna.claim("x"):
                raise ZeroDivisionError("by hand")
        with anyio.move_on_after(0.01):
            async with anna.claim("x"):
                await anyio.sleep_forever()
        with pytest.raises(OwnershipLost):
            async with anna.claim("x"):
                await cluster.expire(anna)
                await anyio.sleep_forever()
        with pytest.raises(NotOwner):
            async with anna.claim("x"):
                pass
        await cluster.settled()
        async with anna.claim("x"):
            with pytest.raises(UsageError):
                async with anna.claim("x"):
                    pass
    ends = [
        (
            span.attributes["jobsync.outcome"],
            span.attributes.get("jobsync.leaving"),
            span.attributes.get("error.type"),
            span.status.status_code,
            [event.name for event in span.events],
        )
        for span in spans.of("claim")
    ]
    usage = "jobsync_async.errors.UsageError"
    assert ends == [
        ("failed", None, "ZeroDivisionError", StatusCode.ERROR, ["exception"]),
        ("cancelled", None, None, StatusCode.UNSET, []),
        ("cancelled", "lost", None, StatusCode.UNSET, []),
        ("not_owner", None, None, StatusCode.UNSET, []),
        ("failed", None, usage, StatusCode.ERROR, ["exception"]),
        ("completed", None, None, StatusCode.UNSET, []),
    ]
    assert spans.of("claim")[0].status.description == "by hand"


@pytest.mark.parametrize("in_thread", [False, True])
async def test_a_batch_is_a_span_for_each_attempt_with_a_link_to_its_caller(
    config, spans, in_thread
):
    failed: list[str] = []

    def work(claim) -> None:
        assert baggage.get_baggage("tenant") == "t1", "the caller's context is here"
        with TRACER.start_as_current_span("inside"):
            if claim.task_id == "b" and not failed:
                failed.append(claim.task_id)
                raise ZeroDivisionError("once")

    async def work_here(claim) -> None:
        work(claim)
        await asyncio.sleep(0)

    async with traced("anna", config) as job:
        token = context.attach(baggage.set_baggage("tenant", "t1"))
        with TRACER.start_as_current_span("request") as request:
            result = await job.run_batch(
                ["a", "b"], work if in_thread else work_here, name="invoices"
            )
        context.detach(token)
    assert result.completed_here == {"a", "b"}
    attempts = spans.of("process")
    assert {span.name for span in attempts} == {"process invoices"}
    told = sorted(
        (span.attributes["jobsync.task_id"], span.attributes["jobsync.attempt"])
        for span in attempts
    )
    assert told == [("a", 1), ("b", 1), ("b", 2)]
    for span in attempts:
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [request.get_span_context().span_id]
        assert span.kind is SpanKind.CONSUMER
    (error,) = [span for span in attempts if not span.status.is_unset]
    assert error.attributes["error.type"] == "ZeroDivisionError"
    assert error.attributes["jobsync.outcome"] == "failed"
    assert [event.name for event in error.events] == ["exception"]
    about = dict(error.attributes)
    assert about.pop("jobsync.epoch") >= 1 and about.pop("jobsync.token_id") >= 0
    assert about == {
        "messaging.system": "jobsync",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "invoices",
        "jobsync.appname": "sync_",
        "jobsync.worker": "anna",
        "jobsync.runner": "batch",
        "jobsync.task_id": "b",
        "jobsync.attempt": 1,
        "jobsync.outcome": "failed",
        "error.type": "ZeroDivisionError",
    }
    assert {span.parent.span_id for span in spans.of("inside")} == {
        span.context.span_id for span in attempts
    }


async def test_what_run_owned_ends_is_no_error_and_says_why(config, spans):
    began = asyncio.Event()

    async def serve(claim) -> None:
        began.set()
        await anyio.sleep_forever()

    job = traced("anna", config)
    await job.start()
    owned = asyncio.ensure_future(job.run_owned(["a"], serve, name="streams"))
    await began.wait()
    await job.stop()
    with pytest.raises(UsageError):
        await owned
    span = spans.one("process")
    assert (span.name, span.status.is_unset, span.events) == ("process streams", True, ())
    assert span.attributes["jobsync.runner"] == "owned"
    assert span.attributes["jobsync.outcome"] == "cancelled"
    assert span.attributes["jobsync.leaving"] == "stopping"


async def test_a_rebalance_and_the_hand_off_that_follows_are_spans(jobs, config, spans):
    anna, berta = traced("anna", config), traced("berta", config)
    with TRACER.start_as_current_span("starting"):
        for job in (anna, berta):
            await job.start()
            jobs.add(job)
    await jobs.even()
    first, second = [s for s in spans.of("rebalance") if "jobsync.reason" in s.attributes]
    assert dict(second.attributes) == {
        "jobsync.appname": "sync_",
        "jobsync.worker": "anna",
        "jobsync.term": anna._worker.term,
        "jobsync.reason": "berta joined",
        "jobsync.tokens": 60,
        "jobsync.workers": 2,
        "jobsync.outcome": "completed",
    }
    assert first.attributes["jobsync.tokens"] == 120
    handed_on = spans.of("hand_off")
    assert sum(span.attributes["jobsync.tokens"] for span in handed_on) == 60
    assert {span.attributes["jobsync.worker"] for span in handed_on} == {"anna"}
    for span in (first, second, *handed_on):
        assert (span.kind, span.parent, span.links) == (SpanKind.INTERNAL, None, ())
    assert all(0 < span.end_time - span.start_time < 20e9 for span in handed_on)


async def test_a_job_that_starts_again_is_shown_as_before(config, spans):
    job = traced("anna", config)
    for _ in range(2):
        async with job, job.claim("x"):
            pass
    assert len(spans.of("claim")) == 2
    assert job.metrics.heartbeat_duration.listeners


async def test_without_a_tracer_there_is_nothing(config, spans):
    job = Job("anna", config)
    instrument(job, tracer=NoOpTracer())
    assert job._worker.tracer is None
    async with job, job.claim("x"):
        await job.run_batch(["y"], nothing)
    assert not spans.of("claim") and not spans.of("process")


def test_a_worker_imports_nothing_of_opentelemetry():
    program = (
        "import asyncio, sys\n"
        "from jobsync_async import Job\n"
        "async def handle(claim): pass\n"
        "async def main():\n"
        "    async with Job('anna') as job, job.claim('x'):\n"
        "        await job.run_batch(['y'], handle)\n"
        "asyncio.run(main())\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
