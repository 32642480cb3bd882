"""Prometheus: a collector that reads the metrics of jobs whenever it is scraped. Needs the extra
``prometheus``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from jobsync_async.exporters.catalogue import (
    DURATIONS,
    LABELS,
    METRICS,
    label_values,
    prometheus_name,
)
from jobsync_async.job import Job
from jobsync_async.metrics import BOUNDS_SEC

_BUCKETS = [*map(floatToGoString, BOUNDS_SEC), "+Inf"]


class JobCollector(Collector):
    """Shows the metrics of one or more jobs: ``REGISTRY.register(JobCollector(job))``. Reading them
    does no I/O.

    Several jobs of one process belong into one collector, for a registry takes each metric name
    once.
    """

    def __init__(self, *jobs: Job) -> None:
        self._jobs = list(jobs)

    def add(self, job: Job) -> None:
        """Show this job too."""
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Show it no more. Raises ValueError when it was not shown."""
        self._jobs.remove(job)

    def describe(self) -> Iterator[Metric]:
        """The metrics without their values, for the registry to find names that are taken."""
        return self._families(())

    def collect(self) -> Iterator[Metric]:
        """The metrics with their values at this moment. Called by the registry, from any thread."""
        return self._families(tuple(self._jobs))

    def _families(self, jobs: tuple[Job, ...]) -> Iterator[Metric]:
        for metric in METRICS:
            counts = metric.kind == "counter"
            name = prometheus_name(metric.name, unit=metric.unit, counter=counts)
            labels = (*LABELS, metric.label) if metric.label else LABELS
            family: CounterMetricFamily | GaugeMetricFamily = (
                CounterMetricFamily if counts else GaugeMetricFamily
            )(name, metric.help, labels=labels)
            for job in jobs:
                for values, number in metric.readings(job):
                    family.add_metric(values, number)
            yield family
        for durations in DURATIONS:
            shown = HistogramMetricFamily(
                prometheus_name(durations.name), durations.help, labels=LABELS
            )
            for job in jobs:
                histogram = durations.read(job)
                buckets = list(zip(_BUCKETS, accumulate(histogram.counts), strict=True))
                shown.add_metric(label_values(job), buckets, sum_value=histogram.sum)
            yield shown
