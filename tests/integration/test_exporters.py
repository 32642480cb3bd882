"""Metrics as the real libraries show them, and the dashboard and alerts that are made of them."""

from __future__ import annotations

import gc
import json
import re
from pathlib import Path

import anyio
import pytest
import yaml
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import Histogram, InMemoryMetricReader, Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from jobsync_async import Job, OwnershipLost
from jobsync_async.core.distribution import REASONS
from jobsync_async.exporters.catalogue import DURATIONS, METRICS, prometheus_name
from jobsync_async.exporters.opentelemetry import instrument
from jobsync_async.exporters.prometheus import JobCollector
from jobsync_async.metrics import BOUNDS_SEC

DOCS = Path(__file__).parents[2] / "docs"
MADE_BY_PROMETHEUS = {"up"}


def scraped(*jobs: Job) -> dict[str, dict[tuple[str, ...], float]]:
    """Every sample of a scrape by its name, and by the values of its labels but `appname`."""
    registry = CollectorRegistry()
    registry.register(JobCollector(*jobs))
    samples: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert sample.labels["appname"] == "sync_"
            labels = tuple(
                value for name, value in sorted(sample.labels.items()) if name != "appname"
            )
            samples.setdefault(sample.name, {})[labels] = sample.value
    return samples


async def test_prometheus_shows_what_two_workers_did(jobs, config):
    anna, berta = [(await jobs.start(name))[0] for name in ("anna", "berta")]
    await jobs.even()
    task = next(n for n in range(1000) if anna.owns(n))
    async with anna.claim(task):
        during = scraped(anna, berta)
    seen = scraped(anna, berta)

    assert during["jobsync_claims_active"] == {("anna",): 1, ("berta",): 0}
    assert seen["jobsync_claims_active"][("anna",)] == 0
    assert seen["jobsync_claims_total"][("anna",)] == 1
    assert seen["jobsync_tokens_owned"] == {("anna",): 60, ("berta",): 60}
    assert seen["jobsync_tokens"] == {("anna",): 120, ("berta",): 120}
    assert seen["jobsync_leader"] == {("anna",): 1, ("berta",): 0}
    assert 0 < seen["jobsync_lease_remaining_seconds"][("berta",)] <= config.lease_sec
    by_reason = {reason: seen["jobsync_rebalances_total"][(reason, "anna")] for reason in REASONS}
    assert by_reason == {**dict.fromkeys(REASONS, 0), "first": 1, "joined": 1}
    assert seen["jobsync_handoffs_total"][("anna",)] == 60
    assert seen["jobsync_tokens_moved_total"][("anna",)] == 180
    assert (seen["jobsync_notifications_total"][("berta",)] >= 1) is config.notify
    assert seen["jobsync_handoff_duration_seconds_count"][("anna",)] == 1
    assert (
        seen["jobsync_heartbeat_duration_seconds_count"][("anna",)] == anna.metrics.heartbeats >= 1
    )
    assert seen["jobsync_rebalance_duration_seconds_sum"][("anna",)] > 0

    buckets = seen["jobsync_heartbeat_duration_seconds_bucket"]
    cumulative = [buckets[(bound, "anna")] for bound in (*map(str, BOUNDS_SEC), "+Inf")]
    assert cumulative == sorted(cumulative)
    assert cumulative[-1] == anna.metrics.heartbeats


async def test_a_death_is_a_takeover_and_its_reason_is_one_of_few(quick_jobs, quick):
    await quick_jobs.start("anna")
    await quick_jobs.start("berta")
    await quick_jobs.even()
    await quick_jobs.crash("berta")
    await quick_jobs.settled()
    (anna,) = quick_jobs.jobs.values()
    seen = scraped(anna)
    assert seen["jobsync_takeover_duration_seconds_count"][("anna",)] == 1
    assert (
        quick.heartbeat_timeout_sec <= seen["jobsync_takeover_duration_seconds_sum"][("anna",)] < 10
    )
    assert seen["jobsync_rebalances_total"][("expired", "anna")] == 1
    assert seen["jobsync_workers_expired_total"][("anna",)] == 1


async def test_a_rejected_fence_is_counted(config, admin):
    from psycopg import AsyncConnection

    async with Job("anna", config) as job, job.claim("x") as claim:
        await admin.execute(
            "UPDATE sync_token SET epoch = epoch + 1 WHERE token_id = %s", [claim.token_id]
        )
        async with await AsyncConnection.connect(config.dsn) as connection:
            with pytest.raises(OwnershipLost):
                await job.fence(connection, claim)
        assert scraped(job)["jobsync_fence_rejections_total"][("anna",)] == 1


