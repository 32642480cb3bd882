"""Which ids nobody serves, and when that is told."""

from __future__ import annotations

import datetime as dt
from uuid import UUID

from jobsync_async.core.serving import GRACE_SEC, Gap, Idler, Noticed, Unserved, gaps, unserved
from jobsync_async.types import NodeInfo, Runner

FEED, MAIL = Runner("owned", "feed"), Runner("owned", "mail")
ANNA, BERTA = UUID(int=1), UUID(int=2)


def test_ids_are_unserved_where_their_tokens_owner_does_not_run_what_they_are_for():
    wanted = {FEED: {1: 10, 2: 1, 7: 5}, MAIL: {1: 3}}
    idlers = [Idler("anna", ANNA, frozenset({MAIL})), Idler("berta", BERTA, frozenset())]
    tokens = {ANNA: [1, 2, 3], BERTA: [7, 8]}
    assert unserved(wanted, idlers, tokens) == [
        Unserved("anna", FEED, 11, frozenset({MAIL})),
        Unserved("berta", FEED, 5, frozenset()),
    ]


def test_who_owns_none_of_the_tokens_leaves_nothing_unserved():
    assert unserved({FEED: {1: 1}}, [Idler("anna", ANNA, frozenset())], {}) == []


def test_a_batch_of_another_date_or_name_is_another():
    monday, tuesday = Runner("batch", None, "2026-01-05"), Runner("batch", None, "2026-01-06")
    found = unserved({monday: {1: 1}}, [Idler("anna", ANNA, frozenset({tuesday}))], {ANNA: [1]})
    assert found == [Unserved("anna", monday, 1, frozenset({tuesday}))]
    assert str(monday) == "run_batch of 2026-01-05"
    assert str(Runner("batch", "bills", "2026-01-05")) == "run_batch 'bills' of 2026-01-05"


def test_it_is_told_once_after_the_grace_and_again_when_it_is_over():
    noticed, one, more = Noticed(), Unserved("anna", FEED, 3), Unserved("anna", FEED, 4)
    assert noticed.due_at == float("inf")
    assert noticed.compare([one], 100) == ([], [])
    assert noticed.due_at == 100 + GRACE_SEC
    assert noticed.compare([one], 100 + GRACE_SEC / 2) == ([], [])
    assert noticed.told == ()
    assert noticed.compare([one], 100 + GRACE_SEC) == ([one], [])
    assert noticed.due_at == float("inf")
    assert noticed.compare([more], 200) == ([], [])
    assert noticed.told == (more,)
    assert noticed.compare([], 300) == ([], [more])
    assert noticed.told == ()


def test_what_was_over_before_it_was_told_begins_anew():
    noticed, one = Noticed(), Unserved("anna", FEED, 3)
    noticed.compare([one], 100)
    noticed.compare([], 101)
    assert noticed.compare([one], 100 + GRACE_SEC) == ([], [])


def node(name: str, tokens: int, *runs: Runner, says: bool = True) -> NodeInfo:
    now = dt.datetime.now(dt.timezone.utc)
    facts = {
        "host": None,
        "pid": None,
        "joined": 1,
        "created_on": now,
        "age_sec": 0.0,
        "last_heartbeat": now,
    }
    return NodeInfo(
        name=name,
        state="active",
        weight=1,
        tokens=tokens,
        is_leader=False,
        address=None,
        heartbeat_age_sec=0,
        beat=1,
        runs=runs if says else None,
        **facts,
    )


def test_a_gap_is_a_worker_with_tokens_that_says_it_does_not_run_what_others_do():
    nodes = [
        node("a", 5, FEED),
        node("b", 5, FEED, MAIL),
        node("web", 5),
        node("spare", 0),
        node("old", 5, says=False),
    ]
    assert gaps(nodes) == [
        Gap(FEED, "web", 5, ("a", "b")),
        Gap(MAIL, "a", 5, ("b",)),
        Gap(MAIL, "web", 5, ("b",)),
    ]
