"""`jobsync-async certify` where it takes longer: with the default times, through poolers, and for a
role that may make no tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.integration.test_command_line import run, tables
from tests.poolers import pgbouncer

pytestmark = [pytest.mark.faults, pytest.mark.long]


def certified(dsn: str, *options: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """The checks by name."""
    done = run("certify", "--json", "--dsn", dsn, *options)
    assert done.returncode == status, done.stdout + done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "fail"}


def test_with_the_default_times_it_takes_less_than_a_minute(empty_dsn):
    began = time.monotonic()
    assert failed(certified(empty_dsn)) == set()
    assert time.monotonic() - began < 60
    assert tables(empty_dsn) == []


def test_the_doctor_prints_it_after_what_it_finds(dsn):
    before = tables(dsn)
    done = run("doctor", "--certify", "--json", "--dsn", dsn, "--timeout", "4", "--interval", "1")
    answer = json.loads(done.stdout)
    assert "push" in {check["name"] for check in answer["checks"]}
    assert "fence" in {check["name"] for check in answer["certificate"]["checks"]}
    assert tables(dsn) == before


def test_through_a_pooler_only_listening_fails_and_polling_is_certified(empty_dsn):
    with pgbouncer(empty_dsn, "transaction", size=8) as through:
        checks = certified(through, "--quick", status=1)
        assert failed(checks) == {"notifications"}
        checks = certified(through, "--quick", "--polling")
        assert {name for name, check in checks.items() if check["status"] == "skip"} == {
            "notifications",
            "sessions ended",
        }
        assert checks["fence"]["figures"]["committed"] == ["held"]
    with pgbouncer(empty_dsn, "session", size=50) as through:
        assert failed(certified(through, "--quick")) == set()
    assert tables(empty_dsn) == []


def test_a_role_that_may_make_no_tables_is_told_how_and_then_certifies(
    dsn: str, dsn_with: Callable[..., str]
):
    role = f"app_{time.monotonic_ns()}"
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        try:
            own = dsn_with(user=role, password="x")
            checks = certified(own, "--quick", status=1)
            assert failed(checks) == {"tables"}
            assert "--prefix certify_" in checks["tables"]["advice"]
            assert checks["round trip"]["status"] == checks["notifications"]["status"] == "ok"
            init = run("init", "--dsn", dsn, "--appname", "certify_", "--role", role)
            assert init.returncode == 0, init.stderr
            for _ in range(2):
                checks = certified(own, "--quick", "--prefix", "certify_")
                assert failed(checks) == set()
                assert checks["left behind"]["figures"]["rows"] == 10_001
            assert admin.execute("SELECT count(*) FROM certify_node").fetchone() == (0,)
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")
