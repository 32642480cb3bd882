"""What certify makes of figures: what is as it should be is ok, and everything else says what to
change."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from jobsync_async import ConfigError, CoordinationConfig
from jobsync_async.core.server_profile import BY_TIMELINE, Readings
from jobsync_async.operations.certify import reactions, verdicts
from jobsync_async.operations.certify.certificate import Certificate, Wish
from jobsync_async.operations.certify.failover import failover
from jobsync_async.operations.certify.figures import (
    STRENGTHS,
    ClockReading,
    Fencing,
    Keys,
    Latency,
    Left,
    Limits,
    Load,
    Pushes,
    Room,
    Settings,
    Statement,
    TimeOut,
    Waits,
)
from jobsync_async.operations.certify.trial import for_trial

CONFIG = CoordinationConfig()
LIMITS = Limits(CONFIG, 0.001)
SOUND = Waits(waited=True, deleted=0, reread=True, seen=True, skipped=True, steady=True)
KEYS = Keys(exclusive=True, shared=True, ended=True, session=True)
DURABLE = Settings("18.1", "on", "on", "on", "")
FENCED = Fencing(15.0, True, 0, ("held",), 0.03, True, 0.2)


def latency(*seconds: float) -> Latency:
    return Latency.of(seconds)


def documented() -> dict[tuple[str, str], bool | str]:
    """What PostgreSQL's documents say of two row locks, as a table of theirs has it."""
    said = {"KEY SHARE": "...x", "SHARE": "..xx", "NO KEY UPDATE": ".xxx", "UPDATE": "xxxx"}
    return {
        (held, wanted): said[held][number] == "x"
        for held in STRENGTHS
        for number, wanted in enumerate(STRENGTHS)
    }


def with_locks(**changed: bool | str) -> dict[tuple[str, str], bool | str]:
    return documented() | {
        tuple(name.replace("_", " ").split(" beside ")[::-1]): value  # type: ignore[misc]
        for name, value in changed.items()
    }


def clocks(*, offset: float = 0, step: float = 0, rate: float = 1) -> list[ClockReading]:
    readings = [ClockReading(t, 1000 + t, 1000 + offset + t * rate, 0.001) for t in range(11)]
    later = [one._replace(server=one.server + step) for one in readings[5:]]
    return [*readings[:5], *later]


def load(rooms: tuple[int, ...] = (200,), heartbeat: float = 0.001) -> Load:
    named = zip(("server", "role", "database"), rooms, strict=False)
    return Load(tuple(Room(of, most, 0) for of, most in named), heartbeat, 0.002, 100_000)


