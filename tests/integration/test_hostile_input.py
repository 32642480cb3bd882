"""Whatever text comes in at any entrance is stored and comes back as it was, or is refused whole
with an error of ours."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobsync_async import ConfigError, CoordinationConfig, Job
from tests.clusters import cluster

hostile_text = st.one_of(
    st.text(max_size=40),  # surrogates and NUL included
    st.text(st.sampled_from("'\"\\;%_-$ \n\t\0\x01\ud800\ufeff\u202e漢😀{}()"), max_size=20),
    st.sampled_from(
        [
            "'; DROP TABLE sync_token; --",
            "$$",
            "%s",
            "%(x)s",
            "{token}",
            "\\",
            "E'\\''",
            "NULL",
            "",
            " ",
            "x" * 5000,
        ]
    ),
)
hostile_id = st.one_of(
    hostile_text,
    st.integers(),
    st.floats(),
    st.binary(max_size=20),
    st.none(),
    st.booleans(),
    st.tuples(st.integers(), st.text()),
)
against_one_database = settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def job(make_config) -> AsyncIterator[Job]:
    async with cluster(make_config(total_tokens=3)) as jobs:
        (job,) = await jobs.start("a")
        yield job


async def rows(admin: psycopg.AsyncConnection[Any], table: str) -> list[Any]:
    return await (await admin.execute(f"SELECT task_id FROM sync_{table} ORDER BY 1")).fetchall()


@against_one_database
@given(ids=st.lists(hostile_id, min_size=1, max_size=3))
async def test_ids_are_stored_as_they_are_or_refused_whole(job, admin, ids):
    await admin.execute("TRUNCATE sync_claim, sync_audit")
    texts = {str(one) for one in ids}
    try:
        assert [job.owns(one) for one in ids] == [True] * len(ids)
        await job.set_claim(list(ids))
        await job.add_tasks(ids)
        assert await job.write_audit() == len(texts)
    except ConfigError:
        assert any(_unusable(one) for one in ids)
        assert await rows(admin, "claim") == await rows(admin, "audit") == []
    else:
        assert not any(_unusable(one) for one in ids)
        assert {text for (text,) in await rows(admin, "claim")} == texts
        assert {row["task_id"] for row in await job.get_audit()} == texts


def _unusable(one: Any) -> bool:
    return _unstorable(str(one)) or (isinstance(one, float) and math.isnan(one))


def _unstorable(text: str) -> bool:
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


@against_one_database
@given(ids=st.lists(hostile_id, min_size=1, max_size=3, unique_by=str))
async def test_a_batch_of_hostile_ids_is_done_or_refused_before_it_begins(job, admin, ids):
    await admin.execute("TRUNCATE sync_claim, sync_audit")
    handled: list[Any] = []

    async def handle(claim) -> None:
        handled.append(claim.task_id)

    try:
        await job.run_batch(ids, handle, attempts=1)
    except ConfigError:
        # Two that are equal, as 0 and False.
        assert any(_unusable(one) for one in ids) or len(set(ids)) < len(ids)
        assert handled == await rows(admin, "claim") == await rows(admin, "audit") == []
    else:
        assert (
            {text for (text,) in await rows(admin, "audit")}
            == {str(one) for one in ids}
            == set(map(str, handled))
        )


@against_one_database
@given(
    task_id=hostile_id,
    patterns=st.one_of(hostile_text, st.lists(hostile_text, max_size=3)),
    reason=st.none() | hostile_text,
)
async def test_a_pin_is_stored_as_it_is_or_refused_whole(job, admin, task_id, patterns, reason):
    await job.clear_all_locks()
    try:
        await job.register_lock(task_id, patterns, reason)
    except ConfigError:
        assert await rows(admin, "lock") == []
    else:
        (lock,) = await job.list_locks()
        wanted = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        assert (lock.task_id, lock.node_patterns, lock.reason) == (str(task_id), wanted, reason)


@against_one_database
@given(
    bulk=st.lists(st.tuples(hostile_id, hostile_text, st.none() | hostile_text), max_size=3),
    days=st.floats() | st.integers(),
)
async def test_pins_in_bulk_are_stored_or_refused_whole(job, admin, bulk, days):
    await job.clear_all_locks()
    try:
        refused = await job.register_locks_bulk(bulk, expires_in_days=days)
    except ConfigError:
        assert await rows(admin, "lock") == []
    else:
        stored = {text for (text,) in await rows(admin, "lock")}
        assert stored | {conflict.task_id for conflict in refused} == {
            str(task_id) for task_id, _, _ in bulk
        }


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(name=hostile_text, address=st.none() | hostile_text)
async def test_a_worker_of_any_name_and_address_works_or_is_refused(
    make_config, admin, name, address
):
    try:
        job = Job(name, make_config(total_tokens=3), address=address, wait_on_enter=20)
    except ConfigError:
        return
    async with job:
        assert len(job.my_tokens) == 3
        owner = await job.owner_of("x")
        assert (owner.node, owner.address) == (name, address)
        assert await (await admin.execute("SELECT name, address FROM sync_node")).fetchall() == [
            (name, address)
        ]
    assert await (await admin.execute("SELECT name FROM sync_node")).fetchall() == []


@given(
    st.dictionaries(
        st.sampled_from(list(CoordinationConfig.__dataclass_fields__)), hostile_id, max_size=4
    )
)
def test_any_setting_is_taken_or_refused_with_our_error(fields):
    try:
        config = CoordinationConfig(**fields)
        config.conninfo("x")
    except ConfigError:
        return
    assert config.channel == f"{config.appname}changes"


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.text(st.sampled_from("\"'\\;$ {}()ü漢-.%\n"), min_size=1, max_size=15))
async def test_a_schema_of_any_name_works_or_is_refused(make_config, admin, schema):
    try:
        config = make_config(total_tokens=3, schema=schema)
    except ConfigError:
        assert "%" in schema
        return
    from psycopg import sql

    await admin.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    try:
        async with Job("a", config, wait_on_enter=20) as job, job.claim("x") as claim:
            async with await psycopg.AsyncConnection.connect(config.dsn) as connection:
                await job.fence(connection, claim)
    finally:
        await admin.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


payloads = st.lists(
    st.one_of(
        hostile_text.filter(lambda text: not _unstorable(text)),
        st.integers(-(10**20), 10**20).map(str),
        st.just("9" * 7000),
    ),
    min_size=1,
    max_size=20,
)


@pytest.mark.needs("sessions")
@against_one_database
@given(payloads=payloads)
async def test_no_payload_disturbs_a_listener(job, admin, payloads):
    before = job.metrics.notifications
    for payload in payloads:
        await admin.execute("SELECT pg_notify('sync_changes', %s)", [payload])
    while job.metrics.notifications < before + len(payloads):
        await asyncio.sleep(0.001)
    assert job.am_i_healthy()
    assert len(job.my_tokens) == 3
    assert job.metrics.listener_reconnects == 0
