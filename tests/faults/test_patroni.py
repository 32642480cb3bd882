"""What can happen to a cluster of PostgreSQL servers under Patroni, under load.

`JOBSYNC_TEST_TIMES` says how often each scenario is run (once), and the end of the output shows
what was measured:

    JOBSYNC_TEST_TIMES=5 uv run pytest -m faults tests/faults/test_patroni.py
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests import patroni
from tests.faults import wires
from tests.faults.conftest import make_database
from tests.faults.fleet import SLACK_SEC, Fleet
from tests.faults.nursery import Nursery
from tests.patroni import Node, PatroniCluster

if reason := patroni.why_not():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

RUNS = range(int(os.environ.get("JOBSYNC_TEST_TIMES", "1")))
TIMES = {"heartbeat_interval_sec": 1.0, "heartbeat_timeout_sec": 4.0}
FROZEN_SEC = 40.0
AWAY_SEC = 30.0
FAILED_OVER_SEC = 45.0
"""How long Patroni may take: the leader's key must run out first."""


class Lookout:
    """Sees from when on a new primary could be reached, by the way that the workers take."""

    def __init__(self, ways: dict[str, Callable[[], int | None]], above: int, since: float) -> None:
        self._found: list[tuple[float, str]] = []
        self._above = above
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=item, daemon=True) for item in ways.items()
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self, name: str, timeline: Callable[[], int | None]) -> None:
        while not self._over.is_set():
            found = timeline()
            if found is not None and found >= self._above:
                self._found.append((Fleet.now(), name))
                self._over.set()
            self._over.wait(0.05)

    def reached_at(self) -> float | None:
        return min(self._found)[0] if self._found else None

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)


@dataclass
class Trial:
    """One run of a scenario: what is done, and what came of it."""

    cluster: PatroniCluster
    fleet: Fleet
    way: str
    figures: dict[str, float] = field(default_factory=dict)

    def timeline(self) -> int:
        found = self.cluster.primary().timeline()
        assert found is not None
        return found

    def reached(self, above: int, seconds: float = FAILED_OVER_SEC) -> float:
        """Wait until a primary on such a timeline, or a later one, can be reached; when it was."""
        if self.way == "haproxy":
            ways = {"haproxy": lambda: patroni.timeline(self.cluster.through_haproxy)}
        else:
            ways = {node.name: node.timeline for node in self.cluster.nodes.values()}
        began = self.fleet.now()
        lookout = Lookout(ways, above, began)
        try:
            self.fleet.until(lookout.reached_at, seconds, "a new primary can be reached")
        finally:
            lookout.end()
        at = lookout.reached_at()
        assert at is not None
        return at

    def agreed(self, since: float, reached: float) -> None:
        """All work must go on in time."""
        limit = self.fleet.timeout_sec + 2 + SLACK_SEC
        tasks = range(self.fleet.tasks)
        begun = since + self.fleet.begun(tasks, since, reached - since + 60)
        self.fleet.until(self.fleet.agree, 60, "all agree")
        self.fleet.work_goes_on(reached, 30)
        self.note("reached", reached - since)
        self.note("agreed", begun - reached)
        assert begun - reached <= limit, (self.figures, self.fleet.describe())

    def note(self, what: str, value: float) -> None:
        self.figures[what] = round(max(value, self.figures.get(what, value)), 2)


# -- scenarios -------------------------------------------------------------------------------------


def a_switchover(trial: Trial) -> None:
    above, since = trial.timeline() + 1, trial.fleet.now()
    trial.cluster.switchover()
    trial.agreed(since, trial.reached(above))


def three_switchovers_in_a_row(trial: Trial) -> None:
    above = trial.timeline() + 3
    for _ in range(3):
        trial.cluster.settle()
        since = trial.fleet.now()
        trial.cluster.switchover()
    trial.agreed(since, trial.reached(above))


def the_primary_is_killed(trial: Trial) -> None:
    above, primary, since = trial.timeline() + 1, trial.cluster.primary(), trial.fleet.now()
    primary.kill()
    trial.agreed(since, trial.reached(above))
    primary.start()


def the_primary_is_frozen_and_woken(trial: Trial) -> None:
    above, primary, since = trial.timeline() + 1, trial.cluster.primary(), trial.fleet.now()
    primary.freeze()
    try:
        trial.agreed(since, trial.reached(above))
        trial.fleet.watch(since + FROZEN_SEC - trial.fleet.now())
    finally:
        primary.wake()


def a_second_primary_is_promoted_beside_the_first(trial: Trial) -> None:
    above, primary, since = trial.timeline() + 1, trial.cluster.primary(), trial.fleet.now()
    primary.freeze_itself()
    try:
        reached = trial.reached(above)
        if not primary.watchdog:
            assert primary.timeline() == above - 1, "the first goes on beside the second"
        trial.agreed(since, reached)
        trial.fleet.watch(max(5, since + FROZEN_SEC - trial.fleet.now()))
    finally:
        primary.wake()


def etcd_is_away(trial: Trial) -> None:
    same = trial.timeline()
    trial.cluster.etcd.kill()
    trial.fleet.watch(AWAY_SEC)
    back = trial.fleet.now()
    trial.cluster.etcd.start()
    reached = trial.reached(same)
    trial.fleet.until(trial.fleet.agree, reached - trial.fleet.now() + 60, "all agree")
    trial.note("reached", reached - back)
    trial.note("agreed", trial.fleet.work_goes_on(reached, 30))


def the_network_of_the_primary_is_cut(trial: Trial) -> None:
    above, primary, since = trial.timeline() + 1, trial.cluster.primary(), trial.fleet.now()
    wire = trial.cluster.wires[primary.name]
    wire.cut()
    try:
        trial.agreed(since, trial.reached(above))
        trial.fleet.watch(since + FROZEN_SEC - trial.fleet.now())
    finally:
        wire.restore()


SCENARIOS = [
    a_switchover,
    three_switchovers_in_a_row,
    the_primary_is_killed,
    the_primary_is_frozen_and_woken,
    a_second_primary_is_promoted_beside_the_first,
    etcd_is_away,
]


@pytest.fixture(scope="module")
def shared() -> Iterator[PatroniCluster]:
    with PatroniCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: PatroniCluster, synchronous: bool) -> PatroniCluster:
    if shared.settings["synchronous_mode"] != synchronous:
        shared.configure(synchronous_mode=synchronous)
    shared.settle(90)
    return shared


@pytest.fixture
def trial(
    cluster: PatroniCluster, way: str, nursery: Nursery, tmp_path: Path
) -> Iterator[Trial]:
    name = conninfo_to_dict(make_database(cluster))["dbname"]
    dsn = make_conninfo({"dsn": cluster.dsn, "haproxy": cluster.through_haproxy}[way], dbname=name)
    fleet = Fleet(nursery, dsn, tmp_path, TIMES, 12)
    try:
        fleet.start("a", "b", "c", act_every_sec=0.1, write_every_sec=0.3, patience_sec=3)
        yield Trial(cluster, fleet, way)
    finally:
        fleet.end()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("synchronous", [True, False], ids=["sync", "async"])
@pytest.mark.parametrize("way", ["dsn", "haproxy"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_nothing_is_lost_and_nobody_is_double(trial: Trial, scenario, synchronous, run):
    scenario(trial)
    trial.cluster.settle(90)
    trial.fleet.even(30)
    trial.fleet.watch(5)
    report = trial.fleet.weigh()
    print(trial.figures, len(report.lost), report.violations[:5])
    assert not report.violations
