"""Faults in a given order, for rules whose absence chance alone shows too rarely. Two workers, `a` and `b`, and all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from jobsync_async.errors import OwnershipLost
from tests.simulation.faults import QUICK, SLOW, USUAL
from tests.simulation.invariants import Violation
from tests.simulation.network import Weather
from tests.simulation.tables import CLUSTER

if TYPE_CHECKING:
    from jobsync_async.claims import Claim
    from tests.simulation.process import Process
    from tests.simulation.simulation import Simulation

_SOON = 0.005
_KNOWN_DEAD_SEC = 0.3


def _until(simulation: Simulation, condition: Callable[[], object], most_sec: float = 10.0) -> None:
    end = simulation.scheduler.now + most_sec
    while not condition():
        assert simulation.scheduler.now < end, "the script waits for what does not come"
        simulation.go(_SOON)


def _by_name(simulation: Simulation, name: str) -> Process:
    return next(process for process in simulation.processes if process.name == name and not process.loop.dead)


def late_answer(simulation: Simulation) -> None:
    """The answer to a heartbeat is late, and it was the last one for a while."""
    a = _by_name(simulation, "a")
    assert a.worker is not None
    network, tables = simulation.network, simulation.server.tables
    a.worker.looks.due_at = float("inf")  # a heartbeat is to be what it sends next
    simulation.go(_SOON)
    network.cut(a, outwards=False, inwards=True)
    beat = tables.committed.node["a"].beat
    _until(simulation, lambda: tables.committed.node["a"].beat > beat)
    simulation.go(0.8)
    network.heal(a)
    simulation.go(_SOON)
    network.cut(a, outwards=True, inwards=True)
    simulation.go(5)
    network.heal(a)


def joined_without_a_heartbeat(simulation: Simulation) -> None:
    """`b` is killed and started again: it takes its tokens over, reads them, and none of its heartbeats ever arrives."""
    simulation.kill(_by_name(simulation, "b"))
    b = simulation.start("b")
    b.held = ("heartbeat",)
    simulation.go(12)
    b.held = ()
    simulation.network.heal(b)


def lease_lost_and_found_while_reading(simulation: Simulation) -> None:
    """A reading is under way when the lease ends, and arrives when a heartbeat has brought the lease back."""
    a = _by_name(simulation, "a")
    worker = a.worker
    assert worker is not None
    _until(simulation, lambda: worker.lease.remaining(a.loop.time()) > 2.2)
    a.frozen = ("heartbeat",)
    _until(simulation, lambda: worker.lease.remaining(a.loop.time()) < 0.25)
    a.frozen = ("heartbeat", "listener")
    simulation.server.announce([str(simulation.server.tables.committed.cluster.version + 1)])
    _until(simulation, lambda: not worker.ownership.known)
    reading = [held for held in a.held_out if held[0].purpose.endswith("listener")]
    a.held_out = [held for held in a.held_out if held not in reading]
    a.frozen = ("listener",)
    simulation.network.heal(a)
    _until(simulation, lambda: worker.lease.valid(a.loop.time()), 2)
    a.frozen = ()
    for _, arrive in reading:
        arrive()
    simulation.go(0.1)


def impostor(simulation: Simulation) -> None:
    """`b` stands still until another one of its name has taken over; then it goes on."""
    old = _by_name(simulation, "b")
    incarnation = simulation.server.tables.committed.node["b"].incarnation
    old.loop.stop_for(8)
    simulation.start("b")
    _by_name(simulation, "a").loop.stop_for(2.5)  # so that it begins to watch anew, and is not the first to act
    _until(simulation, lambda: simulation.server.tables.committed.node["b"].incarnation != incarnation)
    _until(simulation, lambda: not old.loop.stopped)
    simulation.go(0.5)


def late_acknowledgement(simulation: Simulation) -> None:
    """An acknowledgement is held up; its revocation is withdrawn, and made anew while the token is in use again."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    assert a.worker is not None and b.job is not None and a.job is not None
    worker, job, own = a.worker, b.job, a.job
    token = min(worker.ownership.owned)

    async def use() -> None:
        try:
            async with own.claim(token) as claim:
                number = a.claimed(claim)
                try:
                    await anyio.sleep(3)
                finally:
                    a.unclaimed(number)
        except OwnershipLost:
            return

    a.frozen_once = ("lock_cluster+acknowledge",)
    b.spawn("pin", lambda: job.register_lock(str(token), "b"), public=False)
    tables = simulation.server.tables
    _until(simulation, lambda: tables.committed.token[token].next_node == "b")
    _until(simulation, lambda: not a.frozen_once)
    held = list(a.held_out)
    b.spawn("pin", lambda: job.register_lock(str(token), "a"), public=False)
    _until(simulation, lambda: tables.committed.token[token].next_node is None)
    _until(simulation, lambda: token in worker.ownership.owned)
    a.spawn("use", use, public=False)
    simulation.go(_SOON)
    b.spawn("pin", lambda: job.register_lock(str(token), "b"), public=False)
    _until(simulation, lambda: tables.committed.token[token].next_node == "b")
    simulation.go(0.1)
    a.held_out.clear()
    for _, arrive in held:
        arrive()
    simulation.go(1)


