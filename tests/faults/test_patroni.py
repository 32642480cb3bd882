"""What happens to a cluster of PostgreSQL servers under Patroni, under load. Half of the workers
reach it by a DSN that names all nodes, the others through HAProxy.

`JOBSYNC_TEST_TIMES` says how often each scenario is run (once). What was measured is shown at the
end of the output:

    JOBSYNC_TEST_TIMES=5 uv run pytest -m faults tests/faults/test_patroni.py
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests import patroni
from tests.faults.conftest import make_database
from tests.faults.fleet import SLACK_SEC, Fleet
from tests.faults.history import Report
from tests.faults.nursery import Nursery
from tests.patroni import PatroniCluster

if reason := patroni.why_not():
    pytest.skip(reason, allow_module_level=True)

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

RUNS = range(int(os.environ.get("JOBSYNC_TEST_TIMES", "1")))
TIMES = {"heartbeat_interval_sec": 1.0, "heartbeat_timeout_sec": 4.0}
TASKS = 12
FROZEN_SEC = 40.0
AWAY_SEC = 30.0
FAILED_OVER_SEC = 60.0
"""Patroni lets the leader's key run out first."""
LOST_SEC = 2.0
"""Without synchronous mode, what was acknowledged for so long before a failure may be lost. The
standby is milliseconds behind, and the machine may be busy."""


class Trial:
    """One run of a scenario: what is done, and what came of it."""

    def __init__(self, cluster: PatroniCluster, fleet: Fleet) -> None:
        self.cluster = cluster
        self.fleet = fleet
        self.primary = cluster.primary()
        self.failed_at = fleet.now()
        self.figures: dict[str, float] = {}
        """The greatest of each, in seconds."""

    def fails(self) -> int:
        """Something is done to the primary now; its timeline."""
        self.primary = self.cluster.primary()
        timeline = self.primary.timeline()
        assert timeline is not None
        self.failed_at = self.fleet.now()
        return timeline

    def agree_again(self, timeline: int) -> None:
        """All work goes on in time once a primary on that timeline can be reached by both ways."""
        nodes = [node.timeline for node in self.cluster.nodes.values()]
        through_haproxy = functools.partial(patroni.timeline, self.cluster.through_haproxy)
        promoted_at = self._reached(timeline, *nodes)
        reached_at = max(promoted_at, self._reached(timeline, through_haproxy))
        self.note("promoted", promoted_at - self.failed_at)
        self.note("reached", reached_at - self.failed_at)
        begun = promoted_at + self.fleet.begun(range(TASKS), promoted_at, 60)
        self.note("agreed", begun - reached_at)
        self.note("committed", self.fleet.work_goes_on(reached_at, 60))
        assert begun - reached_at <= self.fleet.timeout_sec + 2 + SLACK_SEC, self.fleet.describe()

    def _reached(self, above: int, *ways: Callable[[], int | None]) -> float:
        """When the first of some ways led to such a timeline, or a later one."""
        found: list[float] = []
        over = threading.Event()

        def watch(way: Callable[[], int | None]) -> None:
            while not over.is_set():
                if (way() or 0) >= above:
                    found.append(self.fleet.now())
                    over.set()
                over.wait(0.05)

        threads = [threading.Thread(target=watch, args=[way], daemon=True) for way in ways]
        for thread in threads:
            thread.start()
        try:
            self.fleet.until(over.is_set, FAILED_OVER_SEC, "a new primary can be reached")
        finally:
            over.set()
            for thread in threads:
                thread.join(10)
        return min(found)

    def note(self, what: str, seconds: float) -> None:
        self.figures[what] = max(seconds, self.figures.get(what, seconds))

    def last_until(self, seconds: float) -> None:
        """Let the failure last until so long after it began."""
        self.fleet.watch(max(0, self.failed_at + seconds - self.fleet.now()))


# -- scenarios -------------------------------------------------------------------------------------


def a_switchover(trial: Trial) -> None:
    timeline = trial.fails()
    trial.cluster.switchover()
    trial.agree_again(timeline + 1)


def three_switchovers_in_a_row(trial: Trial) -> None:
    for last in (False, False, True):
        timeline = trial.fails()
        trial.cluster.switchover()
        if last:
            trial.agree_again(timeline + 1)
        trial.cluster.settle()


def the_primary_is_killed(trial: Trial) -> None:
    timeline = trial.fails()
    trial.primary.kill()
    trial.agree_again(timeline + 1)
    trial.primary.start()


def the_primary_is_frozen_and_woken(trial: Trial) -> None:
    timeline = trial.fails()
    trial.primary.freeze()
    try:
        trial.agree_again(timeline + 1)
        trial.last_until(FROZEN_SEC)
    finally:
        trial.primary.wake()


def a_second_primary_is_promoted_beside_the_first(trial: Trial) -> None:
    timeline = trial.fails()
    trial.primary.freeze_itself()
    try:
        trial.agree_again(timeline + 1)
        assert trial.primary.timeline() == timeline, "the first goes on beside the second"
        trial.last_until(FROZEN_SEC)
    finally:
        trial.primary.wake()


def etcd_is_away(trial: Trial) -> None:
    timeline = trial.fails()
    trial.cluster.etcd.kill()
    trial.last_until(AWAY_SEC)
    trial.failed_at = trial.fleet.now()
    trial.cluster.etcd.start()
    trial.agree_again(timeline + 1)


def the_network_of_the_primary_is_cut(trial: Trial) -> None:
    timeline = trial.fails()
    wire = trial.cluster.wires[trial.primary.name]
    wire.cut()
    try:
        trial.agree_again(timeline + 1)
        trial.last_until(FROZEN_SEC)
    finally:
        wire.restore()


