"""Texts that people read, made such that they can be stored.

* Whatever an error does when it is asked for its text, there is one.
* The text of an error can be stored. A long one is cut, with a note of its length.
"""

from __future__ import annotations

MOST_CHARACTERS = 4_000


def error_text(error: BaseException) -> str:
    """What an error says, with its kind before it. Never raises, and is never longer than 4,000
    characters and a note."""
    kind = type(error).__name__
    try:
        text = str(error)
        shown = f"{kind}: {text}" if text else kind
    # `__str__` is the user's: it may raise anything, and then this is what there is to say
    except Exception as failure:
        shown = f"{kind} (what it says cannot be told: its __str__ raised {type(failure).__name__})"
    return storable(_shortened(shown))


def storable(text: str, codec: str = "utf-8") -> str:
    """The text, with what PostgreSQL cannot store in this encoding written as Python would:
    ``\\x00``, ``\\ud800``."""
    return text.replace("\0", "\\x00").encode(codec, "backslashreplace").decode(codec)


def can_store(text: str, codec: str) -> bool:
    """Whether every character is in this encoding."""
    try:
        return text.isascii() or bool(text.encode(codec))
    except UnicodeEncodeError:
        return False


def _shortened(text: str) -> str:
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}… (shortened: it has {len(text):,} characters)"