def killed_in_a_transaction(simulation: Simulation) -> None:
    """The leader waits for somebody's row with the cluster's row in its hands, and is killed. Others on its host see that."""
    tables = simulation.server.tables
    simulation.hosts.hides = False
    there = [process.name for process in simulation.processes]
    for name in simulation.profile.names:
        if name not in there:
            simulation.start(name)
    simulation.go(3)
    leader = _by_name(simulation, str(tables.committed.cluster.leader))
    row = ("node", next(name for name in simulation.profile.names if name != leader.name))
    slow = tables.begin()
    _until(simulation, lambda: slow.try_lock(row, "exclusive"))
    _until(simulation, lambda: any(CLUSTER in waits.held for waits, *_ in tables.locks[row].waiting))
    simulation.kill(leader)
    simulation.go(_KNOWN_DEAD_SEC)
    still_there = leader.name in tables.committed.node
    slow.rollback()
    if still_there:
        raise Violation(f"{leader.name} is known dead and has its row {_KNOWN_DEAD_SEC:g} s later")


def reported_late(simulation: Simulation) -> None:
    """`b` is killed; `a` sees that, and before it has said so, another one takes over under the name."""
    simulation.hosts.hides = False
    a = _by_name(simulation, "a")
    a.held = ("end_sessions",)
    simulation.kill(_by_name(simulation, "b"))
    _until(simulation, lambda: a.held_out)
    simulation.start("b")
    _until(simulation, lambda: (worker := _by_name(simulation, "b").worker) is not None and worker.ownership.owned, 0.8)
    simulation.network.cut(_by_name(simulation, "b"), outwards=True, inwards=True)
    _let_through(simulation, a)
    simulation.go(1)


def _let_through(simulation: Simulation, process: Process) -> None:
    """What was held up arrives."""
    process.held = ()
    held, process.held_out = process.held_out, []
    for _, arrive in held:
        arrive()


def rejoined_before_its_tokens_went(simulation: Simulation) -> None:
    """`b` is expired while somebody locks one of its tokens, and joins anew before that one can be given away."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    tables = simulation.server.tables
    assert a.worker is not None and b.worker is not None
    token = min(b.worker.ownership.owned)
    user = tables.begin()
    _until(simulation, lambda: user.try_lock(("token", token), "key share"))
    simulation.network.cut(b, outwards=True, inwards=True)
    _until(simulation, lambda: "b" not in tables.committed.node)
    simulation.network.heal(b)
    _until(simulation, lambda: "b" in tables.committed.node)
    simulation.go(1)
    user.rollback()


def stale_fence(simulation: Simulation) -> None:
    """A token goes and comes back; then somebody commits with the claim of before."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    assert a.worker is not None and b.job is not None and a.job is not None
    worker, job, own = a.worker, b.job, a.job
    token = min(worker.ownership.owned)
    stale: list[Claim] = []

    async def claim() -> None:
        async with own.claim(token) as claim:
            stale.append(claim)

    a.spawn("claim", claim, public=False)
    _until(simulation, lambda: stale)
    for name in ("b", "a"):
        b.spawn("pin", lambda name=name: job.register_lock(str(token), name), public=False)  # type: ignore[misc]
        _until(simulation, lambda name=name: simulation.server.tables.committed.token[token].node == name)  # type: ignore[misc]
    a.spawn("stale", lambda: simulation.users[a].stale(stale[0]), public=False)
    simulation.go(3)


