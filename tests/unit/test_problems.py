"""What is wrong in a cluster, the worst first."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from jobsync_async.operations.problems import STILL_SEC, Problem, changed, problems, worst


def node(name: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "state": "active",
        "tokens": 60,
        "is_leader": name == "anna",
        "heartbeat_age_sec": 1.0,
        "timeout_sec": 15.0,
        "interval_sec": 5.0,
        "library": "0.2.0",
        "layout": 2,
        "connected": None,
        **values,
    }


def run(**values: Any) -> dict[str, Any]:
    return {
        "name": "nightly",
        "key": "5f1c0e9a2b7d" * 5,
        "date": "2026-01-05",
        "total": 100,
        "remaining": 40,
        "failed": 0,
        "all_counted": True,
        "finished_at": None,
        "run_by": ["anna"],
        **values,
    }


WELL: dict[str, Any] = {
    "total_tokens": 120,
    "distributed": 120,
    "unowned": 0,
    "schema_version": 1,
    "nodes": [node("anna"), node("berta")],
    "stuck_handoffs": [],
    "unmatched_pins": [],
    "unserved": [],
    "versions": [{"library": "0.2.0", "layout": 2, "nodes": ["anna", "berta"]}],
}
PIN = {"task_id": "model-7", "token_id": 17, "node_patterns": ["gpu-%"]}
STUCK = {"node": "berta", "token_id": 3, "task_id": "invoice-7", "seconds": 61.2}
GAP = {"runner": "run_owned 'feed'", "node": "berta", "tokens": 60, "run_by": ["anna", "carla"]}
OLD = {"library": "0.1.0", "layout": 1, "nodes": ["berta"]}


def view(*changes: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    changed = copy.deepcopy(WELL)
    for change in changes:
        change(changed)
    return changed


def berta(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda seen: seen["nodes"][1].update(values)


def with_(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda seen: seen.update(copy.deepcopy(values))


CASES: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str, str, str]] = {
    "nobody is there": (
        with_(nodes=[], distributed=0),
        "workers", "wrong", "no worker is there: nobody works on 120 tokens", "start workers",
    ),
    "nobody is alive": (
        with_(nodes=[node("anna", tokens=0, heartbeat_age_sec=16.0)], unowned=120),
        "workers", "wrong", "no worker is alive: nobody works on 120 tokens", "doctor",
    ),
    "all are draining": (
        with_(nodes=[node("anna", state="draining")]),
        "workers", "wrong", "no worker takes tokens: all that live are draining", "undrain anna",
    ),
    "too few to begin": (
        with_(distributed=0),
        "workers", "wrong", "no token is handed out: 2 workers wait for more", "minimum_nodes",
    ),
    "a token without an owner": (
        with_(unowned=1), "unowned", "wrong", "1 token has no owner", "explain ID",
    ),
    "tokens that are not there": (
        with_(distributed=110), "unowned", "wrong", "10 tokens have no owner", "explain ID",
    ),
    "more of them than pins": (
        with_(unowned=5, unmatched_pins=[PIN]),
        "unowned", "wrong", "5 tokens have no owner, 1 of them for their pins", "explain",
    ),
    "a pin": (
        with_(unowned=1, unmatched_pins=[PIN]),
        "pin", "wrong", "no worker matches 'gpu-%', the pin of task 'model-7'", "clear model-7",
    ),
    "pins": (
        with_(unowned=2, unmatched_pins=[PIN, {**PIN, "task_id": "m", "token_id": 4}]),
        "pin", "wrong",
        "no worker matches 'gpu-%', the pin of task 'model-7' and 1 more task", "clear",
    ),
    "stuck": (
        with_(stuck_handoffs=[STUCK]),
        "stuck", "wrong", "berta does not let go of task 'invoice-7' for 61 s", "worker's log",
    ),
    "stuck at a reader, and more": (
        with_(stuck_handoffs=[{**STUCK, "task_id": None, "seconds": 400.0}, STUCK]),
        "stuck", "wrong", "berta does not let go of token 3 and 1 more token for 7 min", "reader",
    ),
    "silent": (
        berta(heartbeat_age_sec=12.5, connected=False),
        "silent", "wrong",
        "berta is silent for 12 s and not connected; nobody works on its 60 tokens", "ended",
    ),
    "blocked": (
        berta(heartbeat_age_sec=13.0, connected=True),
        "silent", "wrong",
        "berta is silent for 13 s, but connected; nobody works on its 60 tokens", "event loop",
    ),
    "silent, and has nothing": (
        berta(heartbeat_age_sec=14.0, tokens=0),
        "silent", "notice", "berta is silent for 14 s", "look there",
    ),
    "late": (
        berta(heartbeat_age_sec=9.5),
        "silent", "notice", "berta is silent for 10 s; its lease ends in 2 s", "look there",
    ),
    "paused": (
        with_(paused={"since": "2026-01-05T12:00:00+01:00", "by": "ann", "reason": "disk"}),
        "paused", "notice",
        "paused since 2026-01-05 11:00 UTC by ann: disk; nothing new starts", "resume",
    ),
    "paused, and not all hear of it": (
        lambda seen: (
            berta(library="0.1.0")(seen),
            seen.update(paused={"since": "2026-01-05T12:00:00+00:00", "by": None, "reason": None}),
        ),
        "paused", "notice",
        "paused since 2026-01-05 12:00 UTC; nothing new starts, but at 1 worker of 0.1.0", "resume",
    ),
    "evicted": (
        with_(evicted=[{"name": "carla", "by": "ann", "reason": "stuck"}, {"name": "dora"}]),
        "evicted", "notice",
        "no worker may join as carla and 1 more name, evicted by ann: stuck", "evict carla --allow",
    ),
    "nobody leads": (
        lambda seen: seen["nodes"][0].update(is_leader=False),
        "leader", "notice", "no live worker leads: no token finds a new owner", "takes over",
    ),
    "unserved": (
        with_(unserved=[GAP]),
        "unserved", "notice",
        ("berta does not run run_owned 'feed', as anna and 1 more worker: nobody serves its ids "
         "there"),
        "kinds-of-workers",
    ),
    "failures": (
        with_(batches=[run(failed=12)]),
        "failed", "notice", "12 ids of 100 have failed in batch 'nightly' of 2026-01-05",
        "`jobsync-async batch nightly --date 2026-01-05 --failed`",
    ),
    "more failures than are counted": (
        with_(batches=[run(failed=1000, all_counted=False, total=None, finished_at="then")]),
        "failed", "notice",
        "more than 1,000 ids have failed in batch 'nightly' of 2026-01-05", "--failed",
    ),
    "a batch that nobody runs": (
        with_(batches=[run(run_by=[], name=None)]),
        "standstill", "notice",
        "nobody runs batch 5f1c0e9a2b7d, which has no name, of 2026-01-05, which has 40 ids left",
        "batch 5f1c0e9a2b7d --date",
    ),
    "batches that nobody runs": (
        with_(batches=[run(run_by=[]), run(run_by=[], name="other")]),
        "standstill", "notice", "nobody runs batch 'nightly' of 2026-01-05 and 1 more open run",
        "batch nightly",
    ),
    "a batch that stands still": (
        with_(batches=[run(still_sec=STILL_SEC * 3)]),
        "standstill", "notice",
        "batch 'nightly' of 2026-01-05 stands still for 3 min, which has 40 ids left", "batch",
    ),
    "set aside": (
        with_(set_aside=1),
        "set aside", "notice", "1 id is set aside: its workers ended while at work", "release",
    ),
    "versions": (
        lambda seen: seen["versions"].insert(0, OLD),
        "versions", "notice", "workers have different versions: 0.1.0 (berta), 0.2.0 (anna, berta)",
        "0.1.0 does not tell what it runs",
    ),
    "the first version": (
        with_(versions=[OLD]), "versions", "notice", "all workers are of 0.1.0", "upgrade.md",
    ),
    "a version that is refused": (
        lambda seen: (
            berta(layout=1)(seen), seen["versions"].insert(0, OLD), seen.update(schema_version=2)
        ),
        "versions", "notice", "workers have different versions: 0.1.0 (berta), 0.2.0 (anna, berta)",
        "stop berta: these tables were contracted",
    ),
    "times": (
        berta(timeout_sec=60.0, interval_sec=10.0),
        "times", "notice",
        "workers have different timeouts and intervals: 15 s/5 s (anna), 60 s/10 s (berta)",
        "docs/operations.md",
    ),
    "drained": (
        berta(state="draining", tokens=0),
        "drained", "notice", "berta is drained and may be stopped", "undrain berta",
    ),
}  # fmt: skip

BESIDE = {"nobody is alive": ["silent"], "more of them than pins": ["pin"]}


@pytest.mark.parametrize("case", CASES)
def test_each_thing_that_is_wrong_is_told_once_with_what_to_do(case):
    change, kind, severity, text, advice = CASES[case]
    found, *rest = problems(view(change))
    assert [problem.kind for problem in rest] == BESIDE.get(case, [])
    assert (found.kind, found.severity, found.text) == (kind, severity, text)
    assert advice in found.advice
    assert json.loads(json.dumps(found.plain()))["kind"] == kind


@pytest.mark.parametrize(
    "change",
    [
        lambda seen: None,
        with_(batches=[run(), run(finished_at="then", run_by=[])], set_aside=0),
        with_(batches=[run(run_by=None)]),  # a worker of 0.1.0 may run it
        berta(state="draining"),  # not done
        berta(heartbeat_age_sec=8.9),  # longer than any interval that is allowed, and its answer
        berta(timeout_sec=15.0, interval_sec=None),  # of 0.1.0
        with_(paused=None, evicted=[]),
        berta(state="evicted", heartbeat_age_sec=14.0),
    ],
)
def test_what_is_well_is_not_told(change):
    assert problems(view(change)) == []


def test_the_worst_comes_first_whatever_there_is():
    found = problems(
        view(
            berta(heartbeat_age_sec=14.0, state="draining"),
            with_(
                unmatched_pins=[PIN],
                stuck_handoffs=[STUCK],
                unowned=4,
                set_aside=3,
                batches=[run(failed=1)],
                paused={"since": "2026-01-05T12:00:00+00:00", "by": None, "reason": None},
                unserved=[GAP],
            ),
        )
    )
    assert [problem.kind for problem in found] == [
        "unowned", "pin", "stuck", "silent", "paused", "unserved", "failed", "set aside",
    ]  # fmt: skip
    assert [problem.kind for problem in worst(found)] == ["unowned", "pin", "stuck", "silent"]


def test_what_begins_and_what_is_over_is_told_and_numbers_that_go_on_are_not():
    def at(seconds: float) -> list[Problem]:
        return problems(view(with_(stuck_handoffs=[{**STUCK, "seconds": seconds}])))

    begun, over = changed([], at(61)), changed(at(90), [])
    assert begun == ["wrong: berta does not let go of task 'invoice-7' for 61 s"]
    assert over == ["over: berta does not let go of task 'invoice-7' for 90 s"]
    assert at(61)[0].text != at(62)[0].text
    assert changed(at(61), at(62)) == []


def test_what_becomes_worse_is_told_again():
    late, silent = (problems(view(berta(heartbeat_age_sec=sec))) for sec in (10.0, 13.0))
    (told,) = changed(late, silent)
    assert told.startswith("wrong: berta is silent for 13 s")


def test_another_timeout_may_be_given_to_judge_by():
    late = view(berta(heartbeat_age_sec=20.0))
    assert [problem.kind for problem in problems(late)] == ["silent"]
    assert problems(late, timeout_sec=60) == []
    (short,) = problems(view(berta(heartbeat_age_sec=2.0)), timeout_sec=2)
    assert short.nodes == ("berta",)