CHECKS = [
    (verdicts.row_locks(documented()), "ok"),
    (verdicts.row_locks(with_locks(UPDATE_beside_KEY_SHARE=False)), "fail"),
    (verdicts.row_locks(with_locks(KEY_SHARE_beside_UPDATE=False)), "fail"),
    (verdicts.row_locks(with_locks(UPDATE_beside_NO_KEY_UPDATE=False)), "fail"),
    (verdicts.row_locks(with_locks(NO_KEY_UPDATE_beside_KEY_SHARE=True)), "warn"),
    (verdicts.row_locks(with_locks(SHARE_beside_UPDATE=False)), "ok"),  # nobody needs it
    (verdicts.row_locks(with_locks(SHARE_beside_SHARE="syntax error")), "fail"),
    (verdicts.waits(SOUND), "ok"),
    (verdicts.waits(replace(SOUND, waited=False)), "fail"),
    (verdicts.waits(replace(SOUND, deleted=1)), "fail"),
    (verdicts.waits(replace(SOUND, reread=False)), "fail"),
    (verdicts.waits(replace(SOUND, seen=False)), "fail"),
    (verdicts.waits(replace(SOUND, skipped=False)), "fail"),
    (verdicts.waits(replace(SOUND, steady=False)), "fail"),
    (verdicts.advisory_locks(KEYS), "ok"),
    (verdicts.advisory_locks(replace(KEYS, session=None)), "ok"),
    (verdicts.advisory_locks(replace(KEYS, session=False)), "warn"),
    (verdicts.advisory_locks(replace(KEYS, exclusive=False)), "fail"),
    (verdicts.advisory_locks(replace(KEYS, shared=False)), "fail"),
    (verdicts.advisory_locks(replace(KEYS, ended=False)), "fail"),
    (verdicts.sequence([1, 2, 3]), "ok"),
    (verdicts.sequence([1, 101, 2]), "warn"),
    (verdicts.sequence([1, 2, 2]), "fail"),
    (verdicts.bound(TimeOut("lock_timeout", 0.2, 0.21)), "ok"),
    (verdicts.bound(TimeOut("lock_timeout", 0.2, 1.3)), "warn"),
    (verdicts.bound(TimeOut("lock_timeout", 0.2, None)), "fail"),
    (verdicts.clocks(clocks())[0], "ok"),
    (verdicts.clocks(clocks(offset=-3600))[0], "warn"),
    (verdicts.clocks(clocks(step=0.7))[0], "warn"),
    (verdicts.clocks(clocks())[1], "ok"),
    (verdicts.clocks(clocks(rate=1.02))[1], "warn"),
    (verdicts.clocks(clocks(rate=1.2))[1], "fail"),
    (verdicts.pushes(Pushes(latency(0.001, 0.002))), "ok"),
    (verdicts.pushes(Pushes(latency(0.001, 0.3))), "warn"),
    (verdicts.pushes(Pushes(latency(0.001), lost=1)), "warn"),
    (verdicts.pushes(Pushes(latency(0.001), undone=1)), "warn"),
    (verdicts.pushes(Pushes(None)), "fail"),
    (verdicts.commits(latency(0.001)), "ok"),
    (verdicts.commits(latency(0.2)), "warn"),
    (verdicts.trips(latency(0.001), 3), "ok"),
    (verdicts.trips(latency(0.7), 3), "warn"),
    (verdicts.durability(DURABLE), "ok"),
    (verdicts.durability(replace(DURABLE, fsync="off")), "warn"),
    (verdicts.durability(replace(DURABLE, synchronous_commit="off")), "warn"),
    (verdicts.durability(replace(DURABLE, full_page_writes=None)), "warn"),
    (reactions.reaction("join", 0.3, 1, "shared"), "ok"),
    (reactions.reaction("join", 1.3, 1, "shared"), "warn"),
    (reactions.reaction("join", 1.3, 1, "shared", longest_sec=1.2), "fail"),
    (reactions.reaction("join", None, 1, "shared"), "fail"),
    (reactions.unheard(4.0, LIMITS), "ok"),
    (reactions.unheard(7.0, LIMITS), "warn"),
    (reactions.unheard(None, LIMITS), "fail"),
    (reactions.ended_sessions(0.1, LIMITS, ended=2, lost_tokens=False), "ok"),
    (reactions.ended_sessions(0.1, LIMITS, ended=2, lost_tokens=True), "warn"),
    (reactions.ended_sessions(None, LIMITS, ended=0, lost_tokens=False), "warn"),
    (reactions.ended_sessions(None, LIMITS, ended=2, lost_tokens=False), "fail"),
    *zip(reactions.fencing(FENCED, LIMITS), ("ok", "ok"), strict=True),
    *zip(reactions.fencing(replace(FENCED, moved_sec=20.0), LIMITS), ("warn", "ok"), strict=True),
    *zip(reactions.fencing(replace(FENCED, moved_sec=None), LIMITS), ("fail", "fail"), strict=True),
    (reactions.fencing(replace(FENCED, stale_rows=1), LIMITS)[1], "fail"),
    (reactions.fencing(replace(FENCED, committed=("held", "stale")), LIMITS)[1], "fail"),
    (reactions.fencing(replace(FENCED, kept=False), LIMITS)[1], "fail"),
    (reactions.fencing(replace(FENCED, epochs_rose=False), LIMITS)[1], "fail"),
    (reactions.fencing(replace(FENCED, committed=()), LIMITS)[1], "warn"),
    (reactions.fencing(replace(FENCED, passed_sec=None), LIMITS)[1], "warn"),
    (reactions.statements([Statement("heartbeat", latency(0.1), 3)]), "ok"),
    (reactions.statements([Statement("heartbeat", latency(0.7), 3)]), "warn"),
    (reactions.statements([Statement("heartbeat", latency(3.1), 3)]), "fail"),
    (reactions.statements([]), "fail"),
    (reactions.capacity(CONFIG, load()), "ok"),
    (reactions.capacity(CONFIG, load(), 90), "ok"),
    (reactions.capacity(CONFIG, load(), 100), "fail"),
    (reactions.capacity(CONFIG, load((10,))), "fail"),
    (reactions.left_behind(Left(0, 0, 0), prefix_given=False), "ok"),
    (reactions.left_behind(Left(12, 121, 0), prefix_given=True), "ok"),
    (reactions.left_behind(Left(12, 0, 0), prefix_given=False), "fail"),
    (reactions.left_behind(Left(0, 0, 1), prefix_given=False), "warn"),
    (reactions.left_behind(Left(0, 0, 0, ("certify_a",)), prefix_given=False), "warn"),
    (failover(BY_TIMELINE, DURABLE, 1), "ok"),
    (failover(BY_TIMELINE, replace(DURABLE, replicas=2, synchronous=0), 2), "warn"),
    (failover(BY_TIMELINE, replace(DURABLE, replicas=2), 2), "warn"),
    (failover(BY_TIMELINE, replace(DURABLE, replicas=2, synchronous=1), 2), "ok"),
    (failover(BY_TIMELINE, replace(DURABLE, replicas=1, synchronous=1), 1), "warn"),
    (failover(Readings("shared-storage"), replace(DURABLE, replicas=1), 1), "ok"),
    (failover(Readings("shared-storage", system=False), DURABLE, 1), "warn"),
    (verdicts.unmeasured("join", "no answer"), "warn"),
    (verdicts.unmeasured("join", "no answer", failed=True), "fail"),
]


