"""The model of ownership holds in every state, and does not without its rules. All of it:
`python docs/model/check.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "model" / "check.py"
spec = importlib.util.spec_from_file_location("model_check", PATH)
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)

needs_spin = pytest.mark.skipif(check.missing() is not None, reason=str(check.missing()))


@needs_spin
def test_two_processes_of_one_name_never_hold_a_token_together_in_any_state():
    verdict = check.search("SAME_NAME", limit_sec=60)
    assert verdict.violated is None
    assert verdict.whole
    assert verdict.states > 10_000


@needs_spin
def test_nor_do_two_of_one_name_whose_timeouts_differ():
    verdict = check.search("SAME_NAME", mixed=True, limit_sec=60)
    assert verdict.violated is None
    assert verdict.whole
    assert verdict.states > 10_000


@needs_spin
@pytest.mark.parametrize("arrangement", ["SAME_NAME", "EITHER_LEADS"])
def test_a_watcher_that_judges_by_its_own_timeout_breaks_it(arrangement):
    verdict = check.search(arrangement, check.MIXED, mixed=True, limit_sec=120)
    assert check.promise(verdict.violated) == "two holders"


@needs_spin
@pytest.mark.parametrize(
    "rule", ["LEASE_FROM_SENDING", "ASSIGN_RESPECTS_FENCE", "NO_ROW_FENCES", "LEASE_BELOW_TIMEOUT"]
)
def test_without_a_rule_the_model_finds_a_violation(rule):
    assert check.search("SAME_NAME", rule, limit_sec=60).violated is not None


@needs_spin
@pytest.mark.parametrize(
    "rule",
    [
        "PLAN_LEAVES_WHAT_IS_USED",
        "PLAN_LETS_GO_FIRST",
        "READINGS_OF_BEFORE_A_PLAN_DROPPED",
        "NOTHING_STARTS_ON_WHAT_GOES",
    ],
)
def test_a_leader_that_gives_its_own_token_away_needs_each_of_its_rules(rule):
    verdict = check.search("EITHER_LEADS", rule, limit_sec=120)
    assert check.promise(verdict.violated) == "two holders"


def test_the_model_names_the_rules_that_can_be_switched_off():
    assert len(check.rules()) == len(set(check.rules())) >= 25
