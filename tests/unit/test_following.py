"""When a worker reads what it has heard of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from jobsync_async import CoordinationConfig
from jobsync_async.core.rows import HeartbeatAnswer, Snapshot
from jobsync_async.postgres.tokens import PushedFeed
from jobsync_async.tasks.rebalance import _ChangeFollower
from jobsync_async.tasks.worker import Worker

CROWD = 100
SPREAD = CROWD * 0.004
CHANNEL = b"sync_changes"


class Feed(PushedFeed):
    """A listener without a connection, and readings that show what it is told to."""

    def __init__(self) -> None:
        self.heard = self.general = self.named = -1
        self.notifications = 0
        self.age = 7
        self._channel = CHANNEL
        self.shows = 5
        self.coming = False

    def tell(self, payload: str) -> None:
        self._hear(CHANNEL, payload.encode())

    async def read_changes(self, me: Any, since: int) -> Snapshot:
        return Snapshot(
            me.incarnation,
            since,
            self.shows,
            1,
            None,
            "active",
            True,
            (),
            (),
            CROWD,
            self.coming,
            self.age,
        )


@pytest.fixture
async def reading() -> SimpleNamespace:
    """A worker of a hundred that has read version 5 at 1,000 s, and has been quiet since."""
    now = SimpleNamespace(sec=1000.0)
    worker = Worker(CoordinationConfig(), "a", SimpleNamespace(state="active"), lambda: now.sec)  # type: ignore[arg-type]
    worker.lease.extend(1000.0)
    worker.answer = HeartbeatAnswer(5, 1, uuid4(), 50, ())
    feed = Feed()
    follower = _ChangeFollower(worker, feed, SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    await follower._read()
    now.sec += 9
    return SimpleNamespace(
        worker=worker,
        feed=feed,
        follower=follower,
        now=now,
        due=lambda: follower._news_due(now.sec) - now.sec,
    )


async def test_who_is_named_reads_at_once_and_then_no_more_often_than_twenty_times_a_second(
    reading,
):
    reading.feed.tell("6 3 7")
    assert reading.due() <= 0
    reading.feed.shows = 6
    await reading.follower._read()
    assert reading.due() == float("inf")
    reading.feed.tell("7 7")
    assert 0 < reading.due() <= 0.05 + 1e-9


async def test_who_is_not_named_waits_for_its_heartbeat(reading):
    for payload in ("6 3", "7 77", "8 0", "9 17 70"):
        reading.feed.tell(payload)
    assert reading.due() == float("inf")
    reading.worker.hinted = 9
    assert reading.due() <= 0


async def test_what_names_nobody_is_read_by_each_in_its_turn_whatever_else_is_heard(reading):
    reading.feed.tell("6")
    due = reading.due()
    assert 0 < due < SPREAD
    reading.now.sec += due / 2
    reading.feed.tell("7")
    assert reading.due() == pytest.approx(due / 2)


async def test_turns_are_spread_evenly(reading):
    turns = []
    for age in range(CROWD):
        reading.feed.age = age
        reading.feed.tell(str(6 + age))
        reading.follower._general_since = None
        turns.append(reading.due() / SPREAD)
    for quarter in range(4):
        assert 20 <= sum(quarter <= 4 * turn < quarter + 1 for turn in turns) <= 30


async def test_whoever_leads_or_may_come_to_reads_at_once(reading):
    reading.feed.tell("6")
    for rank, prompt in ((0, True), (1, True), (2, False)):
        reading.worker.answer = HeartbeatAnswer(5, 1, uuid4(), rank, ())
        assert (reading.due() <= 0) == prompt
    reading.worker.leader = reading.worker.identity.incarnation
    assert reading.due() <= 0


async def test_who_awaits_tokens_looks_for_them_less_and_less_often_until_all_have_come(reading):
    reading.feed.coming = True
    waits = []
    for _ in range(8):
        await reading.follower._read()
        waits.append(reading.due())
        reading.now.sec += 10
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5])
    reading.feed.coming = False
    await reading.follower._read()
    assert reading.due() == float("inf")


async def test_a_change_that_was_not_announced_is_read_by_the_heartbeat_and_one_that_was_not_heard_is_missed(  # noqa: E501
    reading,
):
    reading.worker.hinted = 6
    assert reading.due() <= 0
    assert not reading.follower._missed
    reading.worker.announced = 6
    assert reading.follower._missed
    assert reading.due() == float("inf")


async def test_an_announcement_that_is_none_is_not_heard(reading):
    for payload in (
        "",
        "x",
        "6 x",
        "6  7",
        "6 7 ",
        " 6",
        "6,7",
        "9" * 19,
        "6 " + "7" * 19,
        "6" + " 7" * 501,
    ):
        reading.feed.tell(payload)
    assert reading.feed.heard == 5 - 6
    assert reading.feed.notifications == 10


@pytest.mark.parametrize("payload", ["999", "999 7"])
async def test_a_version_that_does_not_exist_is_looked_for_once_and_makes_others_wait_for_a_second(
    reading, payload
):
    reading.feed.tell(payload)
    assert reading.due() < SPREAD
    await reading.follower._read()
    assert reading.due() == float("inf")
    reading.feed.tell("6 7")
    assert reading.due() == pytest.approx(1)
