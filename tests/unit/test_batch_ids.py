"""The ids of a batch: each is taken once, and closed once, whatever comes in between."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from jobsync_async import ConfigError
from jobsync_async.core.batch_ids import ELSEWHERE, FAILED, HERE, OPEN, BatchIds
from jobsync_async.core.runs import batch_key

TOKENS = 10


def token_of(task_id) -> int:
    return int(str(task_id).rpartition("-")[2]) % TOKENS


def taken_in(ids, at_a_time: int = 7, token_of=token_of) -> BatchIds:
    batch, given = BatchIds(), list(ids)
    for start in range(0, len(given), at_a_time):
        batch.add(given[start : start + at_a_time], "utf-8")
    batch.complete()
    while batch.hash_tokens(at_a_time, token_of):
        pass
    return batch


def everybody(token: int) -> bool:
    return True


def test_ids_with_one_text_are_one_and_named_by_the_first():
    batch = taken_in([1, "1", 2, 1, "2"])
    assert (batch.ids, batch.texts) == ((1, 2), ("1", "2"))


@pytest.mark.parametrize("ids", [(1, 1.0), (True, 1), (1, True)])
def test_ids_that_are_equal_and_have_different_texts_are_refused(ids):
    with pytest.raises(ConfigError, match="equal and have different texts"):
        taken_in(ids)


class Named(str):
    """Equal to its value, and shown as something else."""

    __slots__ = ()

    def __str__(self) -> str:
        return f"Named.{super().__str__()}"


@pytest.mark.parametrize("ids", [(Named("red"), "red"), ("red", Named("red"))])
def test_what_is_equal_to_a_string_and_has_another_text_is_refused_in_any_order(ids):
    with pytest.raises(ConfigError, match="equal and have different texts"):
        taken_in(ids)


def test_it_makes_no_difference_in_what_portions_ids_are_taken_in():
    kinds = (str, int, Named, float, lambda number: f"é-{number}")
    random = Random(7)
    refused = 0
    for _ in range(2_000):
        some = random.choices(kinds, k=2)
        ids = [random.choice(some)(random.randrange(6)) for _ in range(random.randrange(9))]
        seen = set()
        for at_a_time in (1, 2, 3, 9):
            try:
                batch = taken_in(ids, at_a_time, lambda task_id: 0)
                seen.add((tuple(map(id, batch.ids)), tuple(batch.texts), batch.key))
            except ConfigError as error:
                seen.add("equal and have different texts" in str(error))
        assert len(seen) == 1, ids
        refused += seen == {True}
    assert 50 < refused < 1_000, "both were tried"


@pytest.mark.parametrize("text", ["a\0b", "half \ud800", "x" * 1_000_001])
def test_what_cannot_be_stored_is_refused_among_strings(text):
    with pytest.raises(ConfigError, match="a task id"):
        taken_in(["a", text, "b"])


def test_the_key_is_that_of_the_set_however_it_comes():
    keys = {
        taken_in(order, at_a_time).key
        for order in permutations(["a-1", "a-2", "a-3"])
        for at_a_time in (1, 2, 3)
    }
    assert keys == {batch_key(None, ["a-1", "a-2", "a-3"])}
    assert taken_in(["a-1", "a-2"]).key not in keys


def test_nothing_is_taken_that_is_not_offered_or_may_not_be_begun():
    batch = taken_in(range(30))
    assert batch.take(100, everybody) == []
    batch.offer([3, 4])
    assert batch.take(100, lambda token: token == 4) == [24, 14, 4]
    assert batch.take(100, everybody) == [], "what was refused has to be offered again"
    assert not batch.to_begin()
    batch.offer([3])
    assert batch.take(2, everybody) == [23, 13]


@pytest.mark.parametrize("seed", range(50))
def test_in_any_order_of_events_each_id_is_with_one_and_is_closed_once(seed):
    random = Random(seed)
    batch = taken_in(range(60))
    taken: set[int] = set()
    owned = set(range(TOKENS))
    while batch.count(OPEN):
        happens = random.random()
        if happens < 0.4:
            batch.offer(owned)
            new = batch.take(random.randrange(1, 9), owned.__contains__)
            assert not taken & set(new)
            assert all(batch.is_open(number) and batch.tokens[number] in owned for number in new)
            taken |= set(new)
        elif happens < 0.6 and taken:
            number = random.choice(sorted(taken))
            taken.remove(number)
            batch.give_back(number)
        elif happens < 0.8:
            number = random.randrange(60)
            was_open = batch.is_open(number)
            assert batch.close(number, random.choice((HERE, ELSEWHERE, FAILED)), "why") == was_open
            taken.discard(number)
        else:
            owned = {token for token in range(TOKENS) if random.random() < 0.7}
        waiting = [number for some in batch.waiting(5, everybody) for number in some]
        assert len(waiting) == len(set(waiting))
        assert not set(waiting) & taken
        assert set(waiting) | taken == {number for number in range(60) if batch.is_open(number)}
    assert sum(batch.count(state) for state in (HERE, ELSEWHERE, FAILED)) == 60
    every = [task for state in (HERE, ELSEWHERE, FAILED) for task in batch.in_state(state)]
    assert sorted(every) == list(range(60))


def test_what_is_left_can_be_closed_at_once():
    batch = taken_in(range(10))
    batch.close(3, HERE)
    batch.close(4, FAILED, "why")
    batch.close_rest()
    assert [batch.count(state) for state in (OPEN, HERE, ELSEWHERE, FAILED)] == [0, 1, 8, 1]
    assert batch.errors == {4: "why"}
    assert set(batch.in_state(ELSEWHERE)) == set(range(10)) - {3, 4}
