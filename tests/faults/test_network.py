"""What a network can do between a worker and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import QUICK, STEADY, MakeFleet
from tests.faults.fleet import SLACK_SEC, Fleet
from tests.faults.proxy import Proxy

MakeProxy = Callable[[], tuple[Proxy, str]]


def three_of_which_one_is_far(fleet: Fleet, make_proxy: MakeProxy, *, leads: bool = False) -> Proxy:
    """Workers a, b and c, of which c reaches the tables through the proxy. It is the oldest if it is to lead."""
    proxy, dsn = make_proxy()
    if leads:
        fleet.start("c", dsn=dsn)
        fleet.start("a", "b")
    else:
        fleet.start("a", "b")
        fleet.start("c", dsn=dsn)
    assert (fleet.leader() == "c") == leads
    return proxy


@pytest.mark.parametrize(
    ("directions", "leads"),
    [(("up", "down"), True), (("down",), False), pytest.param(("up",), False, marks=pytest.mark.long)],
    ids=["silent partition of the leader", "answers are lost", "questions are lost"],
)
def test_a_worker_that_is_cut_off_stops_when_its_lease_ends_and_is_replaced_after_the_timeout(
    make_fleet: MakeFleet, make_proxy: MakeProxy, directions, leads: bool
):
    fleet = make_fleet(QUICK)
    proxy = three_of_which_one_is_far(fleet, make_proxy, leads=leads)
    orphans = fleet["c"].state[3]
    fleet["c"].cut = True
    cut_at = fleet.now()
    proxy.cut(*directions)
    took = fleet.begun(orphans, cut_at, 20)
    # When only answers are lost, one more beat is counted.
    assert took <= fleet.takeover_sec + (directions == ("down",)) * fleet.interval_sec
    assert fleet.last_act("c") <= cut_at + fleet.lease_sec
    assert fleet["c"].state[1:] == (False, False, frozenset()), "it knows"
    proxy.restore()
    fleet["c"].cut = False
    assert fleet.even(10) <= 2 + SLACK_SEC, "it is back by itself"
    assert not fleet.judge().unfenced_overlaps


def test_answers_that_take_a_fifth_of_the_timeout_cost_nobody_anything(make_fleet: MakeFleet, make_proxy: MakeProxy):
    """Three seconds with the default times."""
    fleet = make_fleet(STEADY)
    proxy = three_of_which_one_is_far(fleet, make_proxy)
    with fleet.no_token_moves():
        proxy.delay(fleet.timeout_sec / 10)
        fleet.watch(fleet.timeout_sec + 1)


@pytest.mark.long
def test_a_worker_whose_packets_take_longer_than_its_lease_stops_and_is_replaced(make_fleet: MakeFleet, make_proxy: MakeProxy):
    fleet = make_fleet(QUICK)
    proxy = three_of_which_one_is_far(fleet, make_proxy)
    orphans = fleet["c"].state[3]
    fleet["c"].cut = True
    slow_at = fleet.now()
    proxy.delay(fleet.timeout_sec)
    took = fleet.begun(orphans, slow_at, 20)
    assert took <= fleet.takeover_sec + fleet.interval_sec + fleet.timeout_sec, "the last beat came so late"
    assert fleet.last_act("c") <= slow_at + fleet.lease_sec
    proxy.delay(0)
    fleet["c"].cut = False
    assert fleet.even(15) <= 2 * fleet.timeout_sec + 2 + SLACK_SEC, "it is back by itself, once the slow packets are through"
    assert not fleet.judge().unfenced_overlaps


def test_a_network_that_flaps_for_shorter_than_the_lease_costs_nobody_anything(make_fleet: MakeFleet, make_proxy: MakeProxy):
    fleet = make_fleet(STEADY)
    proxy = three_of_which_one_is_far(fleet, make_proxy)
    with fleet.no_token_moves():
        for _ in range(3):
            proxy.cut()
            fleet.watch(fleet.lease_sec / 3)
            proxy.restore()
            fleet.watch(fleet.interval_sec / 2)
        for _ in range(3):
            proxy.reset()
            fleet.watch(fleet.interval_sec)
    fleet.start("d")
