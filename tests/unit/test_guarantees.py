"""The pages of guarantees: what users are promised has tests, and each test that is named is there.

`docs/guarantees.md` gives each promise and each fault a number; `docs/guarantees-and-tests.md`
names the tests under the same numbers. `docs/protocol.md` names tests by their functions alone.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
USERS = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
TESTS = (ROOT / "docs" / "guarantees-and-tests.md").read_text("utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text("utf-8")


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table, without headings."""
    lines = [
        line
        for line in page.splitlines()
        if line.startswith("|") and not line.startswith(("| no. |", "| --- |"))
    ]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def numbers(page: str) -> list[str]:
    """The numbers of all rows, in order."""
    return [row[0] for row in rows(page)]


def unpaired(users: str, tests: str) -> set[str]:
    """Numbers that stand on one page alone."""
    return set(numbers(users)) ^ set(numbers(tests))


def named(page: str) -> list[str]:
    """The tests, files and folders that a page names."""
    return re.findall(r"`(tests/[^`]+)`", page)


def missing(reference: str) -> bool:
    """Whether a test, file or folder is not there."""
    path, _, name = reference.partition("::")
    file = ROOT / path
    if not name:
        return not file.exists()
    return name not in functions(file)


def functions(file: Path) -> set[str]:
    """The functions at a file's top level."""
    tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
    return {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def test_every_row_names_a_test():
    assert len(rows(TESTS)) > 20
    for row in rows(TESTS):
        assert len(row) == 3, row
        assert re.findall(r"`(tests/[^`]+)`", row[2]), row


def test_every_test_that_is_named_is_there():
    assert not [reference for reference in named(TESTS) if missing(reference)]


def test_what_is_not_there_is_missed():
    assert missing("tests/unit/test_guarantees.py::test_nothing")
    assert missing("tests/unit/test_nothing.py::test_nothing")
    assert missing("tests/nothing")


def test_each_guarantee_for_users_has_its_row_of_tests_and_the_other_way_round():
    assert not unpaired(USERS, TESTS)
    assert numbers(USERS) == numbers(TESTS), "the two pages list the same rows in different orders"
    assert len(set(numbers(USERS))) == len(numbers(USERS)), "a number stands twice"


def test_a_row_that_stands_on_one_page_alone_is_missed():
    assert unpaired("| X1 | a fault | nothing |", "") == {"X1"}
    assert unpaired("", "| X1 | a fault | `tests` |") == {"X1"}


def test_the_users_page_is_free_of_tests():
    assert all(re.fullmatch(r"[A-Z]\d+", number) for number in numbers(USERS))
    assert not named(USERS)


def test_every_test_that_the_protocol_names_is_there():
    there = {name for file in (ROOT / "tests").rglob("test_*.py") for name in functions(file)}
    tests = set(re.findall(r"`(test_\w+)`", PROTOCOL))
    assert len(tests) > 50
    assert not tests - there
    assert not [reference for reference in named(PROTOCOL) if missing(reference)]
