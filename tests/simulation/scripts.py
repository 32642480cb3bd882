"""Faults in a given order, for rules whose absence chance alone shows too rarely. Two workers, `a`
and `b`, and all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from jobsync_async.errors import OwnershipLost
from tests.simulation.invariants import Violation
from tests.simulation.tables import CLUSTER

if TYPE_CHECKING:
    from jobsync_async.work.claims import Claim
    from tests.simulation.process import Process
    from tests.simulation.server import Session
    from tests.simulation.simulation import Simulation

SOON_SEC = 0.005
_KNOWN_DEAD_SEC = 0.3


def until(simulation: Simulation, condition: Callable[[], object], most_sec: float = 10.0) -> None:
    end = simulation.scheduler.now + most_sec
    while not condition():
        assert simulation.scheduler.now < end, "the script waits for what does not come"
        simulation.go(SOON_SEC)


def by_name(simulation: Simulation, name: str) -> Process:
    return next(
        process
        for process in simulation.processes
        if process.name == name and not process.loop.dead
    )


def late_answer(simulation: Simulation) -> None:
    """The answer to a heartbeat is late, and it was the last one for a while."""
    a = by_name(simulation, "a")
    assert a.worker is not None
    network, tables = simulation.network, simulation.server.tables
    a.worker.look_schedule.due_at = float("inf")  # a heartbeat is to be what it sends next
    simulation.go(SOON_SEC)
    network.cut(a, outwards=False, inwards=True)
    beat = tables.committed.node["a"].beat
    until(simulation, lambda: tables.committed.node["a"].beat > beat)
    simulation.go(0.8)
    network.heal(a)
    simulation.go(SOON_SEC)
    network.cut(a, outwards=True, inwards=True)
    simulation.go(5)
    network.heal(a)


def joined_without_a_heartbeat(simulation: Simulation) -> None:
    """`b` is killed and started again: it takes its tokens over, reads them, and none of its
    heartbeats ever arrives."""
    simulation.kill(by_name(simulation, "b"))
    b = simulation.start("b")
    b.held = ("heartbeat",)
    simulation.go(12)
    b.held = ()
    simulation.network.heal(b)


def lease_lost_and_found_while_reading(simulation: Simulation) -> None:
    """A reading is under way when the lease ends, and arrives when a heartbeat has brought the
    lease back."""
    a = by_name(simulation, "a")
    worker = a.worker
    assert worker is not None
    until(simulation, lambda: worker.lease.remaining(a.loop.time()) > 2.2)
    a.frozen = ("heartbeat",)
    until(simulation, lambda: worker.lease.remaining(a.loop.time()) < 0.25)
    a.frozen = ("heartbeat", "listener")
    simulation.server.announce([str(simulation.server.tables.committed.cluster.version + 1)])
    until(simulation, lambda: not worker.ownership.known)
    reading = [held for held in a.held_out if held[0].purpose.endswith("listener")]
    a.held_out = [held for held in a.held_out if held not in reading]
    a.frozen = ("listener",)
    simulation.network.heal(a)
    until(simulation, lambda: worker.lease.valid(a.loop.time()), 2)
    a.frozen = ()
    for _, arrive in reading:
        arrive()
    simulation.go(0.1)


def impostor(simulation: Simulation) -> None:
    """`b` stands still until another one of its name has taken over; then it goes on."""
    old = by_name(simulation, "b")
    incarnation = simulation.server.tables.committed.node["b"].incarnation
    old.loop.stop_for(8)
    simulation.start("b")
    # So that it begins to watch anew, and is not the first to act.
    by_name(simulation, "a").loop.stop_for(2.5)
    until(
        simulation, lambda: simulation.server.tables.committed.node["b"].incarnation != incarnation
    )
    until(simulation, lambda: not old.loop.stopped)
    simulation.go(0.5)


def late_acknowledgement(simulation: Simulation) -> None:
    """An acknowledgement is held up; its revocation is withdrawn, and made anew while the token is
    in use again."""
    # Who leads hands its own tokens on by its plan.
    tables = simulation.server.tables
    b = by_name(simulation, str(tables.committed.cluster.leader))
    a = next(process for process in simulation.processes if process is not b)
    assert a.worker is not None and b.job is not None and a.job is not None
    worker, job, own = a.worker, b.job, a.job
    token = min(worker.ownership.owned)

    def pin(name: str) -> None:
        b.spawn("pin", lambda: job.register_lock(str(token), name), public=False)

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
    pin(b.name)
    until(simulation, lambda: tables.committed.token[token].next_node == b.name)
    until(simulation, lambda: not a.frozen_once)
    held = list(a.held_out)
    pin(a.name)
    until(simulation, lambda: tables.committed.token[token].next_node is None)
    until(simulation, lambda: token in worker.ownership.owned)
    a.spawn("use", use, public=False)
    simulation.go(SOON_SEC)
    pin(b.name)
    until(simulation, lambda: tables.committed.token[token].next_node == b.name)
    simulation.go(0.1)
    a.held_out.clear()
    for _, arrive in held:
        arrive()
    simulation.go(1)


def late_plan(simulation: Simulation) -> None:
    """The leader gives a token of its own away. The commit of that is still on its way to the disk
    when the connection breaks. So the leader reads its tokens anew, and has time to use them."""
    server, tables = simulation.server, simulation.server.tables
    leader = by_name(simulation, str(tables.committed.cluster.leader))
    other = next(process for process in simulation.processes if process is not leader)
    assert leader.worker is not None and other.job is not None
    job, token = other.job, min(leader.worker.ownership.owned)
    pins = tables.committed.cluster.pin_version

    def committing() -> list[Session]:
        return [one for one in server.sessions if one.committing and one.client.process is leader]

    other.spawn("pin", lambda: job.register_lock(str(token), other.name), public=False)
    until(simulation, lambda: tables.committed.cluster.pin_version > pins)
    server.commit_delay = lambda: 1.0
    until(simulation, committing)
    for session in committing():
        simulation.network.sever(session.client, "the connection was reset")
    server.commit_delay = lambda: 0.0
    simulation.go(2)


def killed_in_a_transaction(simulation: Simulation) -> None:
    """The leader waits for somebody's row with the cluster's row in its hands, and is killed.
    Others on its host see that."""
    tables = simulation.server.tables
    simulation.hosts.hides = False
    there = [process.name for process in simulation.processes]
    for name in simulation.profile.names:
        if name not in there:
            simulation.start(name)
    simulation.go(3)
    leader = by_name(simulation, str(tables.committed.cluster.leader))
    row = ("node", next(name for name in simulation.profile.names if name != leader.name))
    slow = tables.begin()
    until(simulation, lambda: slow.try_lock(row, "exclusive"))
    until(simulation, lambda: any(CLUSTER in waits.held for waits, *_ in tables.locks[row].waiting))
    simulation.kill(leader)
    simulation.go(_KNOWN_DEAD_SEC)
    still_there = leader.name in tables.committed.node
    slow.rollback()
    if still_there:
        raise Violation(f"{leader.name} is known dead and has its row {_KNOWN_DEAD_SEC:g} s later")


def reported_late(simulation: Simulation) -> None:
    """`b` is killed; `a` sees that, and before it has said so, another one takes over under the
    name."""
    simulation.hosts.hides = False
    a = by_name(simulation, "a")
    a.held = ("end_sessions",)
    simulation.kill(by_name(simulation, "b"))
    until(simulation, lambda: a.held_out)
    simulation.start("b")
    until(
        simulation,
        lambda: (worker := by_name(simulation, "b").worker) is not None and worker.ownership.owned,
        0.8,
    )
    simulation.network.cut(by_name(simulation, "b"), outwards=True, inwards=True)
    let_through(simulation, a)
    simulation.go(1)


def let_through(simulation: Simulation, process: Process) -> None:
    """What was held up arrives."""
    process.held = ()
    held, process.held_out = process.held_out, []
    for _, arrive in held:
        arrive()


def rejoined_before_its_tokens_went(simulation: Simulation) -> None:
    """`b` is expired while somebody locks one of its tokens, and joins anew before that one can be
    given away."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    tables = simulation.server.tables
    assert a.worker is not None and b.worker is not None
    token = min(b.worker.ownership.owned)
    user = tables.begin()
    until(simulation, lambda: user.try_lock(("token", token), "key share"))
    simulation.network.cut(b, outwards=True, inwards=True)
    until(simulation, lambda: "b" not in tables.committed.node)
    simulation.network.heal(b)
    until(simulation, lambda: "b" in tables.committed.node)
    simulation.go(1)
    user.rollback()


