"""Which values can be ids, and what is stored of texts that people read."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobsync_async import ConfigError, Task
from jobsync_async.core.ids import id_text, items_of
from jobsync_async.core.texts import error_text, storable
from jobsync_async.core.turns import Turns
from jobsync_async.postgres.encoding import codec_of


@pytest.mark.parametrize(
    "good", ["", "ü", 0, -1, 1.5, True, None, ("a", 1), b"x", dt.date(2026, 1, 1), uuid.UUID(int=7)]
)
def test_what_is_hashable_and_has_a_text_can_be_an_id(good):
    assert id_text(good) == str(good)


def test_ids_with_one_text_are_one_task_named_by_the_first():
    items = items_of(
        [Task("a", "label"), "a", 1, "1", 1], lambda task_id: len(str(task_id)), "utf-8"
    )
    assert {text: (item.task_id, item.token) for text, item in items.items()} == {
        "a": ("a", 1),
        "1": (1, 1),
    }


def test_a_text_that_the_databases_encoding_lacks_is_no_id():
    assert id_text("naïve", "iso8859-1") == "naïve"
    with pytest.raises(ConfigError, match="its encoding \\(iso8859-1\\) lacks"):
        id_text("5 €", "iso8859-1")


@given(st.text(), st.sampled_from(["utf-8", "iso8859-1", "ascii", "cp1252", "euc_jp"]))
def test_whatever_is_written_can_be_stored(text, codec):
    stored = storable(text, codec)
    assert "\0" not in stored
    stored.encode(codec)
    if "\0" not in text and text.isascii():
        assert stored == text


class Strange(str):
    """A text that is no text."""

    def __format__(self, spec: str) -> str:
        raise KeyError("strange")


class Says(Exception):
    def __init__(self, what: object) -> None:
        self.what = what

    def __str__(self) -> str:
        if isinstance(self.what, BaseException):
            raise self.what
        return self.what  # type: ignore[return-value]


@pytest.mark.parametrize(
    "what",
    [
        "",
        "a\0b\ud800",
        "x" * 10_000_000,
        Strange("x"),
        None,
        7,
        ValueError(),
        RecursionError(),
        MemoryError(),
    ],
)
def test_every_error_has_a_text_that_can_be_stored(what):
    text = error_text(Says(what))
    assert type(text) is str
    assert text.startswith("Says")
    assert len(text) < 5_000
    assert storable(text) == text


def test_every_encoding_of_a_server_has_a_codec():
    assert codec_of("UTF8") == "utf-8"
    assert codec_of("WIN1252") == "cp1252"
    assert codec_of("KOI8R") == "koi8-r"
    assert codec_of("MULE_INTERNAL") == "ascii"


def test_turns_are_taken_in_the_order_of_coming():
    turns: Turns[str] = Turns()
    assert turns.first("x") is None
    for who in ("one", "two", "three"):
        turns.join("x", who)
    assert turns.first("x") == "one"
    assert turns.leave("x", "two"), "who waits may go"
    assert turns.leave("x", "one")
    assert turns.first("x") == "three"
    assert not turns.leave("x", "three")
    assert turns.first("x") is None
