"""How many ids of a run are done with, by what is counted: never taken for more than there are."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import pytest

from jobsync_async.core.batch_ids import HERE, BatchIds
from jobsync_async.core.runs import Before, Parts, Tally
from jobsync_async.work.others import Others


def parts(completed: int, otherwise: int = 0) -> Parts:
    return Parts(completed, otherwise, finished=False)


def test_what_was_completed_while_somebody_looked_is_not_counted_twice():
    tally = Tally(10)
    tally.looked(parts(2), parts(5), 4)  # up to three of the four may be counted in the five, too
    assert tally.counted(parts(5)) == 4
    assert tally.counted(parts(9)) == 8
    assert not tally.all_done(parts(9))
    assert tally.may_be_done(parts(9)), "those three may be others than the four"


def test_what_is_done_with_in_another_way_is_worth_a_look_and_no_more():
    tally = Tally(10)
    assert not tally.may_be_done(parts(8, 1))
    assert tally.may_be_done(parts(8, 2))
    assert not tally.all_done(parts(8, 2))
    assert tally.all_done(parts(10))


async def test_what_is_completed_here_while_it_is_asked_how_far_the_run_is_counts_once():
    others = Others.__new__(Others)
    others._ids, others._tally = BatchIds(), Tally(3)
    others._ids.add(["a", "b", "c"], "utf-8")
    others._ids.complete()

    async def read_parts() -> Parts:
        others._ids.close(0, HERE)  # it was committed after what this saw
        return parts(0)

    others._run = SimpleNamespace(read_parts=read_parts)
    await others._looked(parts(0))
    assert others._tally.counted(parts(1)) == 1


@pytest.mark.parametrize("seed", range(200))
def test_all_is_never_taken_for_done_while_an_id_is_open(seed):
    """Ids are completed, each counted as it is; somebody looks at them, some at a time."""
    random, total = Random(seed), 12
    tally, open_ids = Tally(total), set(range(total))

    def something_happens() -> None:
        if open_ids and random.random() < 0.5:
            open_ids.remove(random.choice(sorted(open_ids)))

    def now() -> Parts:
        return parts(total - len(open_ids))

    while open_ids:
        something_happens()
        assert tally.all_done(now()) <= (not open_ids)
        if random.random() < 0.3:
            asked, seen = now(), 0
            for number in range(total):
                something_happens()
                seen += number not in open_ids
            done = seen
            something_happens()
            tally.looked(asked, now(), done)
    assert tally.may_be_done(now())


@pytest.mark.parametrize("seed", range(200))
def test_what_was_given_up_may_be_completed_yet_before_and_among_these_ids(seed):
    """A portion of a stream, and some of what came before. An id may come twice: who begins it
    again finds it complete, and counts that in another way."""
    random, size = Random(seed), 8
    earlier = [random.randrange(30) for _ in range(random.randrange(12))]
    here = random.sample(range(30), size)
    complete: set[int] = set()
    failed: set[int] = set()
    otherwise = 0

    def end(number: int) -> None:
        nonlocal otherwise
        if number in complete:
            otherwise += 1
            return
        failed.discard(number)
        if random.random() < 0.2:
            otherwise += 1
            failed.add(number)
        else:
            complete.add(number)

    def something_happens() -> None:
        if random.random() < 0.6:
            end(random.choice([*here, *failed]))

    def look() -> None:
        asked, seen = now(), 0
        for number in here:
            something_happens()
            seen += number in complete
        tally.looked(asked, now(), seen)

    def now() -> Parts:
        return parts(len(complete), otherwise)

    for number in earlier:  # all of it is done with
        end(number)
    tally = Tally(size, Before(len(earlier), sum(number in failed for number in earlier)))
    if otherwise:
        look()
    for _ in range(60):
        something_happens()
        assert tally.all_done(now()) <= (set(here) <= complete)
        if random.random() < 0.2:
            look()
    assert tally.may_be_done(now()) or not set(here) <= complete | failed


def test_who_has_moved_on_counts_other_ids_too():
    tally = Tally(10)
    assert tally.all_done(parts(10))
    assert not tally.all_done(parts(10)._replace(moved_on=True))