@pytest.mark.parametrize(
    ("verdict", "status"), CHECKS, ids=[f"{n}-{one.name}" for n, (one, _) in enumerate(CHECKS)]
)
def test_what_is_as_it_should_be_is_ok_and_everything_else_says_what_to_change(verdict, status):
    assert (verdict.status, verdict.found != "") == (status, True)
    assert bool(verdict.advice) == (status != "ok")


def test_each_pair_of_locks_that_the_protocol_needs_is_looked_at_by_itself():
    needed = {
        pair
        for pair in product(STRENGTHS, STRENGTHS)
        if documented()[pair] and verdicts.row_locks({**documented(), pair: False}).status == "fail"
    }
    # The fence, both ways; and whatever changes a row.
    assert needed == {
        ("KEY SHARE", "UPDATE"),
        ("UPDATE", "KEY SHARE"),
        *product(("NO KEY UPDATE", "UPDATE"), ("NO KEY UPDATE", "UPDATE")),
    }
    weak = verdicts.row_locks(with_locks(UPDATE_beside_KEY_SHARE=False))
    assert "FOR UPDATE beside FOR KEY SHARE" in weak.found
    assert "two workers may commit for one token" in weak.found


def test_what_does_not_apply_says_why_and_counts_for_nothing():
    skipped = verdicts.skipped("notifications", "polling was asked for")
    assert (skipped.status, skipped.advice) == ("skip", "")
    assert "polling was asked for" in skipped.found
    assert Certificate(checks=[skipped]).status == "ok"


def test_the_worst_check_is_the_verdict_on_all():
    ok, warn = verdicts.waits(SOUND), verdicts.unmeasured("join", "no answer")
    fail = verdicts.sequence([1, 1])
    for checks, status in (([ok], "ok"), ([ok, warn], "warn"), ([fail, warn, ok], "fail")):
        assert Certificate(checks=checks).status == status


def test_each_round_trip_and_each_poll_is_added_to_what_is_promised():
    far = Limits(CONFIG, 0.1)
    polled = Limits(replace(CONFIG, notify=False), 0.001)
    assert far.kill_sec == pytest.approx(0.5 + 2)
    assert LIMITS.kill_sec < 0.6 < polled.kill_sec
    assert polled.unheard_sec < LIMITS.unheard_sec, "a poll comes sooner than a heartbeat"
    unseen = Limits(CONFIG, 0.001, seen=False)
    assert unseen.kill_sec == unseen.silence_sec == pytest.approx(16.02)


def test_the_percentiles_are_those_of_the_samples():
    of_a_thousand = Latency.of([n / 1000 for n in range(1, 1001)])
    assert of_a_thousand == (1000, 0.5, 0.99, 1.0)
    assert latency(3.0) == (1, 3.0, 3.0, 3.0)


def test_workers_are_counted_by_whatever_gives_out_first():
    by_rooms = reactions.capacity(CONFIG, load((200, 40, -1)))
    assert by_rooms.figures["workers"] == (40 - 9) // 2
    slow = reactions.capacity(CONFIG, load((), heartbeat=0.1))
    assert (slow.figures["workers"], slow.figures["first"]) == (25, "heartbeats")
    # 0.1 s for 5,000 tokens: half of the time is what the bound allows for them
    assert reactions.most_tokens(CONFIG, 25_000) == 3 * 50_000
    assert reactions.most_tokens(CONFIG, 60_000) == 1_000_000


def test_of_a_clusters_settings_the_trial_takes_the_way_and_the_times_and_nothing_else():
    own = replace(
        CONFIG,
        dsn="host=db1",
        heartbeat_timeout_sec=8,
        heartbeat_interval_sec=2,
        total_tokens=1_000_000,
        rebalance_delay_sec=5,
        predecessor="old_",
        failover="session",
    )
    asked = {"dsn": "host=db1", "heartbeat_timeout_sec": 8, "heartbeat_interval_sec": 2}
    assert for_trial(own, quick=False) == replace(CONFIG, **asked)
    assert for_trial(own, quick=True).heartbeat_timeout_sec == 1.5
    long = replace(CONFIG, heartbeat_timeout_sec=60)
    assert for_trial(long, quick=False) == CONFIG


def test_tables_of_a_real_cluster_are_never_taken():
    with pytest.raises(ConfigError, match="must begin with 'certify_'"):
        Wish(CONFIG, prefix="sync_")
