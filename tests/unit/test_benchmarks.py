"""What the benchmarks make of what they measured."""

from __future__ import annotations

import json
from math import inf

import pytest

from benchmarks.results import Result, save
from benchmarks.watched import doubled, holdings, orphaned


def told(t: float, *come: int, gone: tuple[int, ...] = (), **what: object) -> dict[str, object]:
    return {"t": t, "come": list(come), "gone": list(gone), **what}


def test_a_token_handed_over_late_was_without_an_owner_meanwhile():
    held = holdings([("a", told(1.0, 7, 8)), ("a", told(3.0, gone=(7,))), ("b", told(3.5, 7))])
    assert held == {7: [(1.0, 3.0), (3.5, inf)], 8: [(1.0, inf)]}
    assert list(orphaned(held)) == [(3.0, 3.5)]
    assert list(doubled(held)) == []


def test_a_token_taken_before_it_was_let_go_had_two_owners():
    held = holdings([("b", told(2.0, 7)), ("a", told(1.0, 7)), ("a", told(3.0, gone=(7,)))])
    assert list(doubled(held)) == [(2.0, 3.0)]
    assert list(orphaned(held)) == []


def test_each_of_several_owners_beside_one_that_never_lets_go_is_seen():
    lines = [
        ("a", told(1.0, 7)),
        ("b", told(2.0, 7)),
        ("b", told(3.0, gone=(7,))),
        ("c", told(5.0, 7)),
    ]
    assert list(doubled(holdings(lines))) == [(2.0, 3.0), (5.0, inf)]


def test_who_was_killed_owns_nothing_from_then_on():
    held = holdings([("a", told(1.0, 7)), ("a", {"t": 4.0, "left": True}), ("b", told(19.0, 7))])
    assert list(orphaned(held)) == [(4.0, 19.0)]


@pytest.mark.parametrize(
    ("result", "null", "nulls"),
    [
        (Result("burst", "s", [1.0, inf, inf]), {"ours": "did not come to its end"}, {"ours"}),
        (Result("two", "s", [0.0], theirs=[4.0]), {"ratio": "one side is zero or did not come to "
                                                            "its end"}, {"ratio", "goal"}),
        (Result("join", "s", [0.2], theirs=[4.0]), {}, {"goal"}),
    ],
)  # fmt: skip
def test_what_is_infinite_is_null_in_the_file_which_says_why(tmp_path, result, null, nulls):
    save([result], tmp_path / "cases.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    (case,) = json.loads((tmp_path / "cases.json").read_text(), parse_constant=refuse)
    assert case["null"] == null
    assert nulls <= {key for key, value in case.items() if value is None}


def test_two_equal_sides_are_as_good_as_each_other_also_at_zero():
    assert Result("two owners", "s", [0.0], theirs=[0.0]).ratio == 1.0
