"""A newcomer's mistakes are answered with what to do."""

from __future__ import annotations

import pytest

from jobsync_async import ConfigError, CoordinationConfig, Job, NotOwner, StoreUnavailable
from tests.handling import nothing


def test_a_dsn_in_place_of_the_configuration_is_not_repeated():
    with pytest.raises(ConfigError, match=r"A DSN goes into CoordinationConfig\(dsn=…\)") as caught:
        Job("anna", "postgresql://u:s3cret@h/d")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("ids", ["abc", b"abc", 7, None])
async def test_one_id_is_not_taken_for_its_characters(ids):
    async with Job("anna") as job:
        for run in (job.run_batch, job.run_owned):
            with pytest.raises(
                ConfigError, match="ids must be an iterable of task ids, such as a list"
            ):
                await run(ids, nothing)


async def test_a_server_that_is_not_there_leads_to_the_settings():
    with pytest.raises(
        StoreUnavailable, match="do host, port, dbname, user and password"
    ) as caught:
        await Job("anna", CoordinationConfig(host="127.0.0.1", port=1, password="s3cret")).start()
    assert caught.value.__cause__ is not None
    assert "s3cret" not in str(caught.value)


async def test_a_task_of_another_worker_is_answered_with_how_to_ask_before(jobs):
    anna, berta = await jobs.start("anna", "berta")
    await jobs.even()
    task = next(n for n in range(1000) if berta.owns(n))
    for attempt in (anna.add_task(task), anna.claim(task).__aenter__()):
        with pytest.raises(NotOwner, match=r"ask job.owns\(…\) first"):
            await attempt
