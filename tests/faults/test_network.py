"""What a network can do between a worker and PostgreSQL.

Each fault is brought about in two ways: by a proxy, which can hold back what is on the way and
break connections, and on a wire between two network namespaces, where packets are lost and what is
left of TCP's own patience shows. There, all workers are on one machine and see each other's
processes: who is cut off is not dead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.conftest import QUICK, STEADY, MakeFleet, Way, make_database
from tests.faults.fleet import SLACK_SEC, Fleet
from tests.faults.proxy import Proxy
from tests.faults.wires import Wire

Network = Proxy | Wire
MakeNetwork = Callable[[], tuple[Network, Way]]

long = pytest.mark.long
on_both = pytest.mark.parametrize(
    "kind", ["proxy", pytest.param("wire", marks=long)], indirect=True
)


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dsn(kind: str, request: pytest.FixtureRequest) -> str:
    return make_database(
        request.getfixturevalue({"proxy": "postgres", "wire": "wired_postgres"}[kind])
    )


@pytest.fixture
def make_network(kind: str, request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"make_{kind}")


def three_of_which_one_is_behind(
    fleet: Fleet, make_network: MakeNetwork, *, leads: bool = False
) -> Network:
    """Workers a, b and c, of which c reaches the tables through the network. It is the oldest if it
    is to lead."""
    network, way = make_network()
    far = isinstance(network, Proxy)
    if leads:
        fleet.start("c", far=far, **way)
        fleet.start("a", "b", far=far)
    else:
        fleet.start("a", "b", far=far)
        fleet.start("c", far=far, **way)
    assert (fleet.leader() == "c") == leads
    return network


@pytest.mark.parametrize(
    ("kind", "directions", "leads"),
    [
        pytest.param("proxy", ("up", "down"), True, id="silent partition of the leader"),
        pytest.param("proxy", ("down",), False, id="answers are lost"),
        pytest.param("proxy", ("up",), False, id="questions are lost", marks=long),
        pytest.param("wire", ("up", "down"), True, id="silent partition of the leader's host"),
        pytest.param("wire", ("down",), False, id="packets with answers are lost"),
        pytest.param("wire", ("up",), False, id="packets with questions are lost", marks=long),
    ],
    indirect=["kind"],
)
def test_a_worker_that_is_cut_off_stops_when_its_lease_ends_and_is_replaced_after_the_timeout(
    make_fleet: MakeFleet, make_network: MakeNetwork, directions, leads: bool
):
    fleet = make_fleet(QUICK)
    network = three_of_which_one_is_behind(fleet, make_network, leads=leads)
    orphans = fleet["c"].state[3]
    fleet["c"].cut = True
    cut_at = fleet.now()
    network.cut(*directions)
    took = fleet.begun(orphans, cut_at, 20)
    # When only answers are lost, one more beat is counted.
    assert took <= fleet.takeover_sec + (directions == ("down",)) * fleet.interval_sec
    assert took > fleet.lease_sec - fleet.interval_sec, "nobody was taken for dead"
    assert fleet.last_act("c") <= cut_at + fleet.lease_sec
    assert fleet["c"].state[1:] == (False, False, frozenset()), "it knows"
    network.restore()
    fleet["c"].cut = False
    assert fleet.even(10) <= 2 + SLACK_SEC, "it is back by itself"
    assert not fleet.judge().unfenced_overlaps


@pytest.mark.parametrize("kind", ["wire"], indirect=True)
def test_a_worker_that_is_killed_while_it_is_cut_off_is_replaced_at_once_by_those_who_see_its_process_end(  # noqa: E501
    make_fleet: MakeFleet, make_network: MakeNetwork
):
    """The server hears nothing of its end, and has its sessions still."""
    fleet = make_fleet(STEADY)
    network = three_of_which_one_is_behind(fleet, make_network)
    orphans = fleet["c"].state[3]
    network.cut()
    assert fleet.begun(orphans, fleet.kill("c"), 20) <= 0.5 + SLACK_SEC


@on_both
def test_answers_that_take_a_fifth_of_the_timeout_cost_nobody_anything(
    make_fleet: MakeFleet, make_network: MakeNetwork
):
    """Three seconds with the default times."""
    fleet = make_fleet(STEADY)
    network = three_of_which_one_is_behind(fleet, make_network)
    with fleet.no_token_moves():
        network.delay(fleet.timeout_sec / 10)
        fleet.watch(fleet.timeout_sec + 1)


@long
@pytest.mark.parametrize("kind", ["proxy", "wire"], indirect=True)
def test_a_worker_whose_packets_take_longer_than_its_lease_stops_and_is_replaced(
    make_fleet: MakeFleet, make_network: MakeNetwork
):
    fleet = make_fleet(QUICK)
    network = three_of_which_one_is_behind(fleet, make_network)
    orphans = fleet["c"].state[3]
    fleet["c"].cut = True
    slow_at = fleet.now()
    network.delay(fleet.timeout_sec)
    took = fleet.begun(orphans, slow_at, 20)
    assert took <= fleet.takeover_sec + fleet.interval_sec + fleet.timeout_sec, (
        "the last beat came so late"
    )
    assert fleet.last_act("c") <= slow_at + fleet.lease_sec
    network.delay(0)
    fleet["c"].cut = False
    assert fleet.even(15) <= 2 * fleet.timeout_sec + 2 + SLACK_SEC, (
        "it is back by itself, once the slow packets are through"
    )
    assert not fleet.judge().unfenced_overlaps


@on_both
def test_a_network_that_flaps_for_shorter_than_the_lease_costs_nobody_anything(
    make_fleet: MakeFleet, make_network: MakeNetwork
):
    fleet = make_fleet(STEADY)
    network = three_of_which_one_is_behind(fleet, make_network)
    with fleet.no_token_moves():
        for _ in range(3):
            network.cut()
            fleet.watch(fleet.lease_sec / 3)
            network.restore()
            fleet.watch(fleet.interval_sec / 2)
        for _ in range(3):
            network.reset()
            fleet.watch(fleet.interval_sec)
    fleet.start("d", far=isinstance(network, Proxy))
