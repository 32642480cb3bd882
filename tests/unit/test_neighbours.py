"""Whom a worker watches: every death is found, by few, however many die at once."""

from __future__ import annotations

from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from jobsync_async.core.neighbours import MOST_WATCHED, dead_workers, next_in_ring, visible
from jobsync_async.core.rows import Announcement, Neighbour, Process

HERE = Announcement(
    host="h", boot_id="boot", pid_namespace="pid:[1] time:[1]", pid=1, process_started=1
)


def worker(number: int, process: int, **where: str) -> Neighbour:
    place = {"boot_id": "boot", "namespace": "pid:[1] time:[1]", "host": "h", **where}
    return Neighbour(
        f"w{number}", UUID(int=number), process=Process(100 + process, 7), session_tag=None, **place
    )


def found_by(
    ring: list[Neighbour], me: Neighbour, really_dead: set[Process]
) -> tuple[set[Process], list[Neighbour]]:
    """What one worker comes to know, looking again after each death that it finds, and whom it
    watches in the end."""
    dead: set[Process] = set()
    while True:
        watched = next_in_ring(ring, me.incarnation, dead)
        news = {w.process for w in watched if w.process in really_dead} - dead
        if not news:
            return dead, watched
        dead |= news


# Workers in order of age, each with the number of its process; and which processes die.
rings = st.lists(st.integers(0, 7), min_size=1, max_size=14).map(
    lambda ps: [worker(n, p) for n, p in enumerate(ps)]
)
deaths = st.sets(st.integers(0, 7)).map(
    lambda numbers: {Process(100 + number, 7) for number in numbers}
)


@given(rings, deaths)
def test_every_death_is_found_by_somebody_who_lives_and_by_no_more_than_watch_it(ring, dead):
    living = [w for w in ring if w.process not in dead]
    finders = {w.process: 0 for w in ring if w.process in dead}
    for me in living:
        known, watched = found_by(ring, me, dead)
        assert known <= dead
        assert len(watched) <= MOST_WATCHED
        assert all(w.process not in dead and w is not me for w in watched)
        for process in known:
            finders[process] += 1
    if living:
        assert all(finders.values()), f"not found: {finders}"
    in_process = {process: sum(w.process == process for w in ring) for process in finders}
    for process, count in finders.items():
        assert count <= MOST_WATCHED * in_process[process], (
            "each of its workers is watched by as many as look at that place"
        )


@given(rings, deaths)
def test_every_death_is_found_even_if_any_one_of_the_living_looks_at_nothing(ring, dead):
    found = {me.name: found_by(ring, me, dead)[0] for me in ring if me.process not in dead}
    for blocked in found if len(found) > 1 else ():
        assert (
            set().union(*(known for name, known in found.items() if name != blocked))
            == {w.process for w in ring} & dead
        )


def test_all_workers_of_a_dead_process_are_dead():
    ring = [worker(0, 0), worker(1, 1), worker(2, 0)]
    assert dead_workers(ring, {Process(100, 7)}) == [ring[0], ring[2]]


def test_who_is_not_in_the_ring_watches_nobody():
    assert next_in_ring([worker(0, 0)], UUID(int=9), set()) == []


def test_processes_are_visible_on_the_same_boot_in_the_same_namespaces_under_the_same_host_name():
    assert visible(HERE, worker(1, 1))
    assert not visible(HERE, worker(1, 1, boot_id="another"))
    assert not visible(HERE, worker(1, 1, namespace="pid:[1] time:[2]"))
    assert not visible(HERE, worker(1, 1, host="another"))
    assert not visible(Announcement(host="h", boot_id="boot"), worker(1, 1))
    assert not visible(
        HERE, Neighbour("w", UUID(int=1), "boot", "pid:[1] time:[1]", "h", None, None)
    )
