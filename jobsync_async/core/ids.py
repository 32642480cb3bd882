"""Which values can be ids of tasks. Pure.

* A value that cannot be an id is refused by name, before anything is done with it.
* Ids with one text are one task.
* Ids of one call that are equal have one text, or the call is refused.
* Every text that is let through can be stored by the database.

An id is known by its text, which is hashed and stored. In results and sets of the user's it is
known by being equal to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

from jobsync_async.core.hashing import task_text
from jobsync_async.core.texts import can_store
from jobsync_async.errors import ConfigError
from jobsync_async.types import TaskOrId, task_id_of

MOST_CHARACTERS = 1_000_000
"""The longest text that an id may have."""


class Item(NamedTuple):
    """An id, its text, and the token that it hashes to."""

    task_id: Hashable
    text: str
    token: int


def id_text(task_id: Any, codec: str = "utf-8") -> str:
    """The text of an id. Raises ConfigError for a value that cannot be one, or that the database's
    encoding cannot hold."""
    if type(task_id) is not str:
        _check_value(task_id)
    text = task_text(task_id)
    if len(text) > MOST_CHARACTERS:
        raise ConfigError(
            f"a task id may have {MOST_CHARACTERS:,} characters at most; this one has "
            f"{len(text):,}: {text[:60]!r}…; use a shorter one, such as a hash of it"
        )
    require_storable("a task id", text, codec)
    return text


def id_texts(ids: Sequence[Any], codec: str) -> Sequence[str]:
    """The texts of ids, as `id_text` has each: the very list that was given, where all of them are
    plain strings."""
    if set(map(type, ids)) <= {str}:
        every = "".join(ids)
        if every.isascii() and "\0" not in every and len(every) <= MOST_CHARACTERS:
            return ids
    return [id_text(task_id, codec) for task_id in ids]


def require_storable(what: str, text: str, codec: str) -> None:
    """Raise ConfigError for a name of something that the database's encoding cannot hold."""
    if not can_store(text, codec):
        raise ConfigError(
            f"{what} must be text that the database can hold, and its encoding ({codec}) lacks a "
            f"character of {text!r:.100}; use another one, or a database with ENCODING 'UTF8'"
        )


def _check_value(task_id: Any) -> None:
    try:
        hash(task_id)
        # what is not equal to itself is found in no set
        same = bool(task_id == task_id)  # noqa: PLR0124
        text, again = str(task_id), str(task_id)
    # `__hash__`, `__eq__` and `__str__` are the user's: whatever they raise, this is no id
    except Exception as error:
        raise ConfigError(
            f"a task id must be hashable and have a text; a {type(task_id).__name__} has not: its "
            f"hash(), == or str() raised {type(error).__name__}"
        ) from error
    if not same:
        raise ConfigError(
            f"a task id must be equal to itself, or no result can name it; got {text:.100}"
        )
    if text != again:
        raise ConfigError(
            f"a task id must have one str(), and a {type(task_id).__name__} gave two: "
            f"{text!r:.100} and {again!r:.100}"
        )
    if f"0x{id(task_id):x}" in text:
        raise ConfigError(
            "a task id's str() must be the same in every process, and this one is an address in "
            f"memory: {text!r:.100}; give the class a __str__, or use a text as the id"
        )


def items_of(
    ids: Iterable[TaskOrId], token_of: Callable[[Any], int], codec: str
) -> dict[str, Item]:
    """The different ids, by their text. Those with one text are one task, named by the first of
    them.

    Raises ConfigError for one that cannot be an id, or for two that are equal and have different
    texts: no result could tell them apart.
    """
    items: dict[str, Item] = {}
    texts: dict[Hashable, str] = {}
    for each in ids:
        task_id = task_id_of(each)
        text = id_text(task_id, codec)
        if text in items:
            continue
        other = texts.setdefault(task_id, text)
        if other != text:
            raise unequal_texts(other, text)
        items[text] = Item(task_id, text, token_of(task_id))
    return items


def unequal_texts(one: str, other: str) -> ConfigError:
    """The error for two ids that are equal and have different texts."""
    return ConfigError(
        f"two of the ids are equal and have different texts, {one!r:.100} and {other!r:.100}: they "
        "are two tasks, and no result could tell them apart; use ids of one type"
    )
