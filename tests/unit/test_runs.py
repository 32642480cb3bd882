"""Which run of a batch it is: keys, dates, and who works elsewhere."""

from __future__ import annotations

import datetime as dt
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_async import ConfigError
from jobsync_async.core.hashing import key_range, name_key, task_key
from jobsync_async.core.rows import TaskProgress
from jobsync_async.core.runs import (
    Elsewhere,
    Run,
    batch_key,
    date_of,
    elsewhere,
    given_up_before,
    is_done,
    lost_limit,
)

MONDAY, TUESDAY = dt.date(2026, 11, 23), dt.date(2026, 11, 24)
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def test_without_a_name_a_task_keeps_the_key_that_0_1_0_gave_it():
    assert Run(MONDAY).key("x") == task_key("x")
    assert (
        task_key("abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_two_tasks_of_any_batches_share_a_key(name, text, other_name, other_text):
    assert task_key(text, name) != task_key(other_text)
    assert (task_key(text, name) == task_key(other_text, other_name)) == (
        (name, text) == (other_name, other_text)
    )
    assert (
        task_key(name + text[1:], text[:1]) != task_key(text[1:], name + text[:1])
        or text[:1] == name + text[:1]
    )


@given(TEXTS, TEXTS, TEXTS)
def test_the_tasks_of_a_named_batch_lie_together_and_apart_from_those_of_others(name, text, other):
    low, high = key_range(name)
    assert low < task_key(text, name) < high
    assert low < name_key(name) < high
    assert other == name or not low < task_key(text, other) < high
    assert not low < task_key(text) < high or name == text
    every, last = key_range(None)
    assert every < task_key(text) < last


def test_a_batch_without_a_name_is_its_set_of_ids_in_any_order():
    keys = {batch_key(None, order) for order in permutations(["a", "b", "c"])}
    assert len(keys) == 1
    others = {batch_key(None, ids) for ids in ([], ["a"], ["a", "b"], ["a", "b", "d"], ["ab", "c"])}
    assert len(keys | others) == 6


def test_a_batch_that_has_a_name_is_its_name_whatever_its_ids():
    assert (
        batch_key("nightly", ["a"]) == batch_key("nightly", ["b", "c"]) != batch_key("daily", ["a"])
    )
    assert batch_key("a", []) != batch_key(None, ["a"])


@pytest.mark.parametrize(
    ("given", "date"),
    [
        (None, None),
        (MONDAY, MONDAY),
        (dt.datetime(2026, 11, 23, 23, 59, tzinfo=dt.timezone.utc), MONDAY),
    ],
)
def test_a_date_is_a_date_and_a_datetime_counts_by_its_date(given, date):
    assert date_of(given) == date
    assert type(date_of(given)) in (dt.date, type(None))


@pytest.mark.parametrize("given", ["2026-11-23", 20261123, True, ()])
def test_what_is_no_date_is_refused(given):
    with pytest.raises(ConfigError, match="date must be"):
        date_of(given)


def test_who_works_under_another_date_and_not_under_this_one_works_elsewhere():
    seen = {("a", MONDAY), ("b", TUESDAY), ("c", MONDAY), ("c", TUESDAY)}
    assert elsewhere(seen, MONDAY) == [Elsewhere("b", TUESDAY)]
    assert elsewhere(seen, TUESDAY) == [Elsewhere("a", MONDAY)]
    assert elsewhere([], MONDAY) == []


def test_a_run_is_done_when_each_id_is_complete_or_given_up():
    progress = {"a": TaskProgress("anna", None), "b": TaskProgress("anna", "wrong")}
    assert is_done([], {})
    assert is_done(["a", "b"], progress)
    assert not is_done(["a", "c"], progress)


def test_what_was_given_up_since_a_call_is_not_of_an_earlier_run():
    noon = dt.datetime(2026, 11, 23, 12, tzinfo=dt.timezone.utc)
    later = noon + dt.timedelta(seconds=1)
    progress = {
        "complete": TaskProgress("anna", None),
        "before": TaskProgress("anna", "wrong", noon),
        "since": TaskProgress("anna", "wrong", later),
    }
    assert given_up_before(progress, later) == {"before": progress["before"]}


@pytest.mark.parametrize(("attempts", "lost"), [(1, 2), (2, 2), (3, 3), (100, 100)])
def test_no_id_is_set_aside_at_its_first_loss(attempts, lost):
    assert lost_limit(attempts) == lost
