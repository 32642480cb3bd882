"""From a task's id to its token, and to the keys under which it is stored.

* An id has one token in a cluster, in ``range(total_tokens)``: at every worker, in every process.
* The tokens of ``double_sha256``, ``sha256`` and ``md5`` are jobsync's, so that both agree on
  owners.
* No two tasks of any batches share a key. A batch without a name has one key for one set of ids,
  in any order.

The id's ``str()`` is hashed. ``double_sha256`` (the default) and ``sha256`` take the first eight
bytes of the digest, as a big-endian number, modulo the number of tokens. ``md5`` takes all sixteen.
``modulo`` takes the id itself as the number: for numbered partitions, spread with perfect evenness.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from struct import Struct
from typing import Any

from jobsync_async.errors import ConfigError
from jobsync_async.types import TaskOrId, task_id_of

HASH_FUNCTIONS = ("double_sha256", "sha256", "md5", "modulo")
MOST_TOKENS = 1_000_000
_TOGETHER = 8  # how many bytes the keys of a named batch's tasks begin alike with


def _function(name: str, *modules: str) -> Callable[..., Any]:
    """A hash function from the first of the modules that this Python has."""
    for module in modules:
        with suppress(ImportError):
            function: Callable[..., Any] = getattr(import_module(module), name)
            return function
    raise AssertionError(f"this Python has no {name}")


# For ids of a few bytes, Python's own functions are faster than the OpenSSL that hashlib has, and
# they cost no memory.
_sha256 = _function("sha256", "_sha2", "_sha256", "hashlib")
_md5 = _function("md5", "_md5", "hashlib")
_last_four: Callable[[bytes], tuple[int]] = Struct(">28xI").unpack
_first_eight: Callable[[bytes], tuple[int]] = Struct(">Q").unpack_from  # a big-endian number


def task_to_token(
    task_id: TaskOrId, total_tokens: int = 10_000, hash_function: str = "double_sha256"
) -> int:
    """The token of a task, in ``range(total_tokens)``. Does no I/O.

    Args:
        task_id: the task or its id; its ``str()`` is hashed.
        total_tokens: 1 to 1,000,000, the cluster's.
        hash_function: ``"double_sha256"``, ``"sha256"``, ``"md5"`` or ``"modulo"``, the cluster's.

    Raises:
        ConfigError: a number or name out of range, or an id that cannot be one.
    """
    if (
        isinstance(total_tokens, bool)
        or not isinstance(total_tokens, int)
        or not 1 <= total_tokens <= MOST_TOKENS
    ):
        raise ConfigError(
            f"total_tokens must be a whole number from 1 to {MOST_TOKENS:,}; got {total_tokens!r}"
        )
    if hash_function not in HASH_FUNCTIONS:
        raise ConfigError(
            f"hash_function must be one of {', '.join(HASH_FUNCTIONS)}; got {hash_function!r}"
        )
    return token_hasher(total_tokens, hash_function)(task_id_of(task_id))


def token_hasher(total_tokens: int, hash_function: str) -> Callable[[Hashable], int]:
    """The function from ids to tokens for one cluster, as fast as Python allows. Its arguments are
    taken to be valid."""
    from_bytes, first_eight, sha256, md5 = int.from_bytes, _first_eight, _sha256, _md5

    def by_double_sha256(task_id: Any) -> int:
        try:
            return (
                first_eight(sha256(sha256(str(task_id).encode()).digest()).digest())[0]
                % total_tokens
            )
        except UnicodeEncodeError:
            raise _not_text(task_id) from None

    def by_sha256(task_id: Any) -> int:
        try:
            return first_eight(sha256(str(task_id).encode()).digest())[0] % total_tokens
        except UnicodeEncodeError:
            raise _not_text(task_id) from None

    def by_md5(task_id: Any) -> int:
        try:
            return (
                from_bytes(md5(str(task_id).encode(), usedforsecurity=False).digest(), "big")
                % total_tokens
            )
        except UnicodeEncodeError:
            raise _not_text(task_id) from None

    def by_modulo(task_id: Any) -> int:
        try:
            return int(str(task_id)) % total_tokens
        except ValueError:
            raise ConfigError(
                f'hash_function="modulo" needs whole numbers as task ids; got {task_id!r:.100}'
            ) from None

    return {
        "double_sha256": by_double_sha256,
        "sha256": by_sha256,
        "md5": by_md5,
        "modulo": by_modulo,
    }[hash_function]


def task_text(task_id: Hashable) -> str:
    """The text under which a task is stored. Raises ConfigError for one that PostgreSQL cannot
    hold."""
    text = str(task_id)
    if "\0" in text:
        raise ConfigError(
            f"a task id or name must not contain the NUL character; got {text!r:.100}"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _not_text(text) from None
    return text


def task_key(text: str, batch: str | None = None) -> bytes:
    """The key under which a task is stored: 32 bytes, so that texts of any length have one.

    It is the SHA-256 of the text, or, in a batch that has a name, of the name, NUL and the text.
    Neither holds a NUL. So what is hashed tells name and text, and no two tasks of any batches
    share it. In a batch that has a name, the key begins like that of the batch: so its tasks lie
    together in an index, and a statement over them touches few pages, however many others there
    are.
    """
    if batch is None:
        return bytes(_sha256(text.encode()).digest())
    return _together(batch) + bytes(_sha256(f"{batch}\0{text}".encode()).digest()[_TOGETHER:])


def key_range(batch: str | None) -> tuple[bytes, bytes]:
    """Between which two the keys of a batch's tasks lie, neither being one of them."""
    first = b"" if batch is None else _together(batch)
    return first, first + b"\xff" * (33 - len(first))


@lru_cache(maxsize=16)
def _together(batch: str) -> bytes:
    return name_key(batch)[:_TOGETHER]


def key_ends(texts: Iterable[str], batch: str | None = None) -> int:
    """The sum of the ends of these tasks' keys: of the last four bytes of each, as a big-endian
    number. The sum tells which keys they are, but once in four billion times."""
    before = b"" if batch is None else f"{batch}\0".encode()
    return sum([_last_four(_sha256(before + text.encode()).digest())[0] for text in texts])


def name_key(name: str) -> bytes:
    """The key of what has a name, such as a batch: the SHA-256 of it."""
    key: bytes = _sha256(name.encode()).digest()
    return key


def ids_key(total: int) -> bytes:
    """The key of a set of ids: the same in any order. `total` is the sum of `task_sum` over their
    texts, each given once.

    The keys of the tasks are added up, so that the order makes no difference and nothing has to be
    sorted or kept. A NUL before the sum keeps it apart from every name.
    """
    key: bytes = _sha256(b"\0" + (total % 2**256).to_bytes(32, "big")).digest()
    return key


def task_sum(text: str) -> int:
    """What one text adds to the sum that `ids_key` takes."""
    return int.from_bytes(_sha256(text.encode()).digest(), "big")


def _not_text(task_id: object) -> ConfigError:
    return ConfigError(
        f"a task id or name must be text that UTF-8 can encode; got {task_id!r:.100}, which "
        "holds half of a surrogate pair"
    )
