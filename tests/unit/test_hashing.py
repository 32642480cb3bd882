"""Ids to tokens, as jobsync does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobsync_async import ConfigError, Task, task_to_token
from jobsync_async.core.hashing import task_key, task_text, token_hasher

VECTORS = json.loads(
    (Path(__file__).parents[1] / "vectors" / "task_to_token.json").read_text("utf-8")
)["vectors"]


def test_every_token_is_jobsyncs():
    assert len(VECTORS) > 100
    for vector in VECTORS:
        found = task_to_token(vector["str"], vector["total_tokens"], vector["hash_function"])
        assert found == vector["token_id"], vector


def test_the_default_is_jobsyncs_default():
    known = next(
        v for v in VECTORS if v["total_tokens"] == 10_000 and v["hash_function"] == "double_sha256"
    )
    assert task_to_token(known["str"]) == known["token_id"]


@pytest.mark.parametrize("task_id", [7, "7", Task(7), Task("7", "a name")])
def test_an_id_is_its_text(task_id):
    assert task_to_token(task_id) == task_to_token("7")


def test_any_object_with_a_text_is_an_id():
    assert task_to_token(("a", 1)) == task_to_token("('a', 1)")
    assert task_to_token(None) == task_to_token("None")


@pytest.mark.parametrize(
    ("task_id", "token"), [(0, 0), (12, 2), ("13", 3), (" 14 ", 4), (-1, 9), (Task(25), 5)]
)
def test_modulo_spreads_numbers_evenly(task_id, token):
    assert task_to_token(task_id, 10, "modulo") == token


@pytest.mark.parametrize("task_id", ["x", "", "1.0", None])
def test_modulo_refuses_what_is_no_number(task_id):
    with pytest.raises(ConfigError, match="modulo"):
        task_to_token(task_id, 10, "modulo")


@pytest.mark.parametrize("total", [0, -1, 1_000_001, 1.5, True, "10"])
def test_a_number_of_tokens_out_of_range_is_refused(total):
    with pytest.raises(ConfigError, match="total_tokens"):
        task_to_token("x", total)


def test_an_unknown_hash_function_is_refused():
    with pytest.raises(ConfigError, match="hash_function"):
        task_to_token("x", 10, "crc32")


@pytest.mark.parametrize("function", ["double_sha256", "sha256", "md5"])
def test_half_a_surrogate_pair_is_no_text(function):
    with pytest.raises(ConfigError, match="UTF-8"):
        token_hasher(10, function)("\ud800")
    with pytest.raises(ConfigError, match="UTF-8"):
        task_text("\ud800")


def test_what_postgresql_cannot_store_is_refused():
    with pytest.raises(ConfigError, match="NUL"):
        task_text("a\0b")


def test_texts_of_any_length_have_a_key():
    assert len(task_key("x" * 100_000)) == len(task_key("")) == 32
