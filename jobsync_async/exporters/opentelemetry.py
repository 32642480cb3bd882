"""OpenTelemetry: instruments that show the metrics of jobs, and spans of what they do. Needs the
extra ``otel``, which is the API alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from weakref import WeakKeyDictionary, ref

from opentelemetry.metrics import CallbackOptions, Meter, Observation, get_meter
from opentelemetry.trace import Tracer

from jobsync_async.exporters.catalogue import DURATIONS, LABELS, METRICS, Metric, label_values
from jobsync_async.exporters.spans import trace_job
from jobsync_async.job import Job
from jobsync_async.metrics import BOUNDS_SEC

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def instrument(job: Job, meter: Meter | None = None, tracer: Tracer | None = None) -> None:
    """Show a job's metrics through a meter, and what it does as spans of a tracer, from now on and
    until nobody refers to the job any more. Does no I/O.

    Call it once for each job, before or after its start. Called again for the same meter, it adds
    no metrics. The tracer of the last call counts.

    Args:
        meter: None is the global provider's, for ``jobsync_async``.
        tracer: the same; a `NoOpTracer` shows no spans, and costs nothing.
    """
    meter = _own_meter() if meter is None else meter
    instruments = _instruments.get(meter)
    if instruments is None:
        instruments = _instruments[meter] = _Instruments(meter)
    instruments.show(job)
    trace_job(job, tracer)


class _Instruments:
    """One meter's: made once, for all jobs."""

    def __init__(self, meter: Meter) -> None:
        self._jobs: tuple[
            ref[Job], ...
        ] = ()  # replaced, never changed: it is read in the exporter's thread
        makers = {
            "counter": meter.create_observable_counter,
            "gauge": meter.create_observable_gauge,
            "updown": meter.create_observable_up_down_counter,
        }
        for metric in METRICS:
            makers[metric.kind](
                metric.name, [self._reader(metric)], unit=metric.unit, description=metric.help
            )
        self._histograms = [
            meter.create_histogram(
                durations.name,
                unit="s",
                description=durations.help,
                explicit_bucket_boundaries_advisory=BOUNDS_SEC,
            )
            for durations in DURATIONS
        ]

    def show(self, job: Job) -> None:
        if any(known() is job for known in self._jobs):
            return
        self._jobs = (*(known for known in self._jobs if known() is not None), ref(job))
        attributes = dict(zip(LABELS, label_values(job), strict=True))
        for durations, histogram in zip(DURATIONS, self._histograms, strict=True):
            kept = durations.read(job)
            kept.listeners = (*kept.listeners, partial(histogram.record, attributes=attributes))

    def _reader(self, metric: Metric) -> Callback:
        names = (*LABELS, metric.label) if metric.label else LABELS

        def read(_: CallbackOptions) -> list[Observation]:
            return [
                Observation(number, dict(zip(names, values, strict=True)))
                for known in self._jobs
                if (job := known()) is not None
                for values, number in metric.readings(job)
            ]

        return read


@cache
def _own_meter() -> Meter:
    # Before there is a provider, each call would give another one.
    return get_meter("jobsync_async")


_instruments: WeakKeyDictionary[Meter, _Instruments] = WeakKeyDictionary()