def stale_fence(simulation: Simulation) -> None:
    """A token goes and comes back; then somebody commits with the claim of before."""
    # Who leads hands its own tokens on by its plan.
    tables = simulation.server.tables
    b = by_name(simulation, str(tables.committed.cluster.leader))
    a = next(process for process in simulation.processes if process is not b)
    assert a.worker is not None and b.job is not None and a.job is not None
    worker, job, own = a.worker, b.job, a.job
    token = min(worker.ownership.owned)

    def pin(name: str) -> None:
        b.spawn("pin", lambda: job.register_lock(str(token), name), public=False)

    stale: list[Claim] = []

    async def claim() -> None:
        async with own.claim(token) as claim:
            stale.append(claim)

    a.spawn("claim", claim, public=False)
    until(simulation, lambda: stale)
    for name in ("b", "a"):
        b.spawn("pin", lambda name=name: job.register_lock(str(token), name), public=False)  # type: ignore[misc]
        until(
            simulation,
            lambda name=name: simulation.server.tables.committed.token[token].node == name,
        )  # type: ignore[misc]
    a.spawn("stale", lambda: simulation.users[a].stale(stale[0]), public=False)
    simulation.go(3)


def set_back(simulation: Simulation) -> None:
    """The server's storage goes back to before a token went from `a` to `b`. Then `a` forgets
    everything, and reads it anew."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    assert a.worker is not None and b.job is not None
    worker, job = a.worker, b.job
    token = min(worker.ownership.owned)
    b.spawn("pin", lambda: job.register_lock(str(token), "b"), public=False)
    until(simulation, lambda: b.worker is not None and token in b.worker.ownership.owned)
    before = next(
        state for state in reversed(simulation.states) if state[0].token[token].node == "a"
    )
    simulation.go(1)
    simulation.faults.fail_over(before, 0.01, sibling=True)
    simulation.network.cut(a, outwards=True, inwards=True)
    until(simulation, lambda: not worker.ownership.known)
    simulation.network.heal(a)
    simulation.go(2)


def set_back_before_the_leader_reads(simulation: Simulation) -> None:
    """The leader gives a token of its own away by its plan, and cannot read what came of it. Then
    the storage goes back to before that, the leader forgets everything, and others change
    something."""
    tables = simulation.server.tables
    leader = by_name(simulation, str(tables.committed.cluster.leader))
    other = next(process for process in simulation.processes if process is not leader)
    assert leader.worker is not None and other.job is not None and other.worker is not None
    worker, theirs, job = leader.worker, other.worker, other.job
    ownership = worker.ownership
    token = min(ownership.owned - ownership._in_use(ownership.owned), default=None)
    if token is None:
        return  # a reader has all of them
    leader.frozen = ("listener",)
    other.spawn("pin", lambda: job.register_lock(str(token), other.name), public=False)
    until(simulation, lambda: token in theirs.ownership.owned)
    until(simulation, lambda: token not in worker.ownership.revoking)
    before = next(
        state for state in reversed(simulation.states) if state[0].token[token].node == leader.name
    )
    simulation.network.cut(leader, outwards=True, inwards=True)
    until(simulation, lambda: not worker.ownership.known)
    until(simulation, lambda: theirs.lease.remaining(other.loop.time()) > 2)
    simulation.faults.fail_over(before, 0.01, sibling=True)
    simulation.network.cut(other, outwards=True, inwards=True)
    leader.frozen = ()
    simulation.network.heal(leader)
    until(
        simulation,
        lambda: (
            worker.lease.valid(leader.loop.time())
            or tables.committed.cluster.server_identity is None
        ),
    )
    simulation.start("c")
    simulation.go(2)


def begun_twice(simulation: Simulation) -> None:
    """Two standbys were promoted from one state, one after the other. `b` knows what was begun on
    the first; `c`, who has not heard of it, begins on the second, and as the case may be a
    generation that comes before."""
    a, b = by_name(simulation, "a"), by_name(simulation, "b")
    state = simulation.states[-1]
    simulation.faults.fail_over(state, 0.1)
    simulation.go(6)
    b.loop.stop_for(6)
    simulation.kill(a)
    simulation.faults.fail_over(state, 0.1, sibling=True)
    simulation.go(0.2)
    simulation.start("c")
    simulation.go(11)
