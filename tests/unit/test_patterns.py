"""LIKE patterns; against PostgreSQL itself they are compared in the integration tests."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobsync_async import ConfigError
from jobsync_async.core.patterns import eligible, matches, validate_patterns


def like(pattern: str, name: str) -> bool:
    """The same by the definition, without a thought for speed."""

    @cache
    def rest(p: int, n: int) -> bool:
        if p == len(pattern):
            return n == len(name)
        if pattern[p] == "%":
            return any(rest(p + 1, m) for m in range(n, len(name) + 1))
        literal = pattern[p] == "\\" and p + 1 < len(pattern)
        p += literal
        fits = n < len(name) and ((pattern[p] == "_" and not literal) or pattern[p] == name[n])
        return fits and rest(p + 1, n + 1)

    return rest(0, 0)


@settings(max_examples=500)
@given(st.text("ab%_\\.*[\n", max_size=8), st.text("ab%_\\.*[\n", max_size=8))
def test_matching_is_what_the_definition_says(pattern, name):
    assert matches(pattern, name) == like(pattern, name)


@pytest.mark.parametrize("name", ["a.b", "a*b", "A", "é", "a\nb", "(", "$", "50\\"])
def test_every_other_character_is_itself(name):
    assert matches(name.replace("\\", "\\\\"), name)
    assert not matches(name.replace("\\", "\\\\"), name + "x")


def test_no_pattern_takes_long():
    started = time.perf_counter()
    assert not matches("%a" * 400 + "b", "a" * 1000)
    assert time.perf_counter() - started < 1


def test_the_first_pattern_that_anybody_matches_decides():
    names = ["gpu-1", "gpu-2", "big-1", "small"]
    assert eligible(["tpu-%", "gpu-_", "%"], names) == ["gpu-1", "gpu-2"]
    assert eligible(["%"], names) == names
    assert eligible(["x"], names) == []
    assert eligible([], names) == []


@pytest.mark.parametrize(
    "bad", [[], "", [""], [1], None, 7, "x\\", "x\\\\\\", ["x"] * 101, "x" * 1001, {"x"}, "a\0"]
)
def test_what_is_no_pattern_is_refused(bad):
    with pytest.raises(ConfigError):
        validate_patterns(bad)


def test_one_pattern_or_a_list():
    assert validate_patterns("a%") == ("a%",)
    assert validate_patterns(["a", "b\\\\"]) == ("a", "b\\\\")