def set_back(simulation: Simulation) -> None:
    """The server's storage goes back to before a token went from `a` to `b`. Then `a` forgets everything, and reads it anew."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    assert a.worker is not None and b.job is not None
    worker, job = a.worker, b.job
    token = min(worker.ownership.owned)
    b.spawn("pin", lambda: job.register_lock(str(token), "b"), public=False)
    _until(simulation, lambda: b.worker is not None and token in b.worker.ownership.owned)
    before = next(state for state in reversed(simulation.states) if state[0].token[token].next_node == "b")
    simulation.go(1)
    simulation.faults.fail_over(before, 0.01, sibling=True)
    simulation.network.cut(a, outwards=True, inwards=True)
    _until(simulation, lambda: not worker.ownership.known)
    simulation.network.heal(a)
    simulation.go(2)


def begun_twice(simulation: Simulation) -> None:
    """Two standbys were promoted from one state, one after the other. `b` knows what was begun on the first; `c`, who has not
    heard of it, begins on the second, and as the case may be a generation that comes before."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    state = simulation.states[-1]
    simulation.faults.fail_over(state, 0.1)
    simulation.go(6)
    b.loop.stop_for(6)
    simulation.kill(a)
    simulation.faults.fail_over(state, 0.1, sibling=True)
    simulation.go(0.2)
    simulation.start("c")
    simulation.go(11)


# == workers whose times differ: `a` leads ==============================================================================


def replaced_by_a_hasty_one(simulation: Simulation) -> None:
    """`b` is cut off, and another one is started under its name whose own timeout is short."""
    b = _by_name(simulation, "b")
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.start("b", QUICK)
    simulation.go(8)
    simulation.network.heal(b)


def row_edited(simulation: Simulation) -> None:
    """Somebody lowers the timeout in `b`'s row by hand; `b` sends a heartbeat over it, and is cut off."""
    b, tables = _by_name(simulation, "b"), simulation.server.tables
    tx = tables.begin()
    _until(simulation, lambda: tx.try_lock(("node", "b"), "update"))
    tx.write("node", "b", tables.committed.node["b"]._replace(timeout_sec=QUICK.timeout_sec))
    tx.commit()
    assert b.worker is not None
    lease = b.worker.lease
    beat, deadline = tables.committed.node["b"].beat, lease.deadline
    _until(simulation, lambda: tables.committed.node["b"].beat > beat and lease.deadline != deadline)
    simulation.go(_SOON)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def taken_over_by_an_older_library(simulation: Simulation) -> None:
    """`b`, whose timeout is short, is killed. An older library takes its row over, leaves the times there, and is cut off."""
    simulation.kill(_by_name(simulation, "b"))
    b = simulation.start("b", USUAL, old_library=True)
    _by_name(simulation, "a").loop.stop_for(1.8)  # so that it does not expire the old one before
    _until(simulation, lambda: b.started and b.worker is not None and b.worker.ownership.owned)
    simulation.go(2)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def short_outage(simulation: Simulation) -> None:
    """The server is away for longer than `b`'s timeout, and `b` is back a moment after `a`, whose own timeout is long."""
    b, server = _by_name(simulation, "b"), simulation.server
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
    simulation.kill(_by_name(simulation, "b"))
    simulation.go(1)


def cut_off_after_a_failover(simulation: Simulation) -> None:
    """The server fails over while `b`, whose timeout is long, is cut off: `a` has to wait for its lease."""
    simulation.network.cut(_by_name(simulation, "b"), outwards=True, inwards=True)
    simulation.faults.fail_over(simulation.states[-1], 0.05)
    simulation.go(8)
    simulation.network.heal(_by_name(simulation, "b"))


