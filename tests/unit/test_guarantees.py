"""The table of guarantees names tests: each of them is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "guarantees.md").read_text("utf-8")


def rows() -> list[list[str]]:
    """The cells of every row of every table, without headings."""
    lines = [line for line in TABLE.splitlines() if line.startswith("|") and not line.startswith(("| fault |", "| --- |"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def missing(reference: str) -> bool:
    """Whether a test, file or folder is not there."""
    path, _, name = reference.partition("::")
    file = ROOT / path
    if not name:
        return not file.exists()
    tree = ast.parse(file.read_text("utf-8")) if file.is_file() else ast.Module([], [])
    return name not in {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


def test_every_row_names_a_test():
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == 4, row
        assert re.findall(r"`(tests/[^`]+)`", row[3]), row


def test_every_test_that_is_named_is_there():
    named = re.findall(r"`(tests/[^`]+)`", TABLE)
    assert not [reference for reference in named if missing(reference)]


def test_what_is_not_there_is_missed():
    assert missing("tests/unit/test_guarantees.py::test_nothing")
    assert missing("tests/unit/test_nothing.py::test_nothing")
    assert missing("tests/nothing")
