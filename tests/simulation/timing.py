"""Scripts about times: workers whose times differ, and when an answer was asked for and came. `a`
leads, and all is well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.invariants import Violation
from tests.simulation.mixes import QUICK, SLOW, USUAL
from tests.simulation.network import Weather
from tests.simulation.scripts import SOON_SEC, by_name, let_through, until

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

# == workers whose times differ ====================================================================


def replaced_by_a_hasty_one(simulation: Simulation) -> None:
    """`b` is cut off, and another one is started under its name whose own timeout is short."""
    b = by_name(simulation, "b")
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.start("b", QUICK)
    simulation.go(8)
    simulation.network.heal(b)


def row_edited(simulation: Simulation) -> None:
    """Somebody lowers the timeout in `b`'s row by hand; `b` sends a heartbeat over it, and is cut
    off."""
    b, tables = by_name(simulation, "b"), simulation.server.tables
    tx = tables.begin()
    until(simulation, lambda: tx.try_lock(("node", "b"), "update"))
    tx.write("node", "b", tables.committed.node["b"]._replace(timeout_sec=QUICK.timeout_sec))
    tx.commit()
    assert b.worker is not None
    lease = b.worker.lease
    beat, deadline = tables.committed.node["b"].beat, lease.deadline
    until(simulation, lambda: tables.committed.node["b"].beat > beat and lease.deadline != deadline)
    simulation.go(SOON_SEC)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def taken_over_by_an_older_library(simulation: Simulation) -> None:
    """`b`, whose timeout is short, is killed. An older library takes its row over, leaves the times
    there, and is cut off."""
    simulation.kill(by_name(simulation, "b"))
    b = simulation.start("b", USUAL, old_library=True)
    by_name(simulation, "a").loop.stop_for(1.8)  # so that it does not expire the old one before
    until(simulation, lambda: b.started and b.worker is not None and b.worker.ownership.owned)
    simulation.go(2)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def short_outage(simulation: Simulation) -> None:
    """The server is away for longer than `b`'s timeout, and `b` is back a moment after `a`, whose
    own timeout is long."""
    b, server = by_name(simulation, "b"), simulation.server
    incarnation = server.tables.committed.node["b"].incarnation
    server.go_down()
    b.loop.stop_for(2.0)
    simulation.go(1.9)
    server.come_up()
    simulation.go(1)
    row = server.tables.committed.node.get("b")
    if row is None or row.incarnation != incarnation:
        raise Violation("b lives, and was expired after an outage")


def killed(simulation: Simulation) -> None:
    """`b` is killed, when nobody is new any more. Only its beat tells of it."""
    simulation.go(10)
    simulation.kill(by_name(simulation, "b"))
    simulation.go(1)


def cut_off_after_a_failover(simulation: Simulation) -> None:
    """The server fails over while `b`, whose timeout is long, is cut off: `a` has to wait for its
    lease."""
    simulation.network.cut(by_name(simulation, "b"), outwards=True, inwards=True)
    simulation.faults.fail_over(simulation.states[-1], 0.05)
    simulation.go(8)
    simulation.network.heal(by_name(simulation, "b"))


def raise_is_lost(simulation: Simulation) -> None:
    """The bound is raised, `b` joins with a timeout that it allows, and is cut off; then a standby
    is promoted that knows of neither. `a` does."""
    before = simulation.states[-1]
    longest, tables = SLOW.timeout_sec, simulation.server.tables
    simulation.faults.raise_bound(longest)
    until(simulation, lambda: tables.committed.cluster.longest_allowed == longest)
    c = simulation.start("c", SLOW)
    until(simulation, lambda: c.worker is not None and c.worker.ownership.owned)
    simulation.go(1.5)  # everybody's next heartbeat tells of the bound
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(before, 0.05)
    simulation.go(8)
    simulation.network.heal(c)


def joined_above_the_bound(simulation: Simulation) -> None:
    """`c` joins with a timeout that is above the bound, and is cut off; then the server fails
    over."""
    c = simulation.start("c", SLOW)
    until(simulation, lambda: c.over or (c.worker is not None and c.worker.ownership.owned))
    if c.over:
        return  # it was refused
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(simulation.states[-1], 0.05)
    simulation.go(8)
    simulation.network.heal(c)


def newcomer_after_a_raise(simulation: Simulation) -> None:
    """The bound is raised, and a standby that does not know it yet is promoted as soon as somebody
    may join with it. Those who know are killed, and a newcomer looks at the server."""
    before = simulation.states[-1]
    longest, tables = SLOW.timeout_sec, simulation.server.tables
    simulation.faults.raise_bound(longest, 60)
    c = simulation.start("c", SLOW)
    until(simulation, lambda: c.over or "c" in tables.committed.node)
    if c.over:
        return  # it was refused
    for name in ("a", "b"):
        simulation.kill(by_name(simulation, name))
    until(simulation, lambda: c.worker is not None and c.worker.ownership.owned, 20)
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(before, 0.05)
    simulation.go(0.1)
    simulation.start("d", USUAL)
    simulation.go(8)
    simulation.network.heal(c)


# == when an answer was asked for, and when it came ================================================


def late_reading(simulation: Simulation, statement: str) -> None:
    """`a` asks for the beats, and is answered late. Meanwhile `b` has sent a heartbeat, and then it
    is cut off."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    assert a.worker is not None and b.worker is not None
    a.held = (statement,)
    (a.worker.beat_wanted if statement == "heartbeat" else a.worker.lead_wanted).set()
    if statement == "read_beats":
        a.worker.look_schedule.due_at = 0.0
    until(simulation, lambda: a.held_out)
    simulation.go(0.4)
    deadline = b.worker.lease.deadline
    b.worker.beat_wanted.set()
    lease = b.worker.lease
    until(simulation, lambda: lease.deadline > deadline)
    let_through(simulation, a)
    simulation.go(SOON_SEC)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def late_heartbeat(simulation: Simulation) -> None:
    late_reading(simulation, "heartbeat")


def late_look(simulation: Simulation) -> None:
    late_reading(simulation, "read_beats")


def beats_while_it_leaves(simulation: Simulation) -> None:
    """`a` leaves while a heartbeat of its is under way, which arrives when its row is gone, and
    before `a` knows that."""
    a, tables = by_name(simulation, "a"), simulation.server.tables
    assert a.worker is not None
    a.held = ("heartbeat",)
    a.worker.beat_wanted.set()
    until(simulation, lambda: a.held_out)
    simulation.network.weather = Weather(slow=1, slow_sec=0.04)
    simulation.leave(a)
    until(simulation, lambda: "a" not in tables.committed.node)
    simulation.network.weather = Weather()
    let_through(simulation, a)
    for _ in range(100):
        simulation.go(SOON_SEC)
        if "a" in tables.committed.node:
            raise Violation("a has left, and joined anew")
