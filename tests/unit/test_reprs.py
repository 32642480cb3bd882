"""What a value looks like in a log, a debugger or a failed assertion."""

from __future__ import annotations

import re

import pytest

from jobsync_async import CoordinationConfig, Job, Task
from jobsync_async.types import TokenChange


def test_a_task_is_shown_as_it_is_made():
    assert [repr(Task("x")), repr(Task(7, "seven"))] == ["Task('x')", "Task(7, name='seven')"]
    assert eval(repr(Task(7, "seven"))) == Task(7)


def test_a_configuration_shows_what_is_not_the_default_and_where_it_leads():
    assert repr(CoordinationConfig()) == "CoordinationConfig(appname='sync_')"
    assert repr(CoordinationConfig(host="h", password="s3cret", heartbeat_timeout_sec=20)) == (
        "CoordinationConfig(host='h', appname='sync_', heartbeat_timeout_sec=20)"
    )


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://anna:s3cret@db:5433/app?sslpassword=s3cret&options=-c%20s3cret",
        (
            "host=db port=5433 dbname=app user=anna password=s3cret sslpassword=s3cret "
            "passfile=/s3cret"
        ),
    ],
)
def test_of_a_dsn_nothing_secret_is_shown(dsn):
    shown = repr(CoordinationConfig(dsn=dsn))
    assert (
        shown == "CoordinationConfig(dsn='host=db port=5433 dbname=app user=anna', appname='sync_')"
    )
    broken = object.__new__(CoordinationConfig)
    for name, value in vars(CoordinationConfig()).items():
        object.__setattr__(broken, name, value)
    object.__setattr__(broken, "dsn", "nonsense s3cret")
    assert repr(broken) == "CoordinationConfig(dsn='cannot be used', appname='sync_')"


def test_a_change_of_thousands_of_tokens_is_short():
    change = TokenChange(
        frozenset(range(5000)),
        frozenset({3, 1}),
        frozenset(),
        frozenset(range(9)),
        12,
        is_initial=True,
    )
    assert repr(change) == (
        "TokenChange(assigned=<5000 tokens>, revoked=[1, 3], lost=[], owned=<9 tokens>, "
        "version=12, is_initial=True)"
    )


async def test_a_job_and_what_it_gives_tell_their_state():
    job = Job("anna")
    assert repr(job) == "<Job 'anna' new>"
    async with job:
        assert re.fullmatch(
            r"<Job 'anna' running, 10000 of 10000 tokens, lease for inf s, leads>", repr(job)
        )
        changes, scope = job.token_changes(), job.claim("x")
        assert repr(changes) == "<TokenChanges of 'anna' open>"
        assert repr(scope) == "<ClaimScope of <Claim 'x' token=1716 epoch=0 not entered>>"
        async with scope as claim:
            assert repr(claim) == "<Claim 'x' token=1716 epoch=1 valid>"
        assert repr(claim) == "<Claim 'x' token=1716 epoch=1 ended>"
        changes.close()
        assert repr(changes) == "<TokenChanges of 'anna' closed>"
    assert repr(job) == "<Job 'anna' stopped>"