def raise_is_lost(simulation: Simulation) -> None:
    """The bound is raised, `b` joins with a timeout that it allows, and is cut off; then a standby is promoted that knows of
    neither. `a` does."""
    before = simulation.states[-1]
    longest, tables = SLOW.timeout_sec, simulation.server.tables
    simulation.faults.raise_bound(longest)
    _until(simulation, lambda: tables.committed.cluster.longest_allowed == longest)
    c = simulation.start("c", SLOW)
    _until(simulation, lambda: c.worker is not None and c.worker.ownership.owned)
    simulation.go(1.5)  # everybody's next heartbeat tells of the bound
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(before, 0.05)
    simulation.go(8)
    simulation.network.heal(c)


def joined_above_the_bound(simulation: Simulation) -> None:
    """`c` joins with a timeout that is above the bound, and is cut off; then the server fails over."""
    c = simulation.start("c", SLOW)
    _until(simulation, lambda: c.over or (c.worker is not None and c.worker.ownership.owned))
    if c.over:
        return  # it was refused
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(simulation.states[-1], 0.05)
    simulation.go(8)
    simulation.network.heal(c)


def newcomer_after_a_raise(simulation: Simulation) -> None:
    """The bound is raised, and a standby that does not know it yet is promoted as soon as somebody may join with it. Those who
    know are killed, and a newcomer looks at the server."""
    before = simulation.states[-1]
    longest, tables = SLOW.timeout_sec, simulation.server.tables
    simulation.faults.raise_bound(longest, 60)
    c = simulation.start("c", SLOW)
    _until(simulation, lambda: c.over or "c" in tables.committed.node)
    if c.over:
        return  # it was refused
    for name in ("a", "b"):
        simulation.kill(_by_name(simulation, name))
    _until(simulation, lambda: c.worker is not None and c.worker.ownership.owned, 20)
    simulation.network.cut(c, outwards=True, inwards=True)
    simulation.faults.fail_over(before, 0.05)
    simulation.go(0.1)
    simulation.start("d", USUAL)
    simulation.go(8)
    simulation.network.heal(c)


# == when an answer was asked for, and when it came =====================================================================


def late_reading(simulation: Simulation, statement: str) -> None:
    """`a` asks for the beats, and is answered late. Meanwhile `b` has sent a heartbeat, and then it is cut off."""
    a, b = _by_name(simulation, "a"), _by_name(simulation, "b")
    assert a.worker is not None and b.worker is not None
    a.held = (statement,)
    (a.worker.beat_wanted if statement == "heartbeat" else a.worker.lead_wanted).set()
    if statement == "read_beats":
        a.worker.looks.due_at = 0.0
    _until(simulation, lambda: a.held_out)
    simulation.go(0.4)
    deadline = b.worker.lease.deadline
    b.worker.beat_wanted.set()
    lease = b.worker.lease
    _until(simulation, lambda: lease.deadline > deadline)
    _let_through(simulation, a)
    simulation.go(_SOON)
    simulation.network.cut(b, outwards=True, inwards=True)
    simulation.go(5)
    simulation.network.heal(b)


def late_heartbeat(simulation: Simulation) -> None:
    late_reading(simulation, "heartbeat")


def late_look(simulation: Simulation) -> None:
    late_reading(simulation, "read_beats")


def beats_while_it_leaves(simulation: Simulation) -> None:
    """`a` leaves while a heartbeat of its is under way, which arrives when its row is gone, and before `a` knows that."""
    a, tables = _by_name(simulation, "a"), simulation.server.tables
    assert a.worker is not None
    a.held = ("heartbeat",)
    a.worker.beat_wanted.set()
    _until(simulation, lambda: a.held_out)
    simulation.network.weather = Weather(slow=1, slow_sec=0.04)
    simulation.leave(a)
    _until(simulation, lambda: "a" not in tables.committed.node)
    simulation.network.weather = Weather()
    _let_through(simulation, a)
    for _ in range(100):
        simulation.go(_SOON)
        if "a" in tables.committed.node:
            raise Violation("a has left, and joined anew")