def read(reader: InMemoryMetricReader) -> dict[str, object]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        m.name: m
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for m in scope.metrics
    }


async def test_opentelemetry_shows_the_same_and_forgets_a_job_that_is_gone(config):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    meter = provider.get_meter("test")
    job = Job("anna", config)
    instrument(job, meter)
    instrument(job, meter)  # known already
    other = Job("standalone")
    instrument(other, meter)
    async with job, other:
        with anyio.fail_after(10):
            while not job.metrics.heartbeats:
                await anyio.sleep(0.01)
        seen, prometheus = read(reader), scraped(job, other)

        assert set(seen) >= {metric.name for metric in METRICS}
        owned = {
            p.attributes["worker"]: p.value for p in seen["jobsync.tokens.owned"].data.data_points
        }
        assert owned == {"anna": 120, "standalone": 10_000}
        for metric in METRICS:
            assert seen[metric.name].unit == metric.unit
            assert isinstance(seen[metric.name].data, Sum) == (metric.kind != "gauge")
            if metric.name == "jobsync.lease.remaining":
                continue  # runs on between the two readings; a standalone job has none
            name = prometheus_name(metric.name, unit=metric.unit, counter=metric.kind == "counter")
            points = seen[metric.name].data.data_points
            told = {
                tuple(
                    value for label, value in sorted(p.attributes.items()) if label != "appname"
                ): p.value
                for p in points
            }
            assert told == prometheus[name], metric.name
        histogram = seen["jobsync.heartbeat.duration"].data
        assert isinstance(histogram, Histogram)
        (point,) = histogram.data_points
        assert list(point.bucket_counts) == job.metrics.heartbeat_duration.counts
        assert tuple(point.explicit_bounds) == BOUNDS_SEC
        assert point.attributes == {"appname": "sync_", "worker": "anna"}
    del job, other
    gc.collect()
    # Tasks of the job that have ended may still be referred to for a turn of the loop.
    with anyio.fail_after(10):
        while any(
            metric.data.data_points
            for name, metric in read(reader).items()
            if name == "jobsync.tokens"
        ):
            await anyio.sleep(0.01)
            gc.collect()
    provider.shutdown()


def test_one_registry_takes_several_jobs_in_one_collector_and_refuses_a_second_one():
    registry = CollectorRegistry()
    first, second = Job("anna"), Job("berta")
    collector = JobCollector(first)
    registry.register(collector)
    collector.add(second)
    assert (
        registry.get_sample_value("jobsync_tokens", {"appname": "sync_", "worker": "berta"})
        == 10_000
    )
    collector.remove(first)
    assert (
        registry.get_sample_value("jobsync_tokens", {"appname": "sync_", "worker": "anna"}) is None
    )
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(JobCollector(second))


def test_prometheus_names_are_as_its_conventions_want_them():
    for metric in METRICS:
        name = prometheus_name(metric.name, unit=metric.unit, counter=metric.kind == "counter")
        assert re.fullmatch(r"jobsync(_[a-z]+)+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert len({metric.name for metric in METRICS} | {d.name for d in DURATIONS}) == len(
        METRICS
    ) + len(DURATIONS)


# -- dashboard and alerts --------------------------------------------------------------------------


def exposed() -> set[str]:
    """Every sample name that a scrape can have."""
    return set(scraped(Job("anna"))) | {"jobsync_lease_remaining_seconds"}


def named(expression: str) -> set[str]:
    """The metrics that a PromQL expression names: what is no function, label or keyword."""
    without_labels = re.sub(
        r"\{[^}]*\}|\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)"
        r"|\[[^]]*\]|\"[^\"]*\"",
        " ",
        expression,
    )
    return set(re.findall(r"\b(?!\d)([a-z_]\w*)\b(?! *\()", without_labels)) - {
        "and",
        "or",
        "unless",
        "by",
        "bool",
    }


def test_every_metric_of_the_alerts_is_exported_and_each_alert_says_what_to_do():
    rules = [
        rule
        for group in yaml.safe_load((DOCS / "alerts.yaml").read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        metrics = named(rule["expr"])
        assert metrics, rule
        assert metrics <= exposed() | MADE_BY_PROMETHEUS, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            assert label in ("appname", "worker", "reason"), rule["alert"]


def test_every_metric_of_the_dashboard_is_exported_and_every_metric_has_a_place_on_it():
    board = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    shown: set[str] = set()
    for panel in panels:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            metrics = named(target["expr"].replace("$__rate_interval", "5m"))
            assert metrics, panel["title"]
            assert metrics <= exposed(), panel["title"]
            shown |= metrics
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exposed()}
    assert families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == set()
