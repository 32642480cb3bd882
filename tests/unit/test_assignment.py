"""The plan: what it guarantees, and brute force over small cases."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_async.core.assignment import PlanNode, plan
from jobsync_async.core.patterns import eligible

NAMES = ["a", "b", "c", "d"]


def after(current, result) -> list[str | None]:
    planned = list(current)
    for name, tokens in result.gains:
        for token in tokens:
            assert planned[token] == current[token] != name, (
                "a token changes once, and only to another worker"
            )
            planned[token] = name
    return planned


def moved(result) -> int:
    return sum(len(tokens) for _, tokens in result.gains)


def nodes_of(*names: str) -> list[PlanNode]:
    return [PlanNode(name, 1.0) for name in names]


@st.composite
def cases(draw, most_tokens=40):
    weights = draw(
        st.lists(st.sampled_from([1.0, 1.0, 0.5, 2.0, 3.0, 0.0]), min_size=1, max_size=4)
    )
    nodes = [PlanNode(name, weight) for name, weight in zip(NAMES, weights, strict=False)]
    tokens = draw(st.integers(1, most_tokens))
    current = draw(
        st.lists(st.sampled_from([*NAMES, "gone", None]), min_size=tokens, max_size=tokens)
    )
    return nodes, current


@settings(max_examples=300)
@given(cases())
def test_shares_are_by_weight_to_within_one_token_and_all_is_planned(case):
    nodes, current = case
    result = plan(nodes, current, {})
    final = Counter(after(current, result))
    assert set(final) <= {node.name for node in nodes}
    total = sum(Fraction(node.weight) for node in nodes)
    for node in nodes:
        share = Fraction(len(current)) * (
            Fraction(node.weight) / total if total else Fraction(1, len(nodes))
        )
        assert abs(final[node.name] - share) < 1
        assert result.loads[node.name] == final[node.name]


@settings(max_examples=200)
@given(cases())
def test_planning_again_changes_nothing(case):
    nodes, current = case
    planned = after(current, plan(nodes, current, {}))
    assert plan(nodes, planned, {}).gains == []


@settings(max_examples=150)
@given(cases(most_tokens=6))
def test_no_balanced_assignment_moves_fewer_tokens(case):
    nodes, current = case
    names = [node.name for node in nodes]
    total = sum(Fraction(node.weight) for node in nodes)
    share = {
        n.name: len(current) * (Fraction(n.weight) / total if total else Fraction(1, len(names)))
        for n in nodes
    }
    fewest = min(
        sum(new != old for new, old in zip(tried, current, strict=True))
        for tried in product(names, repeat=len(current))
        if all(abs(tried.count(name) - share[name]) < 1 for name in names)
    )
    assert moved(plan(nodes, current, {})) == fewest


PATTERNS = st.sampled_from([("a",), ("b",), ("z", "b"), ("%",), ("z",), ("_",), ("c", "%")])


@settings(max_examples=300)
@given(cases(), st.dictionaries(st.integers(0, 39), PATTERNS, max_size=40))
def test_pins_are_kept_and_what_nobody_matches_is_nobodys(case, pins):
    nodes, current = case
    pins = {token: patterns for token, patterns in pins.items() if token < len(current)}
    names = [node.name for node in nodes]
    result = plan(nodes, current, pins)
    final = after(current, result)
    for token, name in enumerate(final):
        allowed = eligible(pins[token], names) if token in pins else names
        if allowed:
            assert name in allowed
        else:
            assert name not in names
            assert result.unmatched[token] == pins[token]
    assert plan(nodes, final, pins).gains == []


def test_pinned_tokens_count_in_the_balance():
    pins = dict.fromkeys(range(2000), ("a",))
    result = plan(nodes_of("a", "b", "c", "d"), [None] * 10_000, pins)
    assert result.loads == {"a": 2_500, "b": 2_500, "c": 2_500, "d": 2_500}


def test_weight_zero_gets_pinned_tokens_only():
    nodes = [PlanNode("a", 1.0), PlanNode("b", 0.0)]
    assert plan(nodes, [None] * 10, {3: ("b",)}).loads == {"a": 9, "b": 1}


def test_where_all_weights_are_zero_all_are_equal():
    assert plan([PlanNode("a", 0.0), PlanNode("b", 0.0)], [None] * 10, {}).loads == {"a": 5, "b": 5}


def test_without_workers_nothing_is_planned():
    assert plan([], ["gone", None], {0: ("a",)}).gains == []


@pytest.mark.parametrize(("before", "now", "moves"), [(7, 6, 1429), (3, 4, 2500), (6, 7, 1428)])
def test_moves_are_as_few_as_can_be(before, now, moves):
    old = nodes_of(*(f"w{n}" for n in range(before)))
    current = after([None] * 10_000, plan(old, [None] * 10_000, {}))
    result = plan(nodes_of(*(f"w{n}" for n in range(now))), current, {})
    assert abs(moved(result) - moves) <= 1
    assert max(result.loads.values()) - min(result.loads.values()) <= 1
