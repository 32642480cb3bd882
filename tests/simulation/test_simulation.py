"""The simulation: no seed breaks a promise, each rule that is switched off is missed, and the same
seed is the same run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.cancellation import COROUTINES, interrupted
from tests.simulation.faults import BY_SESSION, Profile
from tests.simulation.rules import HIDDEN, RULES
from tests.simulation.runner import replay
from tests.simulation.simulation import Report, run
from tests.simulation.soak import soak

_SEEDS = 200
_PARTS = 10


def explained(report: Report) -> str:
    """A failed run, for people."""
    return "\n".join([*replay(report.seed).lines[-200:], f"seed {report.seed}: {report.failure}"])


@pytest.mark.parametrize("part", range(_PARTS))
def test_whatever_happens_no_promise_is_broken(part):
    for seed in range(part, _SEEDS, _PARTS):
        report = run(seed, Profile())
        assert report.failure is None, explained(report)


@pytest.mark.parametrize("kind", ["shared-storage", "start-time"])
def test_no_promise_is_broken_on_a_server_that_does_not_say_its_timeline(kind):
    """On shared storage no failover begins a generation. By start time each start does."""
    profile = Profile(server=kind).but(failover=3)
    begun = 0
    for seed in range(_SEEDS // _PARTS // 2):
        report = run(seed, profile, transcript=True)
        assert report.failure is None, "\n".join(
            [*report.lines[-200:], f"seed {seed}: {report.failure}"]
        )
        begun += sum("begins the cluster anew" in line for line in report.lines)
    assert (begun > 0) == (kind == "start-time")


def test_with_failover_by_session_what_is_fenced_is_in_order_and_all_is_well_in_the_end():
    """Then a worker that lives may be taken for dead, so two may hold one token; more than that
    must not happen."""
    taken_for_dead = 0
    for seed in range(_SEEDS // _PARTS):
        report = run(seed, BY_SESSION, transcript=True)
        assert report.failure is None, "\n".join(
            [*report.lines[-200:], f"seed {seed}: {report.failure}"]
        )
        taken_for_dead += sum("whose session is gone" in line for line in report.lines)
    assert taken_for_dead > 0


@pytest.mark.parametrize("rule", ["the fence's lock", "epoch raised by expiry"])
def test_with_failover_by_session_too_the_rules_of_fences_are_missed(rule):
    assert any(run(seed, BY_SESSION, broken=[rule]).failure for seed in range(150))


@pytest.mark.parametrize("name", [name for name in RULES if name not in HIDDEN])
def test_a_rule_that_is_switched_off_is_missed(name):
    rule = RULES[name]
    report = rule.violation()
    assert report is not None, f"nothing shows that this rule is off: {name}"
    assert run(report.seed, rule.profile).failure is None, (
        "with the rule, the same seed breaks nothing"
    )


@pytest.mark.parametrize("name", HIDDEN)
def test_a_rule_that_nothing_here_can_miss_says_why(name):
    assert name in RULES
    assert len(HIDDEN[name]) > 40


@pytest.mark.parametrize("name", COROUTINES)
def test_a_public_coroutine_that_is_cancelled_at_any_await_leaves_nothing(name):
    awaits = 0
    reached = True
    while reached:
        awaits += 1
        report, reached = interrupted(COROUTINES[name], awaits)
        if report.failure is not None:
            again, _ = interrupted(COROUTINES[name], awaits, transcript=True)
            pytest.fail(
                "\n".join([*again.lines[-100:], f"cancelled at await {awaits}: {report.failure}"])
            )
    assert awaits > 1, "there was an await to be cancelled at"


def test_the_same_seed_is_the_same_run_whatever_the_hash_seed():
    here = replay(7).lines
    assert len(here) > 100
    assert here == replay(7).lines
    program = "from tests.simulation.runner import replay; print(*replay(7).lines, sep='\\n')"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        elsewhere = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert elsewhere.stdout.splitlines() == here


def test_the_transcript_changes_nothing():
    assert replay(8).steps == run(8, Profile()).steps


def test_for_hours_nothing_piles_up():
    told: list[str] = []
    assert soak(1, 0.25, told.append) is None, "\n".join(told)