IN_ORDER = [a_switchover, three_switchovers_in_a_row, etcd_is_away]
"""The primary lets a standby have everything before it stops."""
FAILURES = [
    the_primary_is_killed,
    the_primary_is_frozen_and_woken,
    a_second_primary_is_promoted_beside_the_first,
    the_network_of_the_primary_is_cut,
]

Scenario = Callable[[Trial], None]
scenarios = pytest.mark.parametrize(
    "scenario", [*IN_ORDER, *FAILURES], ids=lambda scenario: scenario.__name__
)


# -- fixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to show at the end."""
    lines: list[str] = []
    yield lines
    version = ".".join(map(str, patroni.version()))
    head = f"\nPatroni {version} by {patroni.etcd_interface()}; times in seconds"
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(head, *lines, sep="\n")


@pytest.fixture(scope="module")
def on_loopback() -> Iterator[PatroniCluster]:
    with PatroniCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def on_wires(hub) -> Iterator[PatroniCluster]:
    with PatroniCluster(hub=hub) as cluster:
        yield cluster


@pytest.fixture
def cluster(
    request: pytest.FixtureRequest, scenario: Scenario, synchronous: bool
) -> Iterator[PatroniCluster]:
    wired = scenario is the_network_of_the_primary_is_cut
    cluster: PatroniCluster = request.getfixturevalue("on_wires" if wired else "on_loopback")
    with cluster.near():
        cluster.settle(90)
        if cluster.settings["synchronous_mode"] != synchronous:
            cluster.configure(synchronous_mode=synchronous)
        yield cluster


def started(cluster: PatroniCluster, nursery: Nursery, folder: Path) -> Fleet:
    """Workers under load."""
    name = conninfo_to_dict(make_database(cluster))["dbname"]
    by_name, by_proxy = (
        make_conninfo(dsn, dbname=name) for dsn in (cluster.dsn, cluster.through_haproxy)
    )
    fleet = Fleet(nursery, by_name, folder, TIMES, TASKS)
    load = {"act_every_sec": 0.1, "write_every_sec": 0.3, "patience_sec": 3}
    for worker, dsn in {"a": by_name, "b": by_proxy, "c": by_name, "d": by_proxy}.items():
        fleet.launch(worker, dsn=dsn, direct_dsn=dsn, network=cluster.network, **load)
    try:
        fleet.even(30)
    except BaseException:
        fleet.end()
        raise
    return fleet


@pytest.fixture
def trial(cluster: PatroniCluster, nursery: Nursery, tmp_path: Path) -> Iterator[Trial]:
    fleet = started(cluster, nursery, tmp_path)
    try:
        yield Trial(cluster, fleet)
    finally:
        fleet.end()


def ended(trial: Trial, scenario: Scenario, mode: str, measured: list[str]) -> Report:
    """What came of it, when the cluster is whole again and all is shared evenly; noted down."""
    trial.cluster.settle(90)
    trial.fleet.even(30)
    trial.fleet.watch(5)
    report = trial.fleet.weigh()
    figures = " ".join(f"{name} {seconds:.1f}" for name, seconds in trial.figures.items())
    measured.append(
        f"{scenario.__name__} {mode}: {figures}; of {len(trial.fleet.past.acknowledged)} commits "
        f"lost {len(report.lost)}; violations {len(report.violations)}"
    )
    return report


# -- tests -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("synchronous", [True], ids=["synchronous"])
@scenarios
def test_with_synchronous_mode_nothing_is_lost_and_no_task_has_two_owners(
    trial: Trial, scenario: Scenario, measured: list[str], synchronous, run
):
    scenario(trial)
    report = ended(trial, scenario, "synchronous", measured)
    assert not report.violations, "\n".join(report.violations[:10])


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("synchronous", [False], ids=["asynchronous"])
@scenarios
def test_without_synchronous_mode_only_what_the_page_says_is_lost(
    trial: Trial, scenario: Scenario, measured: list[str], synchronous, run
):
    scenario(trial)
    report = ended(trial, scenario, "asynchronous", measured)
    beside = scenario is a_second_primary_is_promoted_beside_the_first
    others = len(report.violations) - len(report.lost) - len(report.double)
    assert others == 0, "\n".join(report.violations[-10:])
    assert beside or not report.double, "\n".join(report.double[:10])
    assert scenario in FAILURES or not report.lost, report.lost[:10]
    generation = max(commit.epoch >> 32 for commit in trial.fleet.past.commits)
    for commit in report.lost:
        assert commit.epoch >> 32 < generation, "what the new primary has acknowledged stays"
        if not beside:
            at = acknowledged_at(trial.fleet, commit)
            assert at > trial.failed_at - LOST_SEC, "only the last commits before the failure"


def acknowledged_at(fleet: Fleet, commit) -> float:
    """Before which moment at the earliest a worker had the answer to its commit."""
    said = fleet[commit.worker].said("commit", commit.task, commit.epoch, commit.n)
    return float(said[0][1])


def test_a_watchdog_lets_no_second_primary_stand_beside_the_first(
    nursery: Nursery, tmp_path: Path, measured: list[str]
):
    with PatroniCluster(watchdog=True) as cluster:
        fleet = started(cluster, nursery, tmp_path)
        try:
            trial = Trial(cluster, fleet)
            timeline = trial.fails()
            trial.primary.freeze_itself()
            trial.agree_again(timeline + 1)
            assert trial.primary.watchdog is not None
            assert not trial.primary.pids, "the watchdog has reset the node"
            trial.primary.start()
            report = ended(
                trial, a_second_primary_is_promoted_beside_the_first, "watchdog", measured
            )
            assert not report.violations, "\n".join(report.violations[:10])
        finally:
            fleet.end()
