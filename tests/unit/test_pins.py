"""Which pins are taken."""

from __future__ import annotations

from jobsync_async.core.pins import Pin, admit

A, B = ("a",), ("b",)


def test_the_first_pin_of_a_token_stays():
    first, second = Pin("x", 1, A), Pin("y", 1, B)
    assert admit([second], [first]) == ([], [(second, first)])
    assert admit([first, second], []) == ([first], [(second, first)])


def test_the_same_wish_is_no_conflict():
    assert admit([Pin("y", 1, A)], [Pin("x", 1, A)]) == ([Pin("y", 1, A)], [])


def test_a_task_replaces_its_own_pin():
    assert admit([Pin("x", 1, B)], [Pin("x", 1, A)]) == ([Pin("x", 1, B)], [])


def test_but_not_against_another_task_on_its_token():
    held = Pin("y", 1, A)
    assert admit([Pin("x", 1, B)], [Pin("x", 1, A), held]) == ([], [(Pin("x", 1, B), held)])


def test_of_two_for_one_task_the_last_one_counts():
    assert admit([Pin("x", 1, A), Pin("x", 1, B)], []) == ([Pin("x", 1, B)], [])


def test_other_tokens_do_not_matter():
    assert admit([Pin("x", 1, A)], [Pin("y", 2, B)]) == ([Pin("x", 1, A)], [])
