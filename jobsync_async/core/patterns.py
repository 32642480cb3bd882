"""SQL LIKE patterns over worker names.

* A name matches as PostgreSQL's LIKE says: `%` is any text, `_` any one character, and `\\` makes
  the next character literal.
* Of several patterns, the first that any name matches decides.
* No pattern takes longer than its length times the name's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from jobsync_async.core.hashing import task_text
from jobsync_async.errors import ConfigError

MOST_PATTERNS = 100
MOST_CHARACTERS = 1_000

_ANY_TEXT = "%"
_ANY_CHARACTER = "_"
_ESCAPE = "\\"


@lru_cache(maxsize=4096)
def _symbols(pattern: str) -> tuple[tuple[str, bool], ...]:
    """The pattern's characters, each with whether it is literal."""
    symbols = []
    characters = iter(pattern)
    for character in characters:
        if character == _ESCAPE:
            symbols.append((next(characters, _ESCAPE), True))
        else:
            symbols.append((character, character not in (_ANY_TEXT, _ANY_CHARACTER)))
    return tuple(symbols)


def matches(pattern: str, name: str) -> bool:
    """Whether the whole name matches, as PostgreSQL's LIKE says.

    Greedy matching with one place to come back to, the last `%`: at most
    ``len(pattern) * len(name)`` steps, for any pattern.
    """
    symbols = _symbols(pattern)
    at, position = 0, 0
    resume: tuple[int, int] | None = None
    while position < len(name):
        if at < len(symbols) and symbols[at] == (_ANY_TEXT, False):
            at += 1
            resume = at, position
        elif at < len(symbols) and symbols[at] in ((_ANY_CHARACTER, False), (name[position], True)):
            at += 1
            position += 1
        elif resume is not None:  # let the last % take one character more
            at, position = resume[0], resume[1] + 1
            resume = at, position
        else:
            return False
    return all(symbol == (_ANY_TEXT, False) for symbol in symbols[at:])


def eligible(patterns: Sequence[str], names: Iterable[str]) -> list[str]:
    """The names that match the first pattern that any of them matches; none when no pattern
    does."""
    candidates = list(names)
    for pattern in patterns:
        if any(special in pattern for special in (_ANY_TEXT, _ANY_CHARACTER, _ESCAPE)):
            matching = [name for name in candidates if matches(pattern, name)]
        else:  # a plain name, as most pins are
            matching = [name for name in candidates if name == pattern]
        if matching:
            return matching
    return []


def validate_patterns(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """Patterns as they were given, one or a list in order of preference, checked. Raises
    ConfigError."""
    given = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(given, (list, tuple)) or not 1 <= len(given) <= MOST_PATTERNS:
        raise ConfigError(
            f"node_patterns must be a string or a list of 1 to {MOST_PATTERNS} strings; got "
            f"{patterns!r:.200}"
        )
    for pattern in given:
        if not isinstance(pattern, str) or not 1 <= len(pattern) <= MOST_CHARACTERS:
            raise ConfigError(
                f"a node pattern must be a string of 1 to {MOST_CHARACTERS} characters; got "
                f"{pattern!r:.200}"
            )
        task_text(pattern)
        if (len(pattern) - len(pattern.rstrip(_ESCAPE))) % 2:
            raise ConfigError(
                f"node pattern {pattern!r:.200} ends in a single backslash, which makes the next "
                "character literal, and there is none; write two for a literal backslash"
            )
    return tuple(given)
